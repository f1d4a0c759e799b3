"""The run's clock, <run>/clock.json {"spent_s", "time_s" (by kind of work), "share_left" (of the budget)}.

It is written every few seconds while the run works.

The trace tells the time only when something happens, and a training may take hours: a run that was killed in one would
get them back. What a fork's parent spent stands in the fork's table as one row.
"""

from collections.abc import Sequence
from pathlib import Path

from agent.trace import Event
from memory.records import read_json, write_json
from tools.contract import Json

PRODUCTIVE = ("generation", "training", "evaluation")
"""Kinds of work that are the point of a run; everything else is overhead."""
PARENT, UNTOLD = "the parent, before the fork", "earlier, not told by kind"
"""Rows for the time that this run did not spend itself, and for that of a run whose clock was not kept."""
REST = "bookkeeping and idle"


def read_clock(run_dir: Path) -> Json:
    """Return {"spent_s": wall seconds of the run, "time_s": {kind of work: wall seconds}}; without a file 0 and {}."""
    path = run_dir / "clock.json"
    clock: Json = read_json(path) if path.exists() else {"spent_s": 0.0, "time_s": {}}
    return clock


def write_clock(run_dir: Path, spent_s: float, time_s: dict[str, float], share_left: float = 1.0) -> None:
    """Write it, atomically. share_left: of the budget, between 0 and 1."""
    clock = {"spent_s": round(spent_s, 2), "time_s": time_s, "share_left": round(share_left, 4)}
    write_json(run_dir / "clock.json", clock)


def earlier_clock(run_dir: Path, events: Sequence[Event]) -> Json:
    """Return the clock at which a run goes on: the latest time that file or trace tell, and what it went into."""
    clock = read_clock(run_dir)
    told_s = max((event.get("spent_s", 0.0) for event in events), default=0.0)
    if (run_dir / "clock.json").exists() or not told_s:
        return clock | {"spent_s": max(clock["spent_s"], told_s)}
    row = PARENT if any(event["kind"] == "forked" for event in events) else UNTOLD
    return {"spent_s": told_s, "time_s": {row: told_s}}


def time_table(time_s: dict[str, float], spent_s: float) -> tuple[dict[str, float], float]:
    """Return all of a run's seconds by kind of work, the most first, and the share of overhead in its own."""
    table = dict(sorted(time_s.items(), key=lambda pair: -pair[1]))
    table[REST] = max(0.0, spent_s - sum(time_s.values()))
    own_s = spent_s - sum(table.get(row, 0.0) for row in (PARENT, UNTOLD))
    productive_s = sum(table.get(kind, 0.0) for kind in PRODUCTIVE)
    return table, 1 - productive_s / max(own_s, 1e-9)
