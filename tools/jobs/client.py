"""The agent's side of the jobs: starts the worker, hands it jobs, tells progress, restarts it when it dies."""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory.records import read_json, write_json
from tools.contract import ToolError
from tools.jobs.job import MOST_DIVISION, JobSpec, Json, Usage
from tools.jobs.machine import num_memory_kills, started_ticks, tree_cpu_s

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER_FOLDERS = ("jobs", "data", "models", "policies", "evals", "lessons", "memory", "tmp")
"""Made before the worker starts: it can be let into what exists only."""
MAX_WORKER_DEATHS = 2
"""How often one job may take the worker down before the run stops (resumable); with too little memory it is smaller
batches that are tried."""
ORPHAN_S = 5.0
"""A worker whose agent was killed ends by itself; after so many seconds it is ended."""

LEAST_CPU_SHARE = 0.02
"""Of one core: a process that computes less does nothing but wait."""

ProgressListener = Callable[[str, int, int, dict[str, float]], None]
"""Called with (function, done, total, metrics) while a job runs."""


class JobFailedError(RuntimeError):
    """A job cannot be finished; the run stops and can be resumed."""


class Heart:
    """When a process last gave a sign of life: it told progress, or computed (it or what it started)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looked_s = self._last_s = time.monotonic()
        self._cpu_s = tree_cpu_s(pid)

    def beat(self) -> None:
        """Take note of progress."""
        self._last_s = time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since the last sign of life."""
        now = time.monotonic()
        if now - self._looked_s >= 1.0:
            cpu_s = tree_cpu_s(self._pid)
            if cpu_s - self._cpu_s > LEAST_CPU_SHARE * (now - self._looked_s):
                self._last_s = now
            self._looked_s, self._cpu_s = now, cpu_s
        return now - self._last_s


