"""One run with a fault, resumed until it ends, and what a person sees of it: for bench/faults.py."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.common import ROOT, Json
from bench.driven import DrivenRun, damaged_files, outcome

BROKEN = ROOT / "bench" / "broken"
MOST_RESUMES = 6
MOST_SECONDS = 900
EXPECTED = ("error:", "is done again", "was refused:", "damaged,", "changed, and accepted", "rebuild")
"""Words of a line that tells a person of a fault."""


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    seen: str
    lost: list[str]
    """Finished work that is gone or was done twice, and files that cannot be read. Must be empty."""
    differs: list[str]
    """Parts of the outcome that are not those of the undisturbed run."""
    ok: bool
    wall_s: float


class FaultyRun(DrivenRun):
    """Starts and resumes a run by hand, each time with or without a fault."""

    def __init__(self, options: Json, snapshot: Path | None = None) -> None:
        """Begin anew, or at a snapshot (see `keep`), which is put back where it was taken."""
        super().__init__(options)
        if snapshot is not None:
            shutil.rmtree(self.runs_dir)
            self.runs_dir = Path((snapshot / "place").read_text())
            shutil.rmtree(self.runs_dir, ignore_errors=True)
            shutil.copytree(snapshot / "runs", self.runs_dir)
            self.log = self.runs_dir / "said.log"
            self.remember_finished()
        self.first_seq = self._last_seq()
        self.said: list[str] = []
        """What a person was told of the fault."""
        self.began = time.monotonic()

    def go(
        self,
        command: str = "",
        fault: str = "",
        file_bytes: int | None = None,
        until: Callable[[], bool] | None = None,
        options: tuple[str, ...] = (),
        meanwhile: Callable[[], bool] | None = None,
    ) -> int:
        """Start or resume with a fault (see bench/broken) and wait for its end; returns the exit code.

        file_bytes: no file may grow larger (a disk that is full); until: kill agent and worker once this holds;
        meanwhile: called all the time until it is done (returns True).
        """
        command = command or ("resume" if self.run_dir else "start")
        flags = [part for name, value in self.options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        if command == "resume":
            flags = ["--runs-dir", str(self.runs_dir), *options]
        elif command == "doctor":
            assert self.run_dir is not None
            flags = [self.run_dir.name, "--rebuild", "--runs-dir", str(self.runs_dir)]

        def limit() -> None:
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        broken = {"AUTODIDACT_BENCH_FAULT": fault, "PYTHONPATH": str(BROKEN)} if fault else {}
        with self.log.open("a+") as log:
            place = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "run_agent.py"), command, "--json", *flags],
                cwd=ROOT, stdout=log, stderr=log, preexec_fn=limit, env=os.environ | {"HF_HUB_OFFLINE": "1"} | broken,
            )  # fmt: skip
            ends = time.monotonic() + MOST_SECONDS
            while self.process.poll() is None and not (until and until()):
                if time.monotonic() > ends:
                    self.process.kill()
                    raise SystemExit(f"the run in {self.runs_dir} hangs")
                meanwhile = None if meanwhile and meanwhile() else meanwhile
                time.sleep(0.02)
            if self.process.poll() is None:
                self._kill_all()
            code = self.process.wait()
            log.seek(place)
            said = re.sub(r":\n *", ": ", log.read()).splitlines()  # what is told below a line belongs to it
            lines = [line.strip() for line in said if any(word in line for word in EXPECTED) and line[0] not in "{["]
        self.said += lines
        self.remember_finished()
        return code

    def to_the_end(self, fault: str = "") -> None:
        """Go on until the run has ended."""
        for _ in range(MOST_RESUMES):
            if self._ended():
                return
            self.go(fault=fault)
        if not self._ended():
            self.problems.append(f"the run does not end after {MOST_RESUMES} resumes")

    def started(self, step: int) -> bool:
        """Whether the tool of a step was started since this object was made."""
        return self._started(step, self.first_seq)

    def keep(self, folder: Path) -> Path:
        """Keep a copy of the folder as it is now, with the times of its files; returns it."""
        shutil.copytree(self.runs_dir, folder / "runs")
        (folder / "place").write_text(str(self.runs_dir))
        return folder

    def parts(self) -> dict[str, psutil.Process]:
        """Return the processes of the run by what they are."""
        return self._parts()

    def resumed(self) -> bool:
        """Whether the run went on since this object was made."""
        return any(event["seq"] > self.first_seq and event["kind"] == "run_resumed" for event in self._events())

    def row(
        self, fault: str, reference: Json, parts: tuple[str, ...] | None = None, needs: str = "", fault_after: str = ""
    ) -> Row:
        """Go on to the end, compare with the undisturbed run and remove the folder when all is well.

        parts: what must be the same (None = everything); needs: words that must have been said.
        """
        self.to_the_end(fault_after)
        assert self.run_dir is not None
        found = outcome(self.run_dir)
        differs = [part for part in reference if found[part] != reference[part]]
        lost = [*self.problems, *damaged_files(self.run_dir)]
        told = [line for line in self.said if needs in line and (needs or "was refused:" not in line)]
        seen = (told or self._noted() or [""])[0]
        wrong = [part for part in differs if parts is None or part in parts]
        ok = not lost and not wrong and needs in seen and (bool(seen) or not needs)
        wall_s = round(time.monotonic() - self.began, 1)
        if ok:
            shutil.rmtree(self.runs_dir)
        else:
            seen = f"{seen} [{shutil.move(self.runs_dir, f'{self.runs_dir}-{fault.replace(chr(32), chr(45))}')}]"
        return Row(fault, seen or "nothing: the run goes on", lost, differs, ok, wall_s)

    def _noted(self) -> list[str]:
        """Return what the worker's log says of a repair."""
        assert self.run_dir is not None
        lines = (self.run_dir / "worker.log").read_text().splitlines()
        return [f"in worker.log: {line}" for line in lines if "made again" in line]

    def _kill_all(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.kill()


def shown(row: Row) -> str:
    """Return the row of the table."""
    seen = row.seen.replace("|", "/")
    seen = seen if len(seen) <= 220 else f"{seen[:220]}..."
    same = "yes" if not row.differs else f"differs in {', '.join(row.differs)}"
    lost = "; ".join(row.lost) or "nothing"
    return f"| {row.fault} | {seen} | {lost} | {same} | {row.wall_s:.0f} | {'ok' if row.ok else 'NOT OK'} |"
