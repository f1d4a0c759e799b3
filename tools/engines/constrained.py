"""How a small local model decides: free reasoning first, then one legal action, never anything else.

A small model prefers some words whatever it is told. So every log-probability is taken twice, under the situation and
under the same prompt with all values blanked, and their difference decides (contextual calibration, arXiv 2102.09690).
The action is the one whose name gains most; its arguments are decoded under a llguidance grammar of the legal values.
"""

import json
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor

from tools.contract import Json, ToolError
from tools.engines.base import Message, Sampling
from tools.engines.rollout import KeyValueTree, extend, grow_prefix, grow_trunks
from tools.engines.transformers_engine import TransformersEngine, shared_prefix_length
from tools.jobs.job import Job

REASONING_TOKENS = 32
SPARE_TOKENS = 32
"""Room beside the longest decision of the menu, should the grammar's tokens differ from the tokenizer's."""
MAIN = 0
"""Branch in which the chosen decision grows; alternatives are scored in branches 1, 2, ..."""


def deliberate(job: Job, **args: Any) -> Json:
    """Decide (see `_deliberate`); a job in the worker. Raises ToolError when no decision came out."""
    try:
        return _deliberate(job, **args)
    except ValueError as problem:  # over the context, or cut off before the JSON was whole
        raise ToolError(f"the model gave no decision: {problem}") from problem


def _deliberate(
    job: Job,
    model_dir: str | None,
    reason: list[Message],
    decide: str,
    blank: str,
    system: str,
    schemas: dict[str, Json],
) -> Json:
    """Return {"reasoning", "decision", "logprob", "argument_logprobs", "alternatives", "tokens"}.

    A reasoning that was cut off ends with "...". logprob is of the tool, argument_logprobs of each argument's value.
    decide and blank: the decision prompt with the situation, and with its values blanked; both hold the marker
    {reasoning}. schemas: tool name -> JSON schema of its action.
    """
    engine: TransformersEngine = job.resident.local_engine
    engine.use_model(None if model_dir is None else job.run_dir / model_dir)
    before = engine.tokens_processed
    thought = engine.generate([reason], Sampling(REASONING_TOKENS))[0][0]
    reasoning = " ".join(thought.text.split())
    prompts = [decide.replace("{reasoning}", reasoning), blank.replace("{reasoning}", "?")]
    chats: list[list[Message]] = [
        [{"role": "system", "content": system}, {"role": "user", "content": prompt}] for prompt in prompts
    ]
    decoder = CalibratedDecoder(engine, [engine.encode(chat) for chat in chats], schemas)
    logprobs = decoder.score_names(list(schemas))
    chosen = max(logprobs, key=lambda name: logprobs[name])
    decision, argument_logprobs = decoder.decode(schemas[chosen])
    return {
        "reasoning": reasoning + " ..." * (thought.finish == "length"),
        "decision": decision,
        "logprob": round(logprobs[chosen], 4),
        "argument_logprobs": {name: round(value, 4) for name, value in argument_logprobs.items()},
        "alternatives": [
            {"tool": name, "logprob": round(value, 4)} for name, value in logprobs.items() if name != chosen
        ],
        "tokens": engine.tokens_processed - before,
    }


