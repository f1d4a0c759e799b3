"""Stop a live run from its page: SIGTERM to its agent, as the first Ctrl-C does; the step is finished first."""

import os
import signal
from pathlib import Path

from agent import views

LOCKS = Path("/proc/locks")
"""Linux's table of file locks, a line each: `7: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`."""


def stop(run_dir: Path) -> None:
    """Ask the agent of a run to stop after its step. Raises ValueError when none is found at work on it."""
    pid = agent_pid(run_dir)
    if pid is None:
        raise ValueError(f"no process is found that works on run {run_dir.name}; press Ctrl-C where it was started")
    os.kill(pid, signal.SIGTERM)


def agent_pid(run_dir: Path) -> int | None:
    """Return the process that holds the lock of a run; None when there is none, or the system does not tell."""
    if not views.is_locked(run_dir) or not LOCKS.exists():
        return None
    lock = run_dir / "run.lock"
    for line in LOCKS.read_text().splitlines():
        kind, _, mode, pid, place = line.split()[1:6]
        ours = (kind, mode) == ("FLOCK", "WRITE") and place.endswith(f":{lock.stat().st_ino}")
        if ours and pid.isdigit() and _has_open(int(pid), lock):  # an inode's number is that of one disk only
            return int(pid)
    return None


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(link.exists() and link.samefile(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has just ended, or belongs to another user
        return False
