"""`run_agent.py stop` finds the agent of a run and nothing else (whole runs: test_run.py)."""

import fcntl
import os
import signal
from pathlib import Path

import psutil
import pytest

from agent.stopping import agent_file, agent_of, announce
from memory.records import read_json, write_json
from run_agent import main


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that this process announced to work on."""
    folder = tmp_path / "20260101-120000"
    write_json(folder / "run.json", {"config": {}, "format": 1})
    (folder / "run.lock").touch()
    announce(folder)
    return folder


def test_the_agent_is_the_process_that_holds_the_lock_and_started_then(run_dir: Path) -> None:
    assert agent_of(run_dir) is None, "nobody holds the lock: the file was left behind by a kill"
    with (run_dir / "run.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert agent_of(run_dir) == psutil.Process()
        told = read_json(agent_file(run_dir))
        write_json(agent_file(run_dir), told | {"started": told["started"] - 60})
        assert agent_of(run_dir) is None, "another process with a number that was used before"
        write_json(agent_file(run_dir), told | {"pid": 2**22 + 1})
        assert agent_of(run_dir) is None
        agent_file(run_dir).unlink()
        assert agent_of(run_dir) is None, "it is just starting or ending"


def test_stop_signals_nobody_else(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: got.append(number))
    try:
        told = read_json(agent_file(run_dir))
        write_json(agent_file(run_dir), {"pid": os.getpid(), "started": told["started"] - 60})
        with (run_dir / "run.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for argv in (["stop"], ["stop", run_dir.name, "--now"]):
                assert main([*argv, "--runs-dir", str(run_dir.parent)]) == 2
                assert "no agent is at work" in capsys.readouterr().err
        assert got == []
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
