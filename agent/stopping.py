"""`run_agent.py stop`: let the agent that works on a run end after its step, or at once; `resume` goes on.

<run>/agent.json says which process that is, while it can be stopped in order: SIGTERM (as the first Ctrl-C) finishes
the step, SIGUSR1 ends it now (what is under way is repeated or goes on from its last checkpoint).
"""

import os
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from agent import views
from agent.commands import Outcome
from memory.records import read_json, write_json

if TYPE_CHECKING:
    from agent.console import Console

AT_ONCE = signal.SIGUSR1
SAME_START_S = 1.0
"""The time a process started is told to the hundredth, and moves a little when the clock is set."""


def agent_file(run_dir: Path) -> Path:
    """Return the file that names the process working on a run."""
    return run_dir / "agent.json"


def announce(run_dir: Path) -> None:
    """Write down that this process works on the run and can be stopped."""
    write_json(agent_file(run_dir), {"pid": os.getpid(), "started": psutil.Process().create_time()})


@contextmanager
def interruptible(run_dir: Path, stop_requested: list[bool], console: "Console") -> Iterator[None]:
    """First Ctrl-C: finish the step, then stop. Second: stop now; the step is repeated or resumed later."""

    def at_once(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    def on_signal(signum: int, frame: object) -> None:
        if stop_requested:
            raise KeyboardInterrupt
        stop_requested.append(True)
        console.say("stopping after this step (Ctrl-C again: stop now; nothing that is finished is lost)")

    handlers = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal, AT_ONCE: at_once}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    announce(run_dir)
    try:
        yield
    finally:
        agent_file(run_dir).unlink(missing_ok=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


def agent_of(run_dir: Path) -> psutil.Process | None:
    """Return the process that works on a run, None when there is none. Another one with its old number is none."""
    if not views.is_locked(run_dir):
        return None
    try:
        told = read_json(agent_file(run_dir))
        process = psutil.Process(told["pid"])
        return process if abs(process.create_time() - told["started"]) < SAME_START_S else None
    except (FileNotFoundError, psutil.NoSuchProcess):  # it ended between two looks
        return None


def stop(args: Namespace) -> Outcome:
    """Stop the agent of a run (by default the newest one at work) and wait until it has ended."""
    runs_dir = Path(args.runs_dir)
    runs = views.run_folders(runs_dir) if args.run is None else [views.find_run(runs_dir, args.run)]
    working = [(path, agent) for path in runs if (agent := agent_of(path)) is not None]
    if not working:
        where = f"run {args.run}" if args.run is not None else f"any run in {runs_dir}"
        raise ValueError(f"no agent is at work on {where}, or it is just starting; `run_agent.py list` shows the runs")
    run_dir, agent = working[0]
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        agent.send_signal(AT_ONCE if args.now else signal.SIGTERM)
    if not args.now:
        from agent.console import Console

        Console().say(f"run {run_dir.name} ends after its step; waiting for it (`stop {run_dir.name} --now`: at once)")
    while views.is_locked(run_dir):  # until the process is gone, whether or not its parent has noticed
        time.sleep(0.1)
    state = views.run_state(run_dir)
    more = f"; `run_agent.py resume {run_dir.name}` goes on" if state in views.RESUMABLE else ""
    return Outcome([f"run {run_dir.name} is {state}{more}"], {"run": run_dir.name, "state": state})
