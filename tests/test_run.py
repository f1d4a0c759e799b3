"""Whole runs through the command line: the loop on a tiny and on the real model, kills, Ctrl-C, a full disk.

The tiny random model never answers right, so its runs are quick and end for a known reason; the real model learns.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.trace import read_events
from memory.records import read_json
from memory.store import RunStore
from tools.engines.models import MODELS_DIR

REPO = Path(__file__).resolve().parents[1]
WORDS = "apple river stone cloud tiger lemon chair piano glass bread"
Flags = list[str]


def write_task(path: Path, question: Callable[[str], str], num_rows: int = 300) -> str:
    """Write a JSONL task of words with a number; returns its spec."""
    words = WORDS.split()
    answers = [f"{words[i % 10]}{i // 10}" for i in range(num_rows)]
    path.write_text("".join(json.dumps({"question": question(text), "answer": text}) + "\n" for text in answers))
    return f"{path}?scorer=exact"


@pytest.fixture
def copy_task(tmp_path: Path) -> str:
    """Say a word again: the default model mostly can when it is shown examples."""
    return write_task(tmp_path / "copy.jsonl", lambda text: f"Say this word again: {text}")


@pytest.fixture
def flags(copy_task: str, tiny_model: Path, tmp_path: Path) -> Flags:
    """Return the flags of a quick run of the tiny model, which ends because nothing is verifiable."""
    sizes = ["--search-items", "20", "--gate-items", "20", "--final-items", "20", "--budget-tokens", "3000000"]
    where = ["--runs-dir", str(tmp_path / "runs"), "--model", str(tiny_model), "--dtype", "float32"]
    return ["--task", copy_task, "--planner", "rules", *sizes, *where, "--json"]


def program(*arguments: str, limit_bytes: int | None = None) -> "subprocess.Popen[str]":
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "run_agent.py", *arguments], cwd=REPO, text=True, preexec_fn=limit,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    """Wait; return exit code, the last line's JSON ({} without one) and what was said."""
    out, said = process.communicate(timeout=600)
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, said


def only_run(tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "runs").iterdir() if path.is_dir())


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, f"the run ended too early: {process.communicate()}"
        time.sleep(0.02)


