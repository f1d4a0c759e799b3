"""From text to tokens, loss mask and batch, for supervised training: the only place where that happens.

`tokenise` makes one example (TRL's columns: input_ids, and labels with -100 where no loss is taken).
`PrefixCollator` lays a batch out as one sequence: the tokens that its prompts begin with once, then every example's
rest, each seeing the shared tokens and itself (row_attention.py). Loss and gradients equal those of padded rows (in
fp32, a test compares them), for about half the matrix products when prompts are short and alike.
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
        boolean attention mask (N or 1, 1, L, P + L): a token sees its row up to itself, and what is shared if its row
        begins so. Where one row is so long that filling up the others would cost more than a mask over the whole
        sequence, that mask (1, 1, T, T) alone.
        """
        ids, shares = shared_prompt(rows)
        num_shared, labels, position = len(ids), [IGNORED] * len(ids), list(range(len(ids)))
        firsts = [num_shared if begins else 0 for begins in shares]
        longest = max(len(row["input_ids"]) - first for row, first in zip(rows, firsts, strict=True))
        columns_NL = torch.full((len(rows), longest), PADDING)
        for columns_L, row, first in zip(columns_NL, rows, firsts, strict=True):
            rest = row["input_ids"][first:]
            columns_L[: len(rest)] = torch.arange(len(rest)) + len(ids) - num_shared
            ids += rest
            labels += row["labels"][first:]
            position += range(first, first + len(rest))
        found = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([position]),
        }
        if columns_NL.numel() * (num_shared + longest) > len(ids) ** 2:
            return found | {"attention_mask": _over_the_sequence(columns_NL, num_shared, shares)}
        visible = torch.ones(longest, num_shared + longest, dtype=torch.bool).tril(num_shared)[None, None]
        if not all(shares):
            visible = visible.repeat(len(rows), 1, 1, 1)
            visible[~torch.tensor(shares), :, :, :num_shared] = False
        return found | {"attention_mask": visible, "columns": columns_NL}


def _over_the_sequence(columns_NL: Tensor, num_shared: int, shares: list[bool]) -> Tensor:
    """Return the boolean mask (1, 1, T, T): a token sees its row up to itself, and the shared tokens if it has them."""
    lengths = [num_shared, *(columns_NL != PADDING).sum(1).tolist()]
    owner_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    sees_shared_T = torch.tensor([True, *shares])[owner_T]
    same = owner_T[:, None] == owner_T[None, :]
    return (same | (sees_shared_T[:, None] & (owner_T == 0)[None, :])).tril()[None, None]


def shared_prompt(rows: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    """Return the beginning that saves most when it is computed once, and which rows have it.

    A row that begins otherwise, such as a general chat among a task's questions, keeps all its tokens. So does each row
    its last prompt token, because that is the one that predicts the first label.
    """
    prompts = [row["input_ids"][: next(i for i, label in enumerate(row["labels"]) if label != IGNORED)] for row in rows]
    middle = sorted(prompts)[len(prompts) // 2]  # of a beginning that most have
    common = [shared_prefix_length([middle, prompt]) for prompt in prompts]
    length = max([0, *sorted(set(common))], key=lambda length: length * (sum(c >= length for c in common) - 1))
    return middle[:length], [c >= length for c in common]
