"""What a run may spend and has spent: time, tokens, processors, money, disk. The final evaluation is always kept back.

One table of limits, one of what is spent, and one of what a number of tokens will take, all by the same names, UNITS.
An action's size is told in tokens; what they take of everything else is projected from what the same kind of work took.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from agent.config import RunConfig
from agent.disk import folder_bytes
from agent.prices import Prices, load_prices, paid_models
from agent.trace import Event
from tools.jobs.job import NO_USAGE, Usage

FINAL_MARGIN = 1.25
"""The final evaluation is projected from the baseline's cost; a busy machine may need more."""
START_UP_S = 4.0
"""Wall seconds kept back for writing the report and ending the worker."""
FINAL_GIB = 0.01
"""Kept back for what the final evaluation, the report and the trace write."""
UNMEASURED = Usage(1.0, 1.0, 300)
"""How quick a machine is taken to be before anything was measured."""
LOOK_S = 1.0
"""The folder's size is not looked up more often."""
UNITS = {
    "seconds": "{:,.0f} s",
    "tokens": "{:,.0f} tokens",
    "cpu_seconds": "{:,.0f} CPU seconds",
    "gpu_seconds": "{:,.0f} GPU seconds",
    "usd": "{:,.4f} USD",
    "gib": "{:,.3f} GiB",
}
"""What is limited, and how an amount of it is written."""


def amount_text(unit: str, amount: float) -> str:
    """Return an amount of one of the UNITS in words."""
    return UNITS[unit].format(max(0.0, amount))


class Shortage(NamedTuple):
    """Why an action cannot be afforded: amounts of one of the UNITS."""

    unit: str
    needed: float
    kept: float
    """For the final evaluation."""
    left: float

    def text(self) -> str:
        """Return it in words: what is needed, kept back and left."""
        kept = f" beside {amount_text(self.unit, self.kept)} for the final evaluation" if self.kept else ""
        return f"about {amount_text(self.unit, self.needed)}{kept}, and {amount_text(self.unit, self.left)} are left"