def finished_jobs(tmp_path: Path) -> dict[str, int]:
    """Return the write time of each finished job's result."""
    return {str(path): path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/jobs/*/result.json")}


def test_a_model_that_never_succeeds_ends_the_run_with_advice(flags: Flags, tmp_path: Path) -> None:
    code, report, said = finish(program("start", *flags))
    assert code == 0, said
    assert report["stop_reason"] == "nothing_verifiable"
    assert "easier setting" in said
    assert report["final"]["n"] == 20
    assert set(report["final"]) >= {"base_zero_shot", "base_few_shot", "champion"}
    assert report["final"]["gain"]["num_fixed"] == report["final"]["gain"]["num_broken"] == 0
    assert "no clear change, estimated +0.0 points" in said
    diagnosis = report["final"]["base_zero_shot"]["diagnosis"]
    assert sum(group["n"] for group in diagnosis["by_difficulty"]) == sum(diagnosis["errors"].values()) == 20
    kinds = [event["kind"] for event in read_events(only_run(tmp_path))]
    assert kinds[0] == "run_started"
    assert kinds[-2:] == ["final", "run_stopped"]


def test_killed_anywhere_it_goes_on_and_repeats_no_finished_job(flags: Flags, tmp_path: Path) -> None:
    process = program("start", *flags)
    wait_for(lambda: len(finished_jobs(tmp_path)) >= 3, process)
    worker = next(child for child in psutil.Process(process.pid).children() if "tools.jobs.worker" in child.cmdline())
    process.kill()
    process.communicate()
    before = finished_jobs(tmp_path)
    code, report, said = finish(
        program("resume", only_run(tmp_path).name, "--runs-dir", str(tmp_path / "runs"), "--json")
    )
    assert code == 0, said
    assert report["stop_reason"] == "nothing_verifiable"
    after = finished_jobs(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not worker.is_running(), "the orphaned worker must end with its agent"
    assert "run_resumed" in {event["kind"] for event in read_events(only_run(tmp_path))}


def test_a_killed_worker_is_replaced_within_the_run(flags: Flags, tmp_path: Path) -> None:
    process = program("start", *flags)
    wait_for(lambda: len(finished_jobs(tmp_path)) >= 2, process)
    for child in psutil.Process(process.pid).children():
        if "tools.jobs.worker" in child.cmdline():
            child.kill()
    code, report, said = finish(process)
    assert code == 0, said
    assert report["stop_reason"] == "nothing_verifiable"


def test_ctrl_c_finishes_the_step_and_the_run_can_be_resumed(flags: Flags, tmp_path: Path) -> None:
    process = program("start", *flags)
    wait_for(lambda: any(tmp_path.glob("runs/*/state.sqlite")), process)
    process.send_signal(signal.SIGINT)
    code, report, said = finish(process)
    assert code == 130, said
    assert report["stop_reason"] == "user_stopped"
    assert report["final"] is None, "the final split stays closed until the run has ended"
    code, report, said = finish(program("resume", "--runs-dir", str(tmp_path / "runs"), "--json"))
    assert (code, report["stop_reason"]) == (0, "nothing_verifiable"), said


@pytest.mark.parametrize("how", [[], ["--now"]])
def test_stop_ends_a_run_that_can_be_resumed(flags: Flags, tmp_path: Path, how: list[str]) -> None:
    process = program("start", *flags)
    wait_for(lambda: any(tmp_path.glob("runs/*/state.sqlite")), process)
    code, told, said = finish(program("stop", "--runs-dir", str(tmp_path / "runs"), "--json", *how))
    assert (code, told) == (0, {"run": only_run(tmp_path).name, "state": "stopped"}), said
    assert process.wait(timeout=5) == 130
    events = list(read_events(only_run(tmp_path)))
    begun, ended = (
        [event["step"] for event in events if event["kind"] == kind] for kind in ("tool_started", "tool_finished")
    )
    assert how or begun == ended != [], "the step was finished"
    code, report, said = finish(program("resume", "--runs-dir", str(tmp_path / "runs"), "--json"))
    assert (code, report["stop_reason"]) == (0, "nothing_verifiable"), said
    told = {}
    for event in read_events(only_run(tmp_path)):
        if event["kind"] == "tool_started":
            assert told.setdefault(event["job"], event["spent"]) == event["spent"], "the cost of all attempts"


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(flags: Flags, tmp_path: Path) -> None:
    process = program("start", *flags)
    wait_for(lambda: any(tmp_path.glob("runs/*/calls/*.sample_items")), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, report, said = finish(process)
    assert (code, report["stop_reason"]) == (130, "user_stopped"), said
    assert report["steps"] == 0 or not any(tmp_path.glob("runs/*/calls/0001-*.json")), "the step was not finished"
    before = finished_jobs(tmp_path)
    code, report, said = finish(program("resume", "--runs-dir", str(tmp_path / "runs"), "--json"))
    assert (code, report["stop_reason"]) == (0, "nothing_verifiable"), said
    assert before.items() <= finished_jobs(tmp_path).items()


def test_a_scorer_that_fails_during_a_run_is_told(flags: Flags, tmp_path: Path) -> None:
    scorer = tmp_path / "tired.py"
    scorer.write_text(TIRED)
    task = flags[1].split("?")[0]
    code, report, said = finish(program("start", *flags, "--task", f"{task}?scorer=python:{scorer}"))
    assert code == 0, said
    assert report["scorer_errors"] > 1_000
    assert f"the scorer failed on {report['scorer_errors']} answers" in said


TIRED = """
calls = 0

def score(item, answer):
    global calls
    calls += 1
    if calls > 1000:
        raise RuntimeError("I am tired")
    return float(answer == item["answer"])
"""


def test_a_full_disk_stops_the_run_and_loses_nothing(flags: Flags, tmp_path: Path) -> None:
    code, report, said = finish(program("start", *flags, limit_bytes=200_000))
    assert code == 1, said
    assert "File too large" in said or "File too large" in (report.get("error") or "")
    before = finished_jobs(tmp_path)
    code, report, said = finish(program("resume", "--runs-dir", str(tmp_path / "runs"), "--json"))
    assert (code, report["stop_reason"]) == (0, "nothing_verifiable"), said
    assert before.items() <= finished_jobs(tmp_path).items()


def test_a_run_is_worked_on_by_one_process(flags: Flags, tmp_path: Path) -> None:
    process = program("start", *flags)
    wait_for(lambda: len(finished_jobs(tmp_path)) >= 1, process)
    code, _, said = finish(program("resume", only_run(tmp_path).name, "--runs-dir", str(tmp_path / "runs")))
    assert code == 2
    assert "another process" in said
    process.kill()
    process.communicate()


def test_bad_input_is_refused_before_a_run_begins(flags: Flags, tmp_path: Path) -> None:
    lenient = tmp_path / "lenient.py"
    lenient.write_text("def score(item, answer):\n    return 1.0\n")
    task = flags[1].split("?")[0]
    cases = {
        "known-answer": ["--task", f"{task}?scorer=python:{lenient}"],
        "--final-items": ["--final-items", "500"],
        "no tool": ["--tools", str(lenient)],
        "script": ["--planner", f"scripted:{tmp_path / 'missing.jsonl'}"],
        "--model": ["--model", "nobody/nothing"],
        "no such file": ["--task", str(tmp_path / "nothing.jsonl")],
        "--budget-tokens": ["--budget-tokens", "10"],
    }
    for word, bad in cases.items():
        code, _, said = finish(program("start", *flags, *bad))
        assert code == 2, (bad, said)
        assert said.strip().splitlines()[-1].startswith("error:"), said
        assert word.strip("-").split()[0] in said, (word, said)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_prompt_over_the_context_stops_the_run_with_the_cure(flags: Flags, tmp_path: Path) -> None:
    task = write_task(tmp_path / "long.jsonl", lambda text: f"Say this word again: {text} " + "please " * 100)
    code, report, said = finish(program("start", *flags, "--task", task))
    assert code == 1
    assert "context" in report["error"], said


@pytest.mark.slow
def test_the_default_model_learns_and_every_row_is_its_own(copy_task: str, tmp_path: Path) -> None:
    sizes = ["--search-items", "40", "--gate-items", "60", "--final-items", "40", "--budget-tokens", "60000"]
    where = ["--runs-dir", str(tmp_path / "runs"), "--models-dir", str(MODELS_DIR)]
    arguments = ["start", "--task", copy_task, "--planner", "rules", *sizes, *where, "--json"]
    code, report, said = finish(program(*arguments))
    assert code == 0, said
    assert report["accepted"] >= 1, said
    assert report["final"]["champion"]["score"] > report["final"]["base_zero_shot"]["score"]
    store = RunStore(only_run(tmp_path))
    samples = {
        row["example_id"]: row
        for data in store.all("data")
        if data["kind"] == "samples"
        for row in store.rows("data", data["id"], "samples.jsonl")
    }
    trained = [
        row
        for data in store.all("data")
        if data["kind"] == "train"
        for row in store.rows("data", data["id"], "train.jsonl")
    ]
    held_out = set(read_json(store.run_dir / "referee" / "evaluation_ids.json"))
    assert trained
    assert all(samples[row["id"]]["right"] for row in trained), (
        "only what the model itself said and the scorer verified"
    )
    assert not {row["item_id"] for row in trained} & held_out
