"""How likely texts are: the base model and the one in use, read side by side along given answers."""

import torch

from tools.engines.base import Message
from tools.engines.rollout import grow_trunks
from tools.engines.transformers_engine import TransformersEngine

ROWS_PER_FORWARD = 8
"""Few: each answer token brings a whole vocabulary of logits, twice."""


@torch.inference_mode()
def compare_with_base(
    engine: TransformersEngine, prompts: list[list[Message]], answers: list[str], stopped: list[bool]
) -> tuple[list[float], list[float]]:
    """Return for each prompt and answer two means over the answer's tokens (its stop token where it stopped), in nats.

    First the base model's log-probability, then KL(base || model in use), exact over the vocabulary.
    """
    logprobs: list[float] = []
    divergences: list[float] = []
    for start in range(0, len(prompts), ROWS_PER_FORWARD):
        part = slice(start, start + ROWS_PER_FORWARD)
        answer_ids = [_answer_ids(engine, *answer) for answer in zip(answers[part], stopped[part], strict=True)]
        rows = [engine.encode(chat) + ids for chat, ids in zip(prompts[part], answer_ids, strict=True)]
        num_kept = max(map(len, answer_ids)) + 1  # the last position predicts nothing
        engine.tokens_processed += 2 * sum(map(len, rows))
        base = grow_trunks(engine.base, None, rows, 0, num_kept)[1].float().log_softmax(-1)
        model = grow_trunks(engine.model, None, rows, 0, num_kept)[1].float().log_softmax(-1)
        divergence_BN = (base.exp() * (base - model)).sum(-1)
        for row, ids in enumerate(answer_ids):
            predicting = slice(num_kept - 1 - len(ids), num_kept - 1)
            chosen = base[row, predicting].gather(-1, torch.tensor(ids, device=base.device)[:, None])
            logprobs.append(float(chosen.mean()))
            divergences.append(float(divergence_BN[row, predicting].mean()))
    return logprobs, divergences


def _answer_ids(engine: TransformersEngine, text: str, stopped: bool) -> list[int]:
    ids = list(engine.tokenizer(text, add_special_tokens=False).input_ids)
    return [*ids, int(engine.stop_ids[0])] if stopped or not ids else ids
