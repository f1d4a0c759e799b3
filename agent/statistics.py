"""The few statistics that decide: score intervals, the paired test in steps, and how alpha is spent over a run."""

from bisect import bisect_left
from functools import lru_cache
from math import ceil, comb, exp, lgamma, sqrt
from typing import NamedTuple

ALPHA = 0.05
"""Chance that a run promotes any candidate that is no better, over all its candidates."""
FIRST_SHARE = 0.2
"""Share of the alpha left that each candidate may spend: a fifth of 5 % for the first, of the rest for the second."""
LOOKS = ((0.25, 0.02), (0.5, 0.08), (0.75, 0.15), (1.0, 0.75))
"""When a verdict is looked for: the share of the gate items answered by then, and the share of the candidate's level
spent on it. The shares add up to one, so looking early never makes a wrong promotion likelier (Bonferroni)."""
FUTILE = 0.05
"""A candidate whose chance of still passing is smaller is rejected early, which can only make promotions rarer."""
LEAST_SEEN = 100
"""Items that must be answered before that chance is trusted: it takes the share of changed items as seen so far."""
TYPICAL_CHANGE = 0.2
"""Share of the items on which a candidate differs from the champion, for what is said before a run (10 to 30 %)."""


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
    """Items that the candidate answers better; for right or wrong, those that only it gets right."""
    num_broken: int
    """Items that the champion answers better."""
    p_value: float
    """Chance of at least this many fixed among the changed if changes were coin flips, one-sided."""


def paired_test(champion: list[bool] | list[float], candidate: list[bool] | list[float]) -> PairedTest:
    """Compare two models item by item: the exact sign test, which for right or wrong is McNemar's.

    Graded scores count by their direction alone: the test stays exact at any n and for any scale, where a bootstrap of
    mean differences promises its level for many items only. Raises ValueError when the lists are not of equal items.
    """
    if len(champion) != len(candidate) or not champion:
        raise ValueError(f"paired results need the same items: {len(champion)} and {len(candidate)}")
    fixed = sum(new > old for old, new in zip(champion, candidate, strict=True))
    broken = sum(old > new for old, new in zip(champion, candidate, strict=True))
    return PairedTest(len(champion), fixed, broken, sign_test(fixed, broken))


@lru_cache(maxsize=100_000)
def sign_test(fixed: int, broken: int) -> float:
    """Return the one-sided p-value of so many fixed and broken items."""
    changed = fixed + broken
    term, tail = comb(changed, fixed), 0
    for k in range(fixed, changed + 1):
        tail += term
        term = term * (changed - k) // (k + 1)
    return tail / 2**changed


def paired_gain(fixed: int, broken: int, num_items: int) -> tuple[float, float, float]:
    """Return the gain of a candidate on paired items, as a share of them, and its 95 % interval (normal).

    One changed item is added to each side, so that the interval of few changes is not too narrow (Agresti and Min,
    Statistics in Medicine 24, 2005).
    """
    n = num_items + 2
    gain = (fixed - broken) / n
    half = 1.96 * sqrt((fixed + broken + 2) / n - gain**2) / sqrt(n)
    return gain, gain - half, gain + half


def look_sizes(num_items: int) -> list[int]:
    """Return after how many gate items a verdict is looked for, ascending; the last is all of them."""
    return [ceil(share * num_items) for share, _ in LOOKS]


def decide(test: PairedTest, look: int, num_items: int, alpha: float) -> bool | None:
    """Return accept (True), reject (False) or go on (None) at a look (0 = first) of num_items in all, at level alpha.

    Group-sequential with non-binding futility. Accept when the p-value is within this look's share of alpha. Reject at
    the last look, or when passing it has become unlikely: the predictive chance, a beta-binomial of the changes still
    to come given those seen (Spiegelhalter et al. 1986), is below FUTILE.
    """
    if test.p_value <= LOOKS[look][1] * alpha:
        return True
    if look == len(LOOKS) - 1:
        return False
    if test.num_items < LEAST_SEEN:
        return None
    left = num_items - test.num_items
    chance = chance_to_pass(test.num_fixed, test.num_broken, test.num_items, left, LOOKS[-1][1] * alpha)
    return None if chance >= FUTILE else False


