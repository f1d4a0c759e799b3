"""The few statistics that decide: score intervals, the paired test, and how alpha is spent over a run's candidates."""

from math import comb, sqrt
from typing import NamedTuple

ALPHA = 0.05
"""Chance that a run promotes any candidate that is no better, over all its candidates."""
FIRST_SHARE = 0.2
"""Share of the alpha left that each candidate may spend: a fifth of 5 % for the first, of the rest for the second."""


def wilson_interval(num_right: int, num_items: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share. Raises ValueError for no items: a score without n is no score."""
    if num_items <= 0:
        raise ValueError("a score needs at least one item")
    share, spread = num_right / num_items, z * z / num_items
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / num_items + spread / (4 * num_items)) / (1 + spread)
    # At 0 and at 1 the bound is exact; rounding must not move it past the score.
    low = 0.0 if num_right == 0 else max(0.0, centre - half)
    high = 1.0 if num_right == num_items else min(1.0, centre + half)
    return low, high


class PairedTest(NamedTuple):
    """A candidate against the champion on the same items."""

    num_items: int
    num_fixed: int
    """Items that only the candidate gets right."""
    num_broken: int
    """Items that only the champion gets right."""
    p_value: float
    """One-sided exact McNemar: chance of at least this many fixed among the changed if changes were coin flips."""


def paired_test(champion: list[bool], candidate: list[bool]) -> PairedTest:
    """Compare two models item by item. Raises ValueError when the lists do not belong to the same items."""
    if len(champion) != len(candidate) or not champion:
        raise ValueError(f"paired results need the same items: {len(champion)} and {len(candidate)}")
    fixed = sum(new and not old for old, new in zip(champion, candidate, strict=True))
    broken = sum(old and not new for old, new in zip(champion, candidate, strict=True))
    changed = fixed + broken
    p_value = sum(comb(changed, k) for k in range(fixed, changed + 1)) / 2**changed
    return PairedTest(len(champion), fixed, broken, p_value)


def alpha_for(earlier: list[bool]) -> float:
    """Return the level of the next candidate after these verdicts (accepted or not, oldest first).

    Each candidate has a level of its own, all together ALPHA; an accepted one passes what it was tested at on to the
    next (the fallback procedure, Wiens 2003), so that the chance of any wrong promotion stays ALPHA.
    """
    passed_on = 0.0
    for number, accepted in enumerate(earlier):
        passed_on = passed_on + _own_level(number) if accepted else 0.0
    return passed_on + _own_level(len(earlier))


def _own_level(number: int) -> float:
    return float(ALPHA * FIRST_SHARE * (1 - FIRST_SHARE) ** number)
