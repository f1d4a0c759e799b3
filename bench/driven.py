"""One run that is killed and resumed until it ends, and what is checked on it: for bench/kill.py.

A kill is SIGKILL to the agent, the worker, the tool host, or agent and worker, while a tool runs or at any moment.
"""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from agent.state import StopReason
from agent.trace import Event, read_events
from bench.common import ROOT, Json, fresh_folder
from memory.records import read_json, read_jsonl

VICTIMS = {
    "agent": ("agent",),
    "worker": ("tools.jobs.worker",),
    "tool host": ("tools.host",),
    "agent and worker": ("agent", "tools.jobs.worker"),
}
FINISHED = (
    "jobs/*/result.json", "calls/*", "data/*/manifest.json", "models/*/model.json", "evals/*/record.json",
    "lessons/*/lesson.json", "policies/*/policy.json",
)  # fmt: skip
"""What is written once, when a piece of work is finished."""
TICK_S = 0.05
MOST_STARTS = 40
MOST_SILENT_S = 900.0
"""An agent that writes no event for so long hangs."""
EXPECTED_FAILURES = ("the worker died", "the process in which tools run ended")
"""A job or a call that lost its process twice ends the agent; `resume` goes on."""


class Aim(NamedTuple):
    """When and what to kill."""

    victim: str
    step: int | None
    """In this step or, when it is over, a later one; None: any moment."""
    delay_s: float
    """After the step's tool started; at any moment: after the last kill, or the start."""


class Kill(NamedTuple):
    """A kill that was done."""

    victim: str
    under_way: str
    """The tool that ran, or "start-up", "between or after steps", "before the run existed"."""


class DrivenRun:
    """Starts a run, kills it as told, resumes it each time, and looks at what became of it."""

    def __init__(self, options: Json) -> None:
        self.runs_dir = Path(fresh_folder())
        self.options = options | {"runs_dir": str(self.runs_dir)}
        self.kills: list[Kill] = []
        self.resume_s: list[float] = []
        """Seconds from each resume to its first work; a resume that was killed before has none."""
        self.problems: list[str] = []
        self.finished: dict[Path, tuple[int, int]] = {}
        """Inode and write time of what was finished when it was first seen."""
        self.processes: list[psutil.Process] = []
        self.num_starts = 0
        self.log = self.runs_dir / "said.log"
        self._launched_at = 0.0
        self._resumed: tuple[float, int] | None = None
        """When the agent was resumed and the last event before, until its first work is seen."""

    def drive(self, aims: list[Aim]) -> None:
        """Run to the end, with these kills on the way as far as the run lasts."""
        self._launch("start")
        for aim in aims:
            seen = self._last_seq()
            if aim.step is not None and not self._wait(partial(self._started, aim.step, seen)):
                break
            if not self._wait(_passed(aim.delay_s)) or not self._kill(aim.victim):
                break
        self._wait(lambda: False)
        self.remember_finished()

    @property
    def run_dir(self) -> Path | None:
        """Folder of the run, None before it exists."""
        return next((path.parent for path in self.runs_dir.glob("*/run.json")), None)

    def _launch(self, command: str) -> None:
        flags = [part for name, value in self.options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        if command == "resume":
            flags = ["--runs-dir", str(self.runs_dir)]
            self._resumed = (time.time(), self._last_seq())
        self.num_starts += 1
        self._launched_at = time.time()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "run_agent.py"), command, "--json", *flags],
                cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )  # fmt: skip

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition, resuming an agent that ended before the run did; False when the run has ended."""
        while not condition():
            if self.process.poll() is not None:
                self._look_at_exit()
                if self._ended():
                    self._look_for_work()
                    return False
                self._launch("resume" if self.run_dir else "start")
            self._look_for_work()
            self._expect_life()
            time.sleep(TICK_S)
        return True

    def _look_at_exit(self) -> None:
        """Note as a problem when an agent that was not killed ended in a way that a kill does not explain."""
        code, last_line = self.process.returncode, (self.log.read_text().splitlines() or ["nothing said"])[-1]
        explained = code == 1 and any(expected in last_line for expected in EXPECTED_FAILURES)
        if code != 0 and not explained:
            said = json.loads(last_line)["error"] if last_line.startswith("{") else last_line
            self.problems.append(f"exit code {code}: {said}")

    def _expect_life(self) -> None:
        """Raise SystemExit for a run that does not get on."""
        events = self.run_dir and self.run_dir / "events.jsonl"
        heard = events.stat().st_mtime if events and events.exists() else 0.0
        if self.num_starts > MOST_STARTS or time.time() - max(heard, self._launched_at) > MOST_SILENT_S:
            raise SystemExit(f"the run in {self.runs_dir} does not end: {self.num_starts} starts, {self.problems}")

    def _kill(self, victim: str) -> bool:
        """Kill; False when the run ended before the victim was there."""
        names = VICTIMS[victim]
        if not self._wait(lambda: self.process.poll() is None and set(names) <= self._parts().keys()):
            return False
        under_way, parts = self._under_way(), self._parts()
        with suppress(psutil.NoSuchProcess):
            self.processes += [parts["agent"], *parts["agent"].children(recursive=True)]
        killed = False
        for name in random.sample(names, len(names)):
            with suppress(KeyError, psutil.NoSuchProcess):  # it has just ended, maybe because the other one was killed
                parts[name].kill()
                killed = True
        if "agent" in names:
            killed = self.process.wait() == -signal.SIGKILL
        if killed:
            self.kills.append(Kill(victim, under_way))
        self.remember_finished()
        if "agent" in names and killed:
            self._resumed = None
            self._launch("resume" if self.run_dir else "start")
        return True

    def _parts(self) -> dict[str, psutil.Process]:
        """Return the processes of the run by what they are."""
        found: dict[str, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            found["agent"] = agent = psutil.Process(self.process.pid)
            for child in agent.children():
                with suppress(psutil.NoSuchProcess):  # killed before, and not yet waited for
                    found |= {name: child for name in ("tools.jobs.worker", "tools.host") if name in child.cmdline()}
        return found

    def _events(self) -> list[Event]:
        return list(read_events(self.run_dir)) if self.run_dir else []

    def _last_seq(self) -> int:
        return max((event["seq"] for event in self._events()), default=0)

    def _started(self, step: int, seq: int) -> bool:
        return any(
            event["kind"] == "tool_started" and event["seq"] > seq and event["step"] >= step for event in self._events()
        )

    def _under_way(self) -> str:
        if self.run_dir is None:
            return "before the run existed"
        last: Event | None = None
        for event in self._events():
            last = None if event["kind"] in ("run_started", "run_resumed") else event
        if last is None:
            return "start-up"
        if last["kind"] == "tool_started":
            return str(last["tool"])
        return "between or after steps"

    def _specs(self) -> Iterator[Path]:
        assert self.run_dir is not None
        return self.run_dir.glob("jobs/*/spec.json")

    def _ended(self) -> bool:
        report = self.run_dir and self.run_dir / "report.json"
        return bool(report and report.exists() and not StopReason(read_json(report)["stop_reason"]).resumable)

    def _look_for_work(self) -> None:
        """Note when the resumed agent came to work: a step's event, or a job other than loading the model."""
        if self._resumed is None or self.run_dir is None:
            return
        resumed_at, seq = self._resumed
        events = any(event["seq"] > seq and event["kind"] != "run_resumed" for event in self._events())
        if events or any(self._begun_since(path, resumed_at) for path in self._specs()):
            self.resume_s.append(time.time() - resumed_at)
            self._resumed = None

    def _begun_since(self, spec: Path, moment: float) -> bool:
        status = spec.with_name("status.json")
        begun = status.exists() and status.stat().st_mtime > moment
        return begun and not str(read_json(spec)["function"]).endswith(":warm_up")

    def remember_finished(self) -> None:
        """Compare what was finished with what is there now, and remember what is new."""
        if self.run_dir is None:
            return
        for path, stamp in list(self.finished.items()):
            if not path.exists():
                self.problems.append(f"lost: {path.name} of {path.parent.name}")
                del self.finished[path]
            elif _stamp(path) != stamp:
                self.problems.append(f"written again: {path.name} of {path.parent.name}")
        for pattern in FINISHED:
            for path in self.run_dir.glob(pattern):
                if not path.name.startswith("."):
                    self.finished[path] = _stamp(path)

    def orphans(self) -> int:
        """Return how many processes of killed agents still run, a while after the run ended."""
        until = time.monotonic() + 10
        while (alive := sum(map(_is_alive, self.processes))) and time.monotonic() < until:
            time.sleep(TICK_S)
        return alive


