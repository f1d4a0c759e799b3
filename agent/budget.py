"""What a run may spend and has spent. Wall time and tokens; the final evaluation is always kept back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

from tools.jobs.job import NO_USAGE, Usage

FINAL_MARGIN = 1.25
"""The final evaluation is projected from the baseline's cost; a busy machine may need more."""
START_UP_S = 4.0
"""Wall seconds kept back for writing the report and ending the worker."""


@dataclass
class Budget:
    """Limits of a run (None = no limit) and what is spent. One clock: spent_s continues after a resume."""

    minutes: float | None
    tokens: int | None
    earlier_s: float = 0.0
    """Wall seconds of the run before this process (its time between stop and resume not counted)."""

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.used = NO_USAGE
        self._measured: dict[str, Usage] = {}

    @property
    def spent_s(self) -> float:
        """Wall seconds of the run so far."""
        return self.earlier_s + time.monotonic() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the wall time of what is inside: a person may think for days."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.earlier_s -= time.monotonic() - began

    def add(self, usage: Usage, kind: str | None = None) -> None:
        """Count what a job cost; the kind of work (None = overhead) also tells the machine's speed at it."""
        self.used = self.used.plus(usage)
        if kind is not None:
            self._measured[kind] = self._measured.get(kind, NO_USAGE).plus(usage)

    def tokens_per_s(self, kind: str | None = None) -> float:
        """Return the measured speed, of one kind of work or of all; 300 before anything was measured.

        Training takes about twice the time of evaluation for a token.
        """
        every = reduce(Usage.plus, self._measured.values(), NO_USAGE)
        for known in (self._measured.get(kind or "", NO_USAGE), every):
            if known.tokens > 0 and known.wall_s > 0:
                return known.tokens / known.wall_s
        return 300.0

    def tokens_left(self) -> float | None:
        """Return how many tokens the budget still pays for at the measured speed; None = no limit."""
        left = [] if self.tokens is None else [float(self.tokens - self.used.tokens)]
        if self.minutes is not None:
            left.append((60 * self.minutes - self.spent_s) * self.tokens_per_s())
        return max(0.0, min(left)) if left else None

    def share_left(self) -> float:
        """Return the share of the budget that is left, 1.0 to 0.0, of whichever limit is nearer."""
        shares = [1.0]
        if self.tokens is not None:
            shares.append(1 - self.used.tokens / self.tokens)
        if self.minutes is not None:
            shares.append(1 - self.spent_s / (60 * self.minutes))
        return max(0.0, min(shares))

    def affords(self, tokens: float, reserved_tokens: float, kind: str | None = None) -> bool:
        """Whether an action of this kind (None = several) fits beside what is kept back for the final evaluation."""
        reserved = FINAL_MARGIN * reserved_tokens
        if self.tokens is not None and self.used.tokens + tokens + reserved > self.tokens:
            return False
        if self.minutes is None:
            return True
        needed_s = tokens / self.tokens_per_s(kind) + reserved / self.tokens_per_s("evaluation")
        return self.spent_s + needed_s + START_UP_S <= 60 * self.minutes
