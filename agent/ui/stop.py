"""Stop a live run from its page, as `run_agent.py stop` does: the step is finished first."""

import signal
from contextlib import suppress
from pathlib import Path

import psutil

from agent.stopping import agent_of


def stop(run_dir: Path) -> None:
    """Ask the agent of a run to stop after its step. Raises ValueError when none is found at work on it."""
    agent = agent_of(run_dir)
    if agent is None:
        raise ValueError(f"no process is found that works on run {run_dir.name}; press Ctrl-C where it was started")
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        agent.send_signal(signal.SIGTERM)