@dataclass
class Budget:
    """Limits of a run (None = no limit) and what is spent. One clock: spent_s continues after a resume."""

    minutes: float | None
    tokens: int | None
    earlier_s: float = 0.0
    """Wall seconds of the run before this process (its time between stop and resume not counted)."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Limits of the other UNITS."""
    prices: Prices = field(default_factory=Prices)
    models: Mapping[str, str] = field(default_factory=dict)
    """Names in the prices of the models behind endpoints, by "planner", "engine" and "teacher"."""
    folder: Path | None = None
    """Of the run, for its size; None = not looked up."""

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._paused: float | None = None
        self.used = NO_USAGE
        self.decisions: list[dict[str, float]] = []
        """What each decision cost, {"tokens", "usd"}, beyond what jobs cost: 0 unless an API planner made it."""
        self._measured: dict[str, Usage] = {}
        self._size = (float("-inf"), 0.0)
        minutes = {} if self.minutes is None else {"seconds": 60 * self.minutes}
        self.limits = minutes | ({} if self.tokens is None else {"tokens": self.tokens}) | dict(self.more)

    @property
    def spent_s(self) -> float:
        """Wall seconds of the run so far."""
        paused = self._paused  # read once: another thread asks for the time, too
        return self.earlier_s + (time.monotonic() if paused is None else paused) - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the wall time of what is inside: a person may think for days."""
        self._paused = began = time.monotonic()
        try:
            yield
        finally:
            self.earlier_s -= time.monotonic() - began
            self._paused = None

    def add(self, usage: Usage, kind: str | None = None) -> None:
        """Count what a job cost; the kind of work (None = overhead) also tells the machine's speed at it."""
        self.used = self.used.plus(usage)
        if kind is not None:
            # Other work asks no teacher: what one will cost is projected from its questions.
            rate = usage._replace(teacher_input_tokens=0, teacher_output_tokens=0)
            self._measured[kind] = self._measured.get(kind, NO_USAGE).plus(rate)

    def add_decision(self, usage: dict[str, float]) -> dict[str, float]:
        """Count what a decision cost and return its usage with cost_usd; an API planner tells its input tokens."""
        num_input = usage.get("input_tokens", 0.0)
        told = usage | {"cost_usd": self._usd("planner", num_input, usage["tokens"] - num_input)}
        self.recall_decision(told)
        return told

    def recall_decision(self, usage: Mapping[str, float]) -> None:
        """Count a decision by its usage in the trace. Without input tokens its tokens are those of a job."""
        tokens = int(usage["tokens"]) if usage.get("input_tokens") else 0
        self.used = self.used.plus(NO_USAGE._replace(tokens=tokens))
        self.decisions.append({"tokens": tokens, "usd": usage.get("cost_usd", 0.0)})

    def amounts(self, usage: Usage) -> dict[str, float]:
        """Return a cost by UNITS, disk left out."""
        usd = self._usd("engine", usage.input_tokens, usage.output_tokens)
        usd += self._usd("teacher", usage.teacher_input_tokens, usage.teacher_output_tokens)
        return {
            "seconds": usage.wall_s,
            "tokens": usage.tokens,
            "cpu_seconds": usage.cpu_s,
            "gpu_seconds": usage.gpu_s,
            "usd": usd + self.prices.machine_per_s * usage.wall_s,
        }

    def spent(self) -> dict[str, float]:
        """Return what is spent by UNITS; the machine costs by the hour whether or not it works."""
        spent = self.amounts(self.used._replace(wall_s=self.spent_s))
        decided_usd = sum(decision["usd"] for decision in self.decisions)
        return spent | {"usd": spent["usd"] + decided_usd, "gib": self._gib()}

    def needed(self, tokens: float, kind: str | None = None) -> dict[str, float]:
        """Return what so many tokens will take, by UNITS, at the measured rates of one kind of work or of all.

        Training takes about twice the time of evaluation for a token.
        """
        rate = self._rate(kind)
        scaled = {unit: amount * tokens / rate.tokens for unit, amount in self.amounts(rate).items()}
        return scaled | {"tokens": tokens}  # exactly: with tokens alone a run repeats

    def tokens_per_s(self, kind: str | None = None) -> float:
        """Return the measured speed, of one kind of work or of all; 300 before anything was measured."""
        rate = self._rate(kind)
        return rate.tokens / rate.wall_s

    def tokens_left(self) -> float | None:
        """Return how many tokens the budget still pays for at the measured rates; None = no limit."""
        spent, rates = self.spent(), self.needed(1)
        left = [(self.limits[unit] - spent[unit]) / rates[unit] for unit in self.limits if rates.get(unit)]
        return max(0.0, min(left)) if left else None

    def share_left(self) -> float:
        """Return the share of the budget that is left, 1.0 to 0.0, of whichever limit is nearest."""
        spent = self.spent()
        return max(0.0, min([1.0, *(1 - spent[unit] / limit for unit, limit in self.limits.items())]))

    def teacher_usd(self, num_questions: int, num_asked: int, expected: tuple[float, float]) -> float:
        """Return what a teacher's answers to questions will cost: as the num_asked earlier ones did.

        expected: the input and output tokens of one, which count while none was asked.
        """
        if num_asked == 0:
            return num_questions * self._usd("teacher", *expected)
        paid = self._usd("teacher", self.used.teacher_input_tokens, self.used.teacher_output_tokens)
        return num_questions * paid / num_asked

    def affords(
        self, tokens: float, reserved_tokens: float, kind: str | None = None, gib: float = 0.0, usd: float = 0.0
    ) -> bool:
        """Whether an action fits beside what is kept back for the final evaluation (see `shortage`)."""
        return self.shortage(tokens, reserved_tokens, kind, gib, usd) is None

    def shortage(
        self, tokens: float, reserved_tokens: float, kind: str | None = None, gib: float = 0.0, usd: float = 0.0
    ) -> Shortage | None:
        """Return the first unit of which an action of this kind (None = several) would take too much; None = none.

        gib: what the action may add to the folder. usd: what it pays a teacher. A decision is expected to cost what
        the earlier ones did.
        """
        spent, action = self.spent(), self.needed(tokens, kind)
        final = self.needed(FINAL_MARGIN * reserved_tokens, "evaluation")
        beside = {"seconds": START_UP_S, "gib": gib + FINAL_GIB}
        for unit, paid in (("usd", usd), ("tokens", 0)):
            beside[unit] = paid + sum(one[unit] for one in self.decisions) / max(1, len(self.decisions))
        for unit, limit in self.limits.items():
            needed, left = action.get(unit, 0.0) + beside.get(unit, 0.0), limit - spent.get(unit, 0.0)
            if needed + final.get(unit, 0.0) > left:
                return Shortage(unit, needed, final.get(unit, 0.0), left)
        return None

    def _usd(self, setting: str, num_input: float, num_output: float) -> float:
        return self.prices.of_tokens(self.models.get(setting, ""), num_input, num_output)

    def _rate(self, kind: str | None) -> Usage:
        every = reduce(Usage.plus, self._measured.values(), NO_USAGE)
        known = (self._measured.get(kind or "", NO_USAGE), every, UNMEASURED)
        return next(usage for usage in known if usage.tokens > 0 and usage.wall_s > 0)

    def _gib(self) -> float:
        if self.folder is None:
            return 0.0
        now = time.monotonic()
        if now - self._size[0] > LOOK_S:
            self._size = now, folder_bytes(self.folder) / 2**30
        return self._size[1]


def check_tokens(config: RunConfig) -> None:
    """Raise ValueError for a token budget that not even the scores fit into."""
    num_scored = 2 * config.search_items + 3 * config.final_items
    if config.budget_tokens is not None and config.budget_tokens < num_scored:
        raise ValueError(
            f"--budget-tokens {config.budget_tokens} is too few: {num_scored} answers are scored in any case, of some "
            "tokens each; the default task needs about 100000 for one training with its verdict"
        )


def open_budget(run_dir: Path, config: RunConfig, earlier_s: float, events: list[Event]) -> Budget:
    """Return the budget of a run, with what its decisions cost by its trace. Raises ValueError for bad prices."""
    limits = {"cpu_seconds": config.budget_cpu_minutes, "gpu_seconds": config.budget_gpu_minutes}
    more = {unit: 60 * minutes for unit, minutes in limits.items() if minutes is not None}
    more |= {"usd": config.budget_usd} if config.budget_usd is not None else {}
    more |= {"gib": config.budget_gib} if config.budget_gib is not None else {}
    budget = Budget(
        config.minutes, config.budget_tokens, earlier_s, more, load_prices(config), paid_models(config),
        None if config.budget_gib is None else run_dir,
    )  # fmt: skip
    for event in events:
        if event["kind"] == "decided":
            budget.recall_decision(event["usage"])
    return budget
