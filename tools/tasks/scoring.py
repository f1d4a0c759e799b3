"""Run a scorer in a bounded child process, so that a hang, a crash or a leak costs one verdict and not the run.

The child is shut off from files and network (see sandbox.py). The time limit of an item begins when its scoring does,
so waiting for a start or for other items counts against none.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tools.tasks.base import Item, Verdict

BATCH_SIZE = 64
MEMORY_BYTES = 4 << 30
START_LIMIT_S = 120.0
_REPO = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_STDERR_KEPT = 4_000


@dataclass
class ScorerErrors:
    """How often the scorer failed ("error" verdicts) and what it said the first time."""

    count: int = 0
    first: str | None = None

    def add(self, message: str) -> None:
        """Count one failure."""
        self.count += 1
        self.first = self.first or message


class ScorerProcess:
    """Context manager around the child process, for one caller at a time. The child starts in the background."""

    def __init__(self, scorer: dict[str, Any], time_limit_s: float = 5.0, memory_bytes: int = MEMORY_BYTES) -> None:
        """Take a task's `scorer`; `time_limit_s` is for one item."""
        self.errors = ScorerErrors()
        self._setup = {"scorer": scorer, "memory_bytes": memory_bytes, "time_limit_s": time_limit_s}
        self._time_limit_s = time_limit_s
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        """Start the child without waiting for it."""
        self._child = _Child(self._setup)
        return self

    def __exit__(self, *exception: object) -> None:
        """End the child."""
        self._drop_child()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None when there is none at the moment."""
        return self._child.pid if self._child else None

    def score(self, pairs: list[tuple[Item, str]]) -> list[Verdict]:
        """Return the verdicts in order.

        An item over the time limit is "timeout"; an item whose scoring raises, ends the child or returns no number from
        0 to 1 is "error" and counted in `errors`. The other items are still scored. Raises ValueError when the scorer
        cannot even start.
        """
        verdicts: list[Verdict] = []
        while len(verdicts) < len(pairs):
            verdicts += self._score_batch(pairs[len(verdicts) : len(verdicts) + BATCH_SIZE])
        return verdicts

    def note(self, pairs: list[tuple[Item, str]], verdicts: list[Verdict]) -> str | None:
        """Return what must stand beside a score of these verdicts: nothing, for they can be verified."""
        return None

    def _score_batch(self, pairs: list[tuple[Item, str]]) -> list[Verdict]:
        """Return one verdict or more: up to the first item that cost the child its life."""
        child = self._ready_child([[item.to_json(), answer] for item, answer in pairs])
        verdicts: list[Verdict] = []
        for _ in pairs:
            try:
                score, kind, message = child.read(self._time_limit_s)
            except TimeoutError:
                self._drop_child()
                return [*verdicts, Verdict(0.0, "timeout")]
            except EOFError as error:
                self._drop_child()
                self.errors.add(f"the scorer's process ended while scoring ({error})")
                return [*verdicts, Verdict(0.0, "error")]
            if message is not None:
                self.errors.add(message)
            verdicts.append(Verdict(score, kind))
        return verdicts

    def _ready_child(self, batch: list[Any]) -> "_Child":
        """Return a child that has been sent the batch; one that died since the last batch is replaced once."""
        for attempt in (1, 2):
            self._child = self._child or _Child(self._setup)
            try:
                self._child.await_ready()
                self._child.send(batch)
                return self._child
            except BrokenPipeError as error:
                self._drop_child()
                if attempt == 2:
                    raise ValueError(f"the scorer {self._setup['scorer']} ends as soon as it has started") from error
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Child:
    """One child process and the reading of its lines with a time limit."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._scorer = setup["scorer"]
        self._process = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-m", "tools.tasks.scoring_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_REPO,
            env=_environment(),
            start_new_session=True,  # Ctrl-C reaches the agent only, and the group holds what the scorer may start
        )
        self.pid = self._process.pid
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin = self._process.stdin
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ, "replies")
        self._selector.register(self._process.stderr, selectors.EVENT_READ, "stderr")
        self._buffer = b""
        self._stderr = b""
        self._lines: list[bytes] = []
        self._ready = False
        with suppress(BrokenPipeError):  # await_ready tells why
            self.send(setup)

    def await_ready(self) -> None:
        """Wait until the scorer is loaded. Raises ValueError with the last line it printed when that fails."""
        if self._ready:
            return
        try:
            self.read(START_LIMIT_S)
        except (EOFError, TimeoutError) as error:
            self.kill()
            raise ValueError(f"the scorer {self._scorer} could not start: {error}") from error
        self._ready = True

    def send(self, value: object) -> None:
        """Write one line. Raises BrokenPipeError when the child has ended."""
        self._stdin.write(json.dumps(value).encode() + b"\n")
        self._stdin.flush()

    def read(self, limit_s: float) -> list[Any]:
        """Return the next line. Raises TimeoutError after `limit_s` without one, EOFError when the child has ended."""
        deadline = time.monotonic() + limit_s
        while not self._lines:
            left_s = deadline - time.monotonic()
            for key, _ in self._selector.select(max(0.0, left_s)):
                self._receive(key)
            # Checked after reading: a reply that is there counts even when this process was held up.
            if left_s <= 0 and not self._lines:
                raise TimeoutError(f"no reply within {limit_s:g} s")
        reply: list[Any] = json.loads(self._lines.pop(0))
        return reply

    def _receive(self, key: selectors.SelectorKey) -> None:
        block = os.read(key.fd, 1 << 16)
        if key.data == "stderr":
            self._stderr = (self._stderr + block)[-_STDERR_KEPT:]
            if not block:
                self._selector.unregister(key.fileobj)
        elif block:
            *lines, self._buffer = (self._buffer + block).split(b"\n")
            self._lines += lines
        else:
            raise EOFError(self._last_words())

    def _last_words(self) -> str:
        """Return how the child ended and the last line it wrote to stderr."""
        os.set_blocking(self._stderr_fd(), False)
        with suppress(BlockingIOError):
            while block := os.read(self._stderr_fd(), 1 << 16):
                self._stderr = (self._stderr + block)[-_STDERR_KEPT:]
        code = self._wait_without_reaping()
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return f"{code}: {lines[-1]}" if lines else code

    def _stderr_fd(self) -> int:
        assert self._process.stderr
        return self._process.stderr.fileno()

    def _wait_without_reaping(self) -> str:
        """Return "exit code 3" or "signal 11"; the process stays a zombie so that `kill` cannot hit a recycled id."""
        for _ in range(100):
            result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if result is not None:
                return f"{'exit code' if result.si_code == os.CLD_EXITED else 'signal'} {result.si_status}"
            time.sleep(0.01)
        return "it closed its output"

    def kill(self) -> None:
        """End the child and what it started, and free the pipes; twice is harmless."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe
            with suppress(BrokenPipeError):  # what was not sent yet
                pipe.close()


def _environment() -> dict[str, str]:
    """Return the child's variables: those python needs, so that no key or token of the agent reaches a scorer."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | one_thread | {"PYTHONPATH": str(_REPO), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
