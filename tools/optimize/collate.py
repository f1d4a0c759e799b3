"""From text to tokens, loss mask and batch, for supervised training: the only place where that happens.

`tokenise` makes one example (TRL's columns: input_ids, and labels with -100 where no loss is taken).
`PrefixCollator` lays a batch out as one sequence: the tokens that all its prompts share once, then every example's
rest, each seeing the shared tokens and itself (row_attention.py). Loss and gradients equal those of padded rows (a test
compares them), for about half the matrix products when prompts are short and alike.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tools.engines.base import Message
from tools.engines.transformers_engine import encode_chat, shared_prefix_length
from tools.optimize.row_attention import PADDING

IGNORED = -100


class TrainingTokens(NamedTuple):
    """One tokenised example; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    """input_ids where the loss is taken (the completion and its stop token), -100 elsewhere."""


def tokenise(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], completion: str, whole: bool = True
) -> TrainingTokens:
    """Return the tokens of a prompt as the engine would send it, followed by the completion and the stop token.

    whole False: the completion was cut off, and no stop follows it.
    """
    prompt_ids = encode_chat(tokenizer, prompt)
    assert isinstance(tokenizer.eos_token_id, int), "the tokenizer has no stop token; training would never end answers"
    # Without a chat template the prompt ends in "Answer:", and few-shot examples go on with a space.
    text = completion if tokenizer.chat_template else f" {completion}"
    answer_ids = [*tokenizer(text, add_special_tokens=False).input_ids, *([tokenizer.eos_token_id] if whole else [])]
    return TrainingTokens(prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids)


class PrefixCollator:
    """Collates {"input_ids", "labels"} rows into one sequence with a shared prefix; returns model inputs (1, T)."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return input_ids, labels and position_ids (1, T), and what row_attention reads.

        That is columns (N, L): where in the sequence, behind its P shared tokens, each row's own tokens stand; and the
        boolean attention mask (1, 1, L, P + L): a token sees what is shared, and its row up to itself.
        """
        num_shared = shared_prompt_length(rows)
        ids, labels = list(rows[0]["input_ids"][:num_shared]), [IGNORED] * num_shared
        position = list(range(num_shared))
        longest = max(len(row["input_ids"]) for row in rows) - num_shared
        columns_NL = torch.full((len(rows), longest), PADDING)
        for columns_L, row in zip(columns_NL, rows, strict=True):
            rest = row["input_ids"][num_shared:]
            columns_L[: len(rest)] = torch.arange(len(rest)) + len(ids) - num_shared
            ids += rest
            labels += row["labels"][num_shared:]
            position += range(num_shared, num_shared + len(rest))
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([position]),
            "attention_mask": torch.ones(longest, num_shared + longest, dtype=torch.bool).tril(num_shared)[None, None],
            "columns": columns_NL,
        }


def shared_prompt_length(rows: list[dict[str, Any]]) -> int:
    """Return how many first tokens all prompts share, at least one prompt token left to each row.

    The token before the first label stays with its row, because it is the one that predicts it.
    """
    prompts = [row["input_ids"][: next(i for i, label in enumerate(row["labels"]) if label != IGNORED)] for row in rows]
    return shared_prefix_length(prompts)
