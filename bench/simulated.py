"""Simulated candidates for the benches of the referee: what a gate would see of models whose true gain is known."""

from typing import Any

import numpy as np

from agent.statistics import PairedTest, decide, look_sizes, sign_test

GRADES = 4
"""Steps of a graded score above 0: 0.25, 0.5, 0.75, 1."""
REDRAWN_CHANGE = {1: 0.4, GRADES: 0.667}
"""Chance that two independent answers to one item differ in score, by steps: skills are Beta(2, 2) over the items."""


def first_champion(rng: np.random.Generator, num_items: int, graded: bool = False) -> tuple[Any, Any]:
    """Return each item's difficulty (chance of a right answer) and the champion's scores, both (num_items,)."""
    skill = rng.beta(2, 2, num_items)
    return skill, rng.binomial(GRADES if graded else 1, skill)


def candidates_of(
    rng: np.random.Generator,
    skill: Any,
    champion: Any,
    count: int,
    changed: float,
    gain: float = 0.0,
    graded: bool = False,
) -> Any:
    """Return the scores (count, num_items) of candidates on the champion's items.

    Champion and candidate answer an item of a given difficulty by the same chance; the candidate keeps the champion's
    answer to most items and answers others anew, so that about a share `changed` differ. A true gain raises as many
    more. All candidates meet one and the same measurement of the champion, lucky or not: they are correlated.
    """
    steps = GRADES if graded else 1
    shape = (count, len(champion))
    anew = rng.random(shape) < (changed - gain) / REDRAWN_CHANGE[steps]
    candidates = np.where(anew, rng.binomial(steps, skill, shape), champion)
    room = candidates < steps
    raised = rng.random(shape) < gain / np.maximum(room.mean(1, keepdims=True), 1e-9)
    return candidates + (room & raised)


def verdict(champion: Any, candidate: Any, alpha: float, fixed_size: bool = False) -> tuple[bool, int]:
    """Return (accepted, items spent) of the referee's rule; fixed_size: all items and one test at the full level."""
    rose, fell = np.cumsum(candidate > champion), np.cumsum(candidate < champion)
    num_items = len(champion)
    if fixed_size:
        return sign_test(int(rose[-1]), int(fell[-1])) <= alpha, num_items
    for look, seen in enumerate(look_sizes(num_items)):
        fixed, broken = int(rose[seen - 1]), int(fell[seen - 1])
        accepted = decide(PairedTest(seen, fixed, broken, sign_test(fixed, broken)), look, num_items, alpha)
        if accepted is not None:
            return accepted, seen
    raise AssertionError("unreachable: the last look always decides")
