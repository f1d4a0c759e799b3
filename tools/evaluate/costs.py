"""What actions will cost, in tokens, projected from what was measured in this run."""

from memory.store import BASE, RunStore
from tools.contract import ToolContext

TRAINED_TOKEN_COST = 3
"""A trained token is processed forward and, twice as dear, backward."""

REHEARSAL_SHARE = 0.25
"""Earlier examples among the new ones when training goes on, as many of each difficulty: new data is hard data, and
what is learned no more is forgotten."""

LARGE_SET = 384

GUARD_TOKENS = 9_000
"""Of the guards on a candidate that passed the gate, as measured with the default model: their prompts are fixed."""


def answer_tokens(store: RunStore) -> tuple[float, float]:
    """Return one item's prompt tokens (beyond a shared prefix) and answer tokens, as the baseline measured them."""
    record = store.score(BASE)
    return (32.0, 8.0) if record is None else (record["prompt_tokens_per_item"], record["answer_tokens_per_item"])


def verdict_tokens(context: ToolContext) -> float:
    """Return the most tokens that measuring and guarding a candidate takes, a new champion's own gate items with it."""
    record = context.store.score(BASE)
    if record is None:
        return 0.0
    sizes = record["split_sizes"]
    verdicts = context.store.verdicts()
    num_gate = sizes["gate"] * (2 if not verdicts or verdicts[-1]["accepted"] else 1)
    return (sizes["search"] + num_gate) * sum(answer_tokens(context.store)) + GUARD_TOKENS


def final_tokens(store: RunStore) -> float:
    """Return the tokens of the final evaluation: base zero-shot, base few-shot, champion."""
    record = store.score(BASE)
    return 0.0 if record is None else 3 * record["split_sizes"]["final"] * sum(answer_tokens(store))


def epochs_for(num_new: int) -> list[int]:
    """Return how often training may read so many new examples.

    Examples seen again cost no sampling and, a few times, teach about as much as new ones (bench/upper_arm.py); a small
    set is soon learned by heart.
    """
    return [2, 3, 4] if num_new >= LARGE_SET else [1, 2]


def new_set_tokens(context: ToolContext, num_examples: int) -> float:
    """Return the tokens of the least training on new examples, with the rehearsal beside them, and of the verdict."""
    return training_tokens(context, num_examples * (1 + REHEARSAL_SHARE) * epochs_for(num_examples)[0])


def training_tokens(context: ToolContext, num_examples: float) -> float:
    """Return the tokens of training on so many examples, each pass counted, and of the verdict that must follow."""
    return TRAINED_TOKEN_COST * num_examples * sum(answer_tokens(context.store)) + verdict_tokens(context)