class WorkerClient:
    """Runs jobs in one resident worker process. Use as a context manager: leaving it ends the worker."""

    def __init__(
        self,
        run_dir: Path,
        fingerprint: str,
        on_progress: ProgressListener | None = None,
        writable: tuple[Path, ...] = (),
    ) -> None:
        """Take the run; `writable`: folders outside it that the worker may write to (it can write nowhere else)."""
        self.run_dir = run_dir
        self.writable = writable
        self.fingerprint = fingerprint
        """Hash of the run's configuration and identity: part of every job's key."""
        self.on_progress = on_progress or (lambda *_: None)
        self.on_retry: Callable[[str, str], None] = lambda *_: None
        """Called with (function, why) when a job is done again."""
        self.heartbeat_s = math.inf
        """Seconds after which a job that neither computes nor tells progress is ended and done again."""
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[Json] = queue.Queue()

    def __enter__(self) -> "WorkerClient":
        """Start the worker at once, so that its imports overlap with the agent's."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker; a job under way can be resumed later."""
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None when it does not run."""
        return None if self._process is None else self._process.pid

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Usage]:
        """Run a job, or return what it gave when it was finished before.

        Raises ToolError when the job says that its caller can mend it, JobFailedError otherwise.
        """
        spec = self._spec(function, args, inputs)
        folder = self.folder(function, args, inputs)
        if not (folder / "result.json").exists():
            write_json(folder / "spec.json", spec.to_json())
            self._execute(spec, folder)
        result = read_json(folder / "result.json")
        return result["value"], Usage(**result["usage"])

    def folder(self, function: str, args: Json, inputs: Json | None = None) -> Path:
        """Return the folder of a job, whether or not it exists yet."""
        return self.run_dir / "jobs" / self._spec(function, args, inputs).key

    def _spec(self, function: str, args: Json, inputs: Json | None) -> JobSpec:
        return JobSpec(function, args, {"config": self.fingerprint} | (inputs or {}))

    def stop(self) -> None:
        """End the worker process that this client started."""
        if self._process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _execute(self, spec: JobSpec, folder: Path) -> None:
        deaths, divisor, why = 0, 1, ""
        while deaths < MAX_WORKER_DEATHS and divisor <= MOST_DIVISION:
            if why:
                self.on_retry(spec.function, why)
            process, memory_kills = self._start(), num_memory_kills()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{spec.key} {divisor}\n")
                process.stdin.flush()
            answer = self._wait(process, spec, folder)
            if answer is not None:
                self._settle(answer, spec)
                return
            if process.returncode is None:
                deaths, why = deaths + 1, "no sign of life"
                process.kill()
                process.wait()
            elif process.returncode == -signal.SIGKILL and num_memory_kills() > memory_kills:
                divisor *= 2
                why = f"out of memory, the system ended the worker; done with batches of 1/{divisor} of the size"
            else:
                deaths, why = deaths + 1, f"the worker ended ({process.returncode})"
        how = f"{deaths} times in" if divisor == 1 else f"of too little memory, with batches of 1/{divisor // 2}, in"
        raise JobFailedError(
            f"the worker died {how} {spec.function} (out of memory? hung?); its output is in "
            f"{self.run_dir / 'worker.log'}; choose a smaller model or batch, then resume the run"
        )

    def _settle(self, answer: Json, spec: JobSpec) -> None:
        if answer.get("why"):
            self.on_retry(spec.function, answer["why"])
        if answer["state"] == "tool_error":
            raise ToolError(answer["error"])
        if answer["state"] == "failed":
            raise JobFailedError(f"{spec.function} failed: {answer['error']} (details: {self.run_dir / 'worker.log'})")

    def _wait(self, process: "subprocess.Popen[str]", spec: JobSpec, folder: Path) -> Json | None:
        """Wait for the answer; None when the worker died or hangs (it then still runs). Tells progress meanwhile."""
        progress_path = folder / "progress.json"
        stamp, heart = 0.0, Heart(process.pid)
        while True:
            try:
                answer = self._answers.get(timeout=0.2)
            except queue.Empty:
                answer = None
            if answer is not None and answer["key"] == spec.key:
                return answer
            if process.poll() is not None and self._answers.empty():
                self._process = None
                return None
            if heart.silent_s() > self.heartbeat_s:
                self._process = None
                return None
            if progress_path.exists() and progress_path.stat().st_mtime > stamp:
                stamp = progress_path.stat().st_mtime
                heart.beat()
                report = read_json(progress_path)
                self.on_progress(spec.function, report["done"], report["total"], report["metrics"])

    def _start(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONHASHSEED": "0",
            "TMPDIR": str(self.run_dir / "tmp"),
            # A thread that spins at a barrier starves the one it waits for when another process wants a core: with the
            # default an evaluation took 30 times longer beside one busy process. One that sleeps at once is woken too
            # late for the next operation: a third of this made a training as slow as on one core.
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
            # Large tensors are made and freed all the time: keep their pages instead of asking the kernel each time.
            "MALLOC_MMAP_THRESHOLD_": "4294967296",
            "MALLOC_TRIM_THRESHOLD_": "4294967296",
        }
        for name in WORKER_FOLDERS:
            (self.run_dir / name).mkdir(exist_ok=True)
        _end_orphan(self.run_dir / "worker.lock")
        command = [sys.executable, "-m", "tools.jobs.worker", str(self.run_dir), *map(str, self.writable)]
        # A session of its own: Ctrl-C in the terminal reaches the agent, which ends the worker in order.
        with (self.run_dir / "worker.log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self._read_answers, args=(self._process,), daemon=True).start()
        return self._process

    def _read_answers(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                self._answers.put(json.loads(line))


def _end_orphan(lock: Path) -> None:
    """Wait for the worker of an agent that was killed, and end it when it does not end: it may be stopped or hang.

    The agent holds the run's lock, so a worker that is not its own is nobody's.
    """
    known: Json = {}
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # no worker yet, or killed before it was named
        known = dict(json.loads(lock.read_text()))
    began = time.monotonic()
    while known.get("started") and started_ticks(known["pid"]) == known["started"]:
        silent_s = time.monotonic() - began
        if silent_s > 2 * ORPHAN_S:
            raise JobFailedError(f"the worker of an earlier agent, process {known['pid']}, does not end; end it")
        if silent_s > ORPHAN_S:
            with contextlib.suppress(ProcessLookupError):
                os.kill(known["pid"], signal.SIGKILL)
        time.sleep(0.05)
