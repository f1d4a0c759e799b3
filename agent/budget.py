"""What a run may spend and has spent. Wall time and tokens; the final evaluation is always kept back."""

import time
from dataclasses import dataclass

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
        self.measured = NO_USAGE

    @property
    def spent_s(self) -> float:
        """Wall seconds of the run so far."""
        return self.earlier_s + time.monotonic() - self._started

    def add(self, usage: Usage, productive: bool = True) -> None:
        """Count what a job cost; productive jobs (generation, training, evaluation) also tell the machine's speed."""
        self.used = self.used.plus(usage)
        if productive:
            self.measured = self.measured.plus(usage)

    @property
    def tokens_per_s(self) -> float:
        """Measured speed of the work so far; 300 before anything was measured."""
        known = self.measured.tokens > 0 and self.measured.wall_s > 0
        return self.measured.tokens / self.measured.wall_s if known else 300.0

    def share_left(self) -> float:
        """Return the share of the budget that is left, 1.0 to 0.0, of whichever limit is nearer."""
        shares = [1.0]
        if self.tokens is not None:
            shares.append(1 - self.used.tokens / self.tokens)
        if self.minutes is not None:
            shares.append(1 - self.spent_s / (60 * self.minutes))
        return max(0.0, min(shares))

    def affords(self, tokens: float, reserved_tokens: float) -> bool:
        """Whether an action fits beside what is kept back for the final evaluation."""
        needed = tokens + FINAL_MARGIN * reserved_tokens
        if self.tokens is not None and self.used.tokens + needed > self.tokens:
            return False
        if self.minutes is None:
            return True
        return self.spent_s + needed / self.tokens_per_s + START_UP_S <= 60 * self.minutes
