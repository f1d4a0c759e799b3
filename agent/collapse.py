"""Signs that self-training feeds on itself: rules that stop a run before it spends its budget on nothing.

The champion is safe in any case, because the gate decides; these rules save what further rounds would cost. The signs
are those of model collapse (arXiv 2305.17493) and of majority votes that drift from the truth (arXiv 2504.16084).
"""

from agent.statistics import wilson_interval
from memory.store import BASE
from tools.contract import Json

LEAST_ITEMS = 100
"""A sampling of fewer items says too little."""
LEAST_DISTINCT = 0.25
"""Different answers per item, as a share of what the first comparable sampling had."""
LEAST_ENTROPY = 0.005
"""Nats per token; below, sampling returns one answer whatever the temperature."""
MOST_SETTLED = 0.98
"""Share of items that are always or never right: the rest is what sampling can learn from."""
WIDER_GAP = 0.3
"""Rise of the distance between how much an item's samples agree and how often the majority is right."""


def collapse_sign(samplings: list[Json]) -> str | None:
    """Return the sign of collapse in the newest sampling, in words with its numbers; None = there is none.

    samplings: manifests of the samplings of a run, oldest first. The newest is compared with the first of the same kind
    (few-shot or zero-shot).
    """
    if not samplings:
        return None
    newest = samplings[-1]
    first, now = next(row for row in samplings if row["shots"] == newest["shots"])["health"], newest["health"]
    n = now["num_items"]
    if n < LEAST_ITEMS:
        return None
    settled = now["never_right"] + now["always_right"]
    if newest["model"] != BASE and wilson_interval(settled, n)[0] > MOST_SETTLED:
        return f"{settled} of {n} items are always or never right: sampling has nothing left to learn from"
    if now["entropy"] < LEAST_ENTROPY:
        return f"samples hardly differ any more: {now['entropy']:.3f} nats per token (n={n} items)"
    no_better = now["majority_right"] <= first["majority_right"]  # else it learns which few answers there are
    if no_better and now["distinct"] < LEAST_DISTINCT * first["distinct"]:
        return f"answers become alike: {now['distinct']:.2f} different ones per item, at first {first['distinct']:.2f}"
    gaps = [health["agreement"] - health["majority_right"] for health in (first, now)]
    low, high = (wilson_interval(round(health["majority_right"] * health["num_items"]), health["num_items"])
                 for health in (first, now))  # fmt: skip
    if gaps[1] - gaps[0] > WIDER_GAP and high[1] < low[0]:
        return (
            f"samples agree on wrong answers: agreement {now['agreement']:.2f}, right {now['majority_right']:.2f} "
            f"(at first {first['agreement']:.2f} and {first['majority_right']:.2f}, n={n} items)"
        )
    return None
