"""Which events of a trace to look at: of a step, of a tool, of a kind, from some time on, where something failed.

Reads as it goes: of a trace of any length, one step at a time is held in memory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.config import unknown
from agent.trace import Event, read_events

KINDS = (
    "run_started", "run_resumed", "observed", "decided", "tool_started", "tool_finished", "tool_failed", "judged",
    "changes_accepted", "freed", "retried", "mended", "collapsed", "plateau",
    "judge_checked", "final", "run_stopped", "answered", "forked",
)  # fmt: skip
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Filter:
    """What to look at. Step, tool and failed choose whole steps, kinds and since choose events within them.

    Of a trace that still grows each event is looked at alone, by all of them (`takes_alone`).
    """

    step: int | None = None
    """This step, with what happened to the run before the next one; None = all."""
    tool: str | None = None
    """Steps that decided for this tool or called it; None = all."""
    failed: bool = False
    """Steps with a failure (see `failure`)."""
    kinds: tuple[str, ...] = ()
    """Events of these kinds; () = all."""
    since: str = ""
    """Events from this time on, written as `parse_since` does; "" = all."""

    def takes(self, event: Event) -> bool:
        """Whether kind and time of an event are wanted."""
        return (not self.kinds or event["kind"] in self.kinds) and bool(event["ts"] >= self.since)

    def takes_alone(self, event: Event) -> bool:
        """Whether an event is wanted by itself: of the step, of a call of the tool, telling of a failure."""
        return (
            self.takes(event)
            and self.step in (None, event["step"])
            and self.tool in (None, tool_of(event))
            and (not self.failed or failure(event))
        )

    def takes_step(self, step: int, events: list[Event]) -> bool:
        """Whether a step with these events is wanted."""
        return (
            self.step in (None, step)
            and (self.tool is None or any(tool_of(event) == self.tool for event in events))
            and (not self.failed or any(map(failure, events)))
        )


def parse_since(text: str, now: datetime | None = None) -> str:
    """Return the time meant by "90s", "10m", "2h", "1d" (ago) or an ISO time (UTC where it names no zone).

    It is written as events write theirs, so that the two compare as strings. Raises ValueError for anything else.
    """
    try:
        if ago := re.fullmatch(r"(\d+)([smhd])", text):
            since = (now or datetime.now(UTC)) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        else:
            since = datetime.fromisoformat(text)
            since = since if since.tzinfo else since.replace(tzinfo=UTC)
        return since.astimezone(UTC).isoformat(timespec="milliseconds")
    except OverflowError:
        raise ValueError(f"--since {text!r} is before the year 1 or after 9999; give a time of the run") from None
    except ValueError:
        raise ValueError(f"--since {text!r}: give 90s, 10m, 2h, 1d or a time like 2026-01-31T14:05") from None


def tool_of(event: Event) -> str | None:
    """Return the tool that an event decides for or calls, None for other events."""
    tool: str | None = event.get("tool") or event.get("action", {}).get("tool")
    return tool


def menu_of(event: Event) -> list[dict[str, Any]]:
    """Return {"tool", "arguments", "outcome"} of each legal action of an `observed` event; [] for other events.

    Runs of earlier versions recorded the names of the tools alone.
    """
    names_alone = {"arguments": {}, "outcome": ""}
    return [row if isinstance(row, dict) else {"tool": row} | names_alone for row in event.get("menu", ())]


def failure(event: Event) -> bool:
    """Whether an event tells of a refused call, an invalid answer of the planner, a collapse, an error or a repair.

    A rejected candidate is none: saying no is the referee's work.
    """
    kinds = ("tool_failed", "collapsed", "retried", "mended")
    return event["kind"] in kinds or bool(event.get("problems") or event.get("error"))


def steps(events: Iterable[Event]) -> Iterator[tuple[int, list[Event]]]:
    """Yield (step, its events) in order; events of the run itself stand with the step before them, at first 0."""
    number: int = 0
    block: list[Event] = []
    for event in events:
        if event["step"] not in (None, number):
            if block:
                yield number, block
            number, block = event["step"], []
        block.append(event)
    if block:
        yield number, block


def select_steps(run_dir: Path, wanted: Filter) -> Iterator[tuple[int, list[Event]]]:
    """Yield the wanted steps with their wanted events. Raises ValueError for a step or tool that the run has not."""
    numbers: list[int] = []
    tools: set[str] = set()
    for number, events in steps(read_events(run_dir)):
        if number:
            numbers = [*numbers[:1], number]
        tools |= {tool for event in events for tool in (tool_of(event), *_legal_tools(event)) if tool}
        if wanted.takes_step(number, events):
            ours = [event for event in events if wanted.takes(event)]
            if ours:
                yield number, ours
    if wanted.step is not None and not (numbers and numbers[0] <= wanted.step <= numbers[-1]):
        known = f"steps {numbers[0]} to {numbers[-1]}" if numbers else "no step yet"
        raise ValueError(f"run {run_dir.name} has no step {wanted.step}; it has {known}")
    if wanted.tool is not None and wanted.tool not in tools:
        raise ValueError(f"run {run_dir.name}: {unknown('tool', wanted.tool, sorted(tools))}")


def _legal_tools(event: Event) -> list[str]:
    return [row["tool"] for row in menu_of(event)]


def select_events(run_dir: Path, wanted: Filter) -> Iterator[Event]:
    """Yield the wanted events of a run, oldest first. Raises ValueError as `select_steps` does."""
    for _, events in select_steps(run_dir, wanted):
        yield from events
