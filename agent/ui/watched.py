"""What the pages know of a run: its trace is read once, then only what was appended; events are read where needed.

Of each step a few numbers and its place in the file are kept, so that a page of decisions reads its own events alone.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agent import views
from agent.trace import Event
from agent.trace_facts import TraceFacts
from memory.store import Record, RunStore
from tools.contract import Json


@dataclass(slots=True)
class StepRow:
    """A step in numbers; None where it did not get that far."""

    number: int
    start: int
    """Where its first event begins in events.jsonl, in bytes."""
    end: int = 0
    """Behind its last event, and those of the run itself before the next step."""
    at_s: float = 0.0
    tool: str | None = None
    decided_by: str | None = None
    failed: bool = False
    """A refused call, or an invalid decision before the one that counts."""
    accepted: bool | None = None
    """The referee's verdict in this step."""
    wall_s: float | None = None
    budget_left_percent: int | None = None
    score: tuple[float, float, float] | None = None
    """The champion's search score as the planner saw it, with the ends of its interval."""

    def add(self, event: Event) -> None:
        """Take in an event of this step."""
        match event["kind"]:
            case "observed":
                situation = event["situation"]
                self.at_s, self.budget_left_percent = event["spent_s"], situation["budget_left_percent"]
                score = situation.get("score")
                self.score = (score["score"], *score["ci95"]) if score else None
            case "decided":
                self.tool, self.decided_by = event["action"]["tool"], event["decided_by"]
                self.failed |= bool(event.get("problems"))
            case "tool_finished" | "tool_failed":
                self.wall_s = event["usage"]["wall_s"]
                self.failed |= event["kind"] == "tool_failed"
            case "judged":
                self.accepted = event["accepted"]


class KeptStore(RunStore):
    """A RunStore that reads each manifest once: an artifact that exists never changes."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self._kept: dict[str, Record] = {}

    def _manifest(self, kind: str, folder: str) -> Record | None:
        if folder not in self._kept and (record := super()._manifest(kind, folder)) is not None:
            self._kept[folder] = record
        return self._kept.get(folder)


class WatchedRun:
    """A run, as far as it was read. `refresh` takes in what was appended since."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.store = KeptStore(run_dir)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.facts = TraceFacts()
        self.steps: list[StepRow] = []
        self.last: Event | None = None
        self.read_to = 0
        self._file: int | None = None

    def refresh(self) -> None:
        """Read the events that were appended. Raises ValueError for a damaged line."""
        path = self.run_dir / "events.jsonl"
        with self._lock:
            if not path.exists():
                return
            found = path.stat()
            if found.st_ino != self._file or found.st_size < self.read_to:  # another file stands there now
                self._forget()
                self._file = found.st_ino
            if found.st_size == self.read_to:
                return
            with path.open("rb") as file:
                file.seek(self.read_to)
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # torn by a kill, or being written
                    self._take(_event(path, line, self.read_to), len(line))

    def _take(self, event: Event, num_bytes: int) -> None:
        start, self.read_to = self.read_to, self.read_to + num_bytes
        self.facts.add(event)
        self.last = event
        if event["step"] is not None:
            if not self.steps or self.steps[-1].number != event["step"]:
                self.steps.append(StepRow(event["step"], start))
            self.steps[-1].add(event)
        if self.steps:
            self.steps[-1].end = self.read_to

    def events(self, rows: list[StepRow]) -> Iterator[Event]:
        """Yield the events of steps, read from the file."""
        path = self.run_dir / "events.jsonl"
        with path.open("rb") as file:
            for row in rows:
                file.seek(row.start)
                for line in file.read(row.end - row.start).splitlines():
                    yield _event(path, line, row.start)

    def status(self) -> Json:
        """Return what `status` shows."""
        return views.run_status(self.run_dir, self.facts, self.store)


def _event(path: Path, line: bytes, place: int) -> Event:
    try:
        event: Any = orjson.loads(line)  # a long trace opens in half the time
    except ValueError as error:
        raise ValueError(f"{path} is damaged at byte {place} ({error}); `run_agent.py doctor` says more") from error
    if not isinstance(event, dict):
        raise ValueError(f"{path} holds no event at byte {place}; `run_agent.py doctor` says more")
    return event


class Runs:
    """The runs of a folder, each read once."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._known: dict[str, WatchedRun] = {}

    def get(self, name: str) -> WatchedRun:
        """Return a run as it is now. Raises ValueError for a name that is none of this folder's runs."""
        folders = {path.name: path for path in views.run_folders(self.runs_dir)}
        if name not in folders:
            raise ValueError(f"there is no run {name!r} in {self.runs_dir}")
        run = self._known.setdefault(name, WatchedRun(folders[name]))
        run.refresh()
        return run

    def all(self) -> list[Json]:
        """Return the status of each run, newest first, as `list` does."""
        return views.list_runs(self.runs_dir, lambda path: self.get(path.name).status())