class CalibratedDecoder:
    """Decodes one answer to two prompts at once: the real one and the blanked one (rows 0 and 1 of a tree)."""

    @torch.inference_mode()
    def __init__(self, engine: TransformersEngine, prompts: list[list[int]], schemas: dict[str, Json]) -> None:
        """Prefill both prompts; what they share is computed once. schemas: all that may be decoded."""
        self.engine = engine
        self.num_decision = max(len(self._encode(_longest(schema))) for schema in schemas.values()) + SPARE_TOKENS
        num_shared = shared_prefix_length(prompts)
        prefix = grow_prefix(engine.model, prompts[0][:num_shared])
        room = self.num_decision + sum(len(self._encode(_start_of_answer(name))) for name in schemas)
        tree, logits_BNV, position_B = grow_trunks(engine.model, prefix, [ids[num_shared:] for ids in prompts], room)
        self.tree: KeyValueTree = tree
        self.owner: list[int] = []
        """The branch of each token after the trunk."""
        self.position_B = position_B
        self.logits_BV = logits_BNV[:, -1]
        engine.tokens_processed += num_shared + sum(len(ids) - num_shared for ids in prompts)

    @torch.inference_mode()
    def score_names(self, names: list[str]) -> dict[str, float]:
        """Return the calibrated log-probability of each tool name as the answer's start, normalised over the names."""
        sequences = [self._encode(_start_of_answer(name)) for name in names]
        flat = [token for ids in sequences for token in ids]
        owner = [number for number, ids in enumerate(sequences, 1) for _ in ids]
        offset = [place for ids in sequences for place in range(len(ids))]
        logits_BQV = self._extend(flat, owner, offset).float()
        scores: dict[str, float] = {}
        start = 0
        for name, ids in zip(names, sequences, strict=True):
            # The first token is predicted by the prompt, each later one by the token before it.
            predicting = torch.cat([self.logits_BV[:, None].float(), logits_BQV[:, start : start + len(ids) - 1]], 1)
            logprob_BQ = predicting.log_softmax(-1).gather(
                -1, torch.tensor(ids, device=predicting.device).expand(2, -1)[..., None]
            )
            real, blanked = logprob_BQ.sum((1, 2)).tolist()
            scores[name] = real - blanked
            start += len(ids)
        total = torch.tensor(list(scores.values())).logsumexp(0).item()
        return {name: value - total for name, value in scores.items()}

    @torch.inference_mode()
    def decode(self, schema: Json) -> tuple[Json, dict[str, float]]:
        """Return the JSON value that the grammar of the schema and the calibrated model spell out together.

        With it the log-probability of each argument's value among the legal ones, given the tool and the arguments
        before it; arguments with one legal value are left out.
        """
        legal = schema["properties"]["arguments"]["properties"]
        logprobs = {name: 0.0 for name, values in legal.items() if len(values["enum"]) > 1}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        matcher = llguidance.LLMatcher(self.engine.guide, grammar)
        if matcher.get_error():
            raise ValueError(f"the menu's schema is refused by the grammar engine: {matcher.get_error()}")
        tokens: list[int] = []
        logits_BV = self.logits_BV
        while len(tokens) < self.num_decision:
            new, logprob = matcher.compute_ff_tokens(), 0.0
            if not new:
                best, logprob = self._best(matcher, logits_BV)
                new = [best]
            new = [token for token in new if token not in self.engine.stop_ids]
            if not new or not matcher.consume_tokens(new):
                break
            tokens += new
            name = self._argument(tokens, list(legal))
            if name in logprobs:
                logprobs[name] += logprob
            if matcher.is_stopped():
                break
            logits_BV = self._extend(new, [MAIN] * len(new), list(range(len(tokens) - len(new), len(tokens))))[:, -1]
        text = str(self.engine.tokenizer.decode(tokens, skip_special_tokens=True))
        return dict(json.loads(text)), logprobs

    def _argument(self, tokens: list[int], names: list[str]) -> str | None:
        """Return the argument whose value the last token belongs to, None before the first."""
        text = str(self.engine.tokenizer.decode(tokens)).partition('"arguments":')[2]
        begun = (name for name in reversed(names) if f"{json.dumps(name, ensure_ascii=False)}:" in text)
        return next(begun, None)

    def _best(self, matcher: Any, logits_BV: Tensor) -> tuple[int, float]:
        """Return the allowed token whose log-probability gains most from the situation, and its log-probability.

        It is taken among the texts that go on otherwise, each by its best token: that a text can be cut into tokens in
        several ways is no doubt about the text.
        """
        bitmask = llguidance.numpy.allocate_token_bitmask(1, logits_BV.shape[-1])
        llguidance.numpy.fill_next_token_bitmask(matcher, bitmask, 0)
        allowed = np.unpackbits(bitmask[0].view(np.uint8), bitorder="little")[: logits_BV.shape[-1]].astype(bool)
        real, blanked = logits_BV.float().log_softmax(-1).cpu()
        gain = torch.where(torch.from_numpy(allowed), real - blanked, -torch.inf)
        best = int(gain.argmax())
        ids = np.flatnonzero(allowed).tolist()
        texts = dict(zip(ids, self.engine.tokenizer.convert_ids_to_tokens(ids), strict=True))
        ours, ways = texts[best], {"": float(gain[best])}
        for token, text in texts.items():
            parts_at = next((at for at, (a, b) in enumerate(zip(ours, text, strict=False)) if a != b), None)
            if parts_at is not None:
                way = text[: parts_at + 1]
                ways[way] = max(ways.get(way, -np.inf), float(gain[token]))
        return best, ways[""] - float(torch.tensor(list(ways.values())).logsumexp(0))

    def _encode(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text, add_special_tokens=False).input_ids)

    def _extend(self, tokens: list[int], owner: list[int], offset: list[int]) -> Tensor:
        """Append tokens to both rows; each sees the trunk and what came before it in its own branch."""
        device = self.engine.device
        self.engine.tokens_processed += 2 * len(tokens)
        self.owner += owner
        owner_L = torch.tensor(self.owner, device=device)
        branch_QL = (owner_L[:, None] == owner_L).tril()[-len(tokens) :]
        trunk_BQL = self.tree.trunk_BL.unsqueeze(1).expand(-1, len(tokens), -1)
        seen_BQL = torch.cat([trunk_BQL, branch_QL.expand(2, -1, -1)], dim=-1)
        tokens_BQ, offset_BQ = (torch.tensor(values, device=device).expand(2, -1) for values in (tokens, offset))
        position_BQ = offset_BQ + self.position_B[:, None]
        return extend(self.engine.model, self.tree, tokens_BQ, seen_BQL, position_BQ, num_kept=len(tokens))


def _start_of_answer(name: str) -> str:
    return '{"tool":"' + name + '"'


def _longest(schema: Json) -> str:
    """Return the longest text that an action's schema allows."""
    properties = schema["properties"]["arguments"]["properties"]
    values = {name: max(value["enum"], key=lambda entry: len(json.dumps(entry))) for name, value in properties.items()}
    return json.dumps({"tool": schema["properties"]["tool"]["const"], "arguments": values})
