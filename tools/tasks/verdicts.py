"""How a scorer says what it found: the verdicts that all scorers share, and the reading of plain text and scores."""

import math
from collections.abc import Callable
from numbers import Real

from tools.tasks.base import Item, Verdict, normalise

Scorer = Callable[[Item, str], Verdict]

RIGHT_SCORE = 0.99
"""Graded scorers give partial credit; only from here on an answer counts as right."""


def binary(right: bool) -> Verdict:
    """Return right with score 1 or wrong with score 0."""
    return Verdict(1.0, "right") if right else Verdict(0.0, "wrong")


def malformed() -> Verdict:
    """Return the verdict on an answer from which nothing can be read."""
    return Verdict(0.0, "malformed")


def graded(score: object) -> Verdict:
    """Read a score from foreign code. Raises ValueError unless it is a number from 0 to 1."""
    value = float(score) if isinstance(score, Real) else math.nan
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"the scorer returned {score!r}, which is not a number from 0 to 1")
    return Verdict(value, "right" if value >= RIGHT_SCORE else "wrong")


def plain(text: str) -> str:
    """Return a text as comparisons see it: lower case, single spaces, no quotes or punctuation around it."""
    text = normalise(text)
    return text.strip(" .!\"'`*") or text