def _passed(seconds: float) -> Callable[[], bool]:
    """Return a condition that holds so many seconds from now."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def damaged_files(run_dir: Path) -> list[str]:
    """Return the files of a run that cannot be read. A torn last line of JSON lines is none: readers leave it out.

    Nor is what the run itself found damaged and set aside.
    """
    damaged = []
    for path in sorted(run_dir.rglob("*.json*")):
        if path.suffix in (".tmp", ".damaged") or "checkpoints" in path.parts:
            continue
        try:
            list(read_jsonl(path)) if path.suffix == ".jsonl" else read_json(path)
        except ValueError as error:
            damaged.append(str(error))
    if (run_dir / "state.sqlite").exists():
        with closing(sqlite3.connect(run_dir / "state.sqlite")) as connection:
            if connection.execute("pragma integrity_check").fetchone() != ("ok",):
                damaged.append("state.sqlite")
    return damaged


def outcome(run_dir: Path) -> Json:
    """Return all of a run that must not depend on kills."""
    report = read_json(run_dir / "report.json")
    decided = {event["step"]: event["action"] for event in read_events(run_dir) if event["kind"] == "decided"}
    files = [*run_dir.glob("data/*/*.jsonl"), *run_dir.glob("models/*/*.safetensors"), *run_dir.glob("evals/*/*.jsonl")]
    return {
        "verdicts": list(read_jsonl(run_dir / "referee" / "verdicts.jsonl")),
        "decisions": decided,
        "lessons": [row["text"] for row in read_jsonl(run_dir.parent / "lessons.jsonl")],
        "final scores": report["final"],
        "stop reason": report["stop_reason"],
        "tokens": report["tokens"],
        "files": {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