@lru_cache(maxsize=100_000)
def chance_to_pass(fixed: int, broken: int, num_seen: int, num_left: int, level: float) -> float:
    """Return the predictive chance that a candidate passes at the last item, after so many fixed and broken ones.

    The share of changed items is taken as seen so far (one more, so that none seen is not none to come); whether a
    change fixes or breaks follows a uniform prior.
    """
    coming = round((fixed + broken + 1) / num_seen * num_left)
    needed = needed_to_pass(fixed + broken + coming, level) - fixed
    a, b = fixed + 1, broken + 1
    if needed <= 0:
        return 1.0
    if needed > coming:
        return 0.0
    term = exp(_log_comb(coming, needed) + _log_beta(a + needed, b + coming - needed) - _log_beta(a, b))
    if term == 0.0:  # too small for a float: needed is far to one side
        return float(needed * (a + b) < coming * a)
    tail = 0.0
    for k in range(needed, coming + 1):
        tail += term
        term *= (coming - k) / (k + 1) * (a + k) / max(1, b + coming - k - 1)
    return tail


@lru_cache(maxsize=10_000)
def needed_to_pass(changed: int, level: float) -> int:
    """Return the least number of fixed items among so many changed that passes; changed + 1 when none does."""
    most, tail, needed = (int(level * 2**60) << changed) >> 60, 0, changed + 1  # in whole numbers: exact at any size
    while needed > 0 and tail + comb(changed, needed - 1) <= most:
        needed -= 1
        tail += comb(changed, needed)
    return needed


def provable_gain(num_items: int, power: float = 0.8) -> float | None:
    """Return the smallest true gain that the first candidate proves with this chance; None when not even a full one.

    For TYPICAL_CHANGE of the items changed, or as many as the gain where that is more; by simulation of the rule.
    """
    steps = range(1, 201)
    found = bisect_left(steps, power, key=lambda step: _power(num_items, step / 200))
    return None if found == len(steps) else steps[found] / 200


def _power(num_items: int, gain: float, num_runs: int = 2000) -> float:
    """Return how often a first candidate with this true gain is accepted, in simulated runs of `decide`."""
    import numpy as np

    changed = max(TYPICAL_CHANGE, gain)
    shares = [(changed + gain) / 2, (changed - gain) / 2, 1 - changed]
    sizes = look_sizes(num_items)
    parts = [after - before for before, after in zip([0, *sizes], sizes, strict=False)]
    numbers = np.random.default_rng(0)
    counts = np.stack([numbers.multinomial(part, shares, num_runs) for part in parts]).cumsum(0)
    accepted = 0
    for run in range(num_runs):
        for look, size in enumerate(sizes):
            fixed, broken = counts[look, run, :2].tolist()
            verdict = decide(PairedTest(size, fixed, broken, sign_test(fixed, broken)), look, num_items, alpha_for([]))
            if verdict is not None:
                accepted += verdict
                break
    return accepted / num_runs


def alpha_for(earlier: list[bool]) -> float:
    """Return the level of the next candidate after these verdicts (accepted or not, oldest first).

    Each candidate has a level of its own, all together ALPHA; an accepted one passes what it was tested at on to the
    next (the fallback procedure, Wiens 2003), so that the chance of any wrong promotion stays ALPHA.
    """
    passed_on = 0.0
    for number, accepted in enumerate(earlier):
        passed_on = passed_on + _own_level(number) if accepted else 0.0
    return passed_on + _own_level(len(earlier))


def alpha_left(earlier: list[bool]) -> float:
    """Return how much of ALPHA the candidates after these verdicts can still be tested at, all together."""
    return alpha_for(earlier) + ALPHA * (1 - FIRST_SHARE) ** (len(earlier) + 1)


def _own_level(number: int) -> float:
    return float(ALPHA * FIRST_SHARE * (1 - FIRST_SHARE) ** number)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _log_comb(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
