"""Processes that hang, are stopped or are ended by the system, and what their work costs all the same."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.budget import Budget
from agent.metering import MeteredJobs
from memory.records import read_json, write_json
from tools.contract import Json, ToolError
from tools.jobs.client import Heart, JobFailedError, WorkerClient
from tools.jobs.job import MOST_DIVISION, Job, Usage
from tools.jobs.machine import started_ticks
from tools.jobs.worker import Resident, _serve

REPO = Path(__file__).resolve().parents[1]


def test_a_heart_beats_while_a_process_computes() -> None:
    busy, idle = (
        subprocess.Popen([sys.executable, "-c", code]) for code in ("while True: pass", "import time; time.sleep(99)")
    )
    try:
        time.sleep(1.5)
        hearts = [Heart(process.pid) for process in (busy, idle)]
        silent = [0.0, 0.0]
        for _ in range(100):
            time.sleep(0.3)
            silent = [heart.silent_s() for heart in hearts]
            if silent[1] > 5.0 and silent[0] < silent[1]:
                break
        assert silent[0] < silent[1]
        hearts[1].beat()
        assert hearts[1].silent_s() < silent[1], "progress is a sign of life too"
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()


def asleep(job: Job) -> Json:
    """Hang in the first attempt, or in each one when told so."""
    mark = job.folder / "tried"
    if (job.folder / "always").exists() or not mark.exists():
        mark.touch()
        time.sleep(999)
    return {"awake": True}


@pytest.fixture
def served_dir(tmp_path: Path) -> Path:
    """A run whose worker may read these tests."""
    settings = {"model_dir": ".", "embedder_dir": ".", "readable": [str(REPO)], "closed": []}
    write_json(tmp_path / "worker.json", settings)
    return tmp_path


@pytest.mark.parametrize("always", [False, True])
def test_a_job_that_hangs_is_ended_and_done_again(
    served_dir: Path, always: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = itertools.count()  # of other processes
    monkeypatch.setattr("tools.jobs.client.num_memory_kills", lambda: next(kills))
    told: list[tuple[str, str]] = []
    with WorkerClient(served_dir, "made up") as client:
        client.on_retry = lambda function, why: told.append((function, why))
        client.heartbeat_s = 4.0
        folder = client.folder("tests.test_hanging:asleep", {})
        folder.mkdir(parents=True)
        if always:
            (folder / "always").touch()
            with pytest.raises(JobFailedError, match="died 2 times"):
                client.run("tests.test_hanging:asleep", {})
        else:
            assert client.run("tests.test_hanging:asleep", {})[0] == {"awake": True}
    assert told == [("tests.test_hanging:asleep", "no sign of life")]


def greedy(job: Job, needs: int) -> Json:
    """Be ended by the system, as a process that wants too much memory, until batches are cut into so many parts."""
    if job.resident.batch_divisor < needs:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"done": True}


@pytest.mark.parametrize("needs", [2, MOST_DIVISION, 2 * MOST_DIVISION])
def test_a_worker_that_the_system_ended_for_its_memory_goes_on_with_smaller_batches(
    served_dir: Path, needs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = itertools.count()
    monkeypatch.setattr("tools.jobs.client.num_memory_kills", lambda: next(kills))
    told: list[str] = []
    with WorkerClient(served_dir, "made up") as client:
        client.on_retry = lambda _, why: told.append(why)
        if needs > MOST_DIVISION:
            with pytest.raises(JobFailedError, match="smaller model"):
                client.run("tests.test_hanging:greedy", {"needs": needs})
        else:
            assert client.run("tests.test_hanging:greedy", {"needs": needs})[0] == {"done": True}
            folder = client.folder("tests.test_hanging:greedy", {"needs": needs})
            assert read_json(folder / "result.json")["batch_divisor"] == needs
    parts = [why.split("1/")[1][0] for why in told[:3]]
    assert parts == ["2", "4", "8"][: len(parts)] and len(parts) == min(3, needs.bit_length() - 1)


def test_a_worker_killed_by_hand_is_done_again_with_whole_batches(served_dir: Path) -> None:
    told: list[str] = []
    with WorkerClient(served_dir, "made up") as client, pytest.raises(JobFailedError, match="died 2 times"):
        client.on_retry = lambda _, why: told.append(why)
        client.run("tests.test_hanging:greedy", {"needs": 2})
    assert told == ["the worker ended (-9)"]


def test_a_stopped_worker_of_a_killed_agent_is_ended(served_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.jobs.client.ORPHAN_S", 0.2)
    with WorkerClient(served_dir, "made up") as orphaned:
        orphaned.run("tests.test_hanging:greedy", {"needs": 1})
        assert orphaned.pid is not None
        os.kill(orphaned.pid, signal.SIGSTOP)
        with WorkerClient(served_dir, "made up again") as client:
            client.heartbeat_s = 60.0
            assert client.run("tests.test_hanging:greedy", {"needs": 1})[0] == {"done": True}
        assert started_ticks(orphaned.pid) is None


@pytest.mark.parametrize("known", [{"pid": os.getpid(), "started": 1}, {"pid": 2**22 + 1, "started": None}, None])
def test_a_worker_that_is_gone_holds_up_nobody(served_dir: Path, known: Json | None) -> None:
    write_json(served_dir / "worker.lock", known)  # None: a damaged file
    with WorkerClient(served_dir, "made up") as client:
        assert client.run("tests.test_hanging:greedy", {"needs": 1})[0] == {"done": True}


@pytest.mark.parametrize("state", ["tool_error", "failed"])
def test_what_a_refused_or_killed_job_cost_is_counted_once(served_dir: Path, state: str) -> None:
    folder = served_dir / "jobs" / "costly"
    cost = Usage(60.0, 90.0, 1000, 0.0, 0, 0, 400, 200)
    write_json(folder / "spec.json", {"function": "tools.optimize.sft_worker:train", "args": {}, "inputs": {}})
    write_json(folder / "status.json", {"state": state, "attempts": 1, "spent": cost._asdict()})
    budget = Budget(10.0, None)
    client = WorkerClient(served_dir, "made up")
    jobs = MeteredJobs(client, budget)
    assert (budget.used.cpu_s, budget.used.tokens, budget.used.teacher_input_tokens) == (90.0, 1000, 400)
    whole = cost._replace(wall_s=100.0, cpu_s=150.0, tokens=1500)
    write_json(folder / "result.json", {"value": {}, "usage": whole._asdict()})
    jobs._count(folder)
    jobs._count(folder)
    assert budget.used == whole
    assert budget.tokens_per_s("training") == budget.tokens_per_s(), "the rest of an attempt measures no speed"


def refusing(job: Job) -> None:
    """Read and then refuse."""
    job.resident.trained_tokens += 77
    raise ToolError("no")


def test_a_job_that_is_refused_says_what_it_spent(served_dir: Path) -> None:
    folder = served_dir / "jobs" / "refused"
    write_json(folder / "spec.json", {"function": "tests.test_hanging:refusing", "args": {}, "inputs": {}})
    resident = Resident(served_dir)
    for _ in range(2):  # done again it costs its tokens once
        assert _serve(folder, resident)["state"] == "tool_error"
        status = read_json(folder / "status.json")
        assert (status["state"], status["spent"]["tokens"]) == ("tool_error", 77)
