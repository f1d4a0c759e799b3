"""Let a run go on from its page: start `run_agent.py resume` or `approve`, in a process that outlives the server.

What it says goes to ui.log in the run's folder, so that a page can show why it refused to go on.
"""

import subprocess
import sys
import threading
from pathlib import Path

from agent.commands import INTERRUPTED, WAITING
from tools.jobs.client import REPOSITORY

MOST_SAID = 4000
"""Characters of the log's end that a page shows."""
AS_MEANT = (None, 0, WAITING, INTERRUPTED)
"""Exit codes after which the run's own files tell all there is to tell; None = it is still at work."""


class Started:
    """The commands that this server has started, one for each run."""

    def __init__(self) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._began: dict[Path, int] = {}
        """The size of each run's trace when its command was started: a run that went on has written to it."""
        self._lock = threading.Lock()

    def start(self, run_dir: Path, command: str, *options: str) -> None:
        """Start a command on a run. Raises ValueError while the one before is still at work, or cannot begin."""
        program = [sys.executable, str(REPOSITORY / "run_agent.py"), command, str(run_dir.resolve()), *options]
        with self._lock:
            if self.is_at_work(run_dir):
                raise ValueError(f"run {run_dir.name} is just going on: its page shows what comes of it")
            began = _trace_bytes(run_dir)
            try:
                with log_file(run_dir).open("wb") as log:
                    process = subprocess.Popen(
                        program, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True,  # the Ctrl-C that ends the server is not meant for the run
                    )  # fmt: skip
            except OSError as error:
                raise ValueError(
                    f"`run_agent.py {command}` could not be started ({error}); nothing was done"
                ) from error
            threading.Thread(target=process.wait, daemon=True).start()  # else it stays a zombie until it is asked about
            self._processes[run_dir], self._began[run_dir] = process, began

    def is_at_work(self, run_dir: Path) -> bool:
        """Whether the command that was started on a run has not ended yet."""
        return run_dir in self._processes and self._processes[run_dir].poll() is None

    def refusal(self, run_dir: Path) -> str:
        """Return what the command said in the end when it failed or refused to go on; "" once the run went on since."""
        process = self._processes.get(run_dir)
        if process is None or process.poll() in AS_MEANT or _trace_bytes(run_dir) > self._began[run_dir]:
            return ""
        return log_file(run_dir).read_text(encoding="utf-8", errors="replace")[-MOST_SAID:].strip()


def _trace_bytes(run_dir: Path) -> int:
    path = run_dir / "events.jsonl"
    return path.stat().st_size if path.exists() else 0


def log_file(run_dir: Path) -> Path:
    """Return where the newest command that a page started on a run writes what it says."""
    return run_dir / "ui.log"
