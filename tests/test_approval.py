"""A person between planner and tool: whole runs of the tiny model that wait, at a terminal and without one."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent import views
from agent.approval import make_answer
from agent.budget import Budget
from agent.trace import read_events
from memory.records import read_json
from run_agent import main
from tests.test_run import REPO, finish, write_task

Json = dict[str, Any]
Flags = list[str]
MENU: list[Json] = [
    {"tool": "train", "description": "Train.", "arguments": {"rate": [0.1, 0.2], "method": ["lora"]}},
    {"tool": "finish", "description": "End.", "arguments": {}},
]
QUESTION: Json = {"step": 2, "call": "train(rate=0.1, method=lora)", "tool": "train", "menu": MENU}
QUESTION |= {"args": {"rate": 0.1, "method": "lora"}, "decided_by": "model", "reasoning": ""}


@pytest.fixture
def flags(tiny_model: Path, tmp_path: Path) -> Flags:
    task = write_task(tmp_path / "copy.jsonl", lambda text: f"Say this word again: {text}")
    sizes = ["--search-items", "20", "--gate-items", "20", "--final-items", "20", "--budget-tokens", "3000000"]
    where = ["--runs-dir", str(tmp_path / "runs"), "--model", str(tiny_model), "--dtype", "float32"]
    return ["--task", task, "--planner", "rules", *sizes, *where, "--approve", "--json"]


def program(*arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    command = [sys.executable, "run_agent.py", *arguments]
    pipes: Json = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=REPO, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, **pipes)


def events_of(run_dir: Path, *kinds: str) -> list[Json]:
    return [event for event in read_events(run_dir) if event["kind"] in kinds]


def test_without_a_terminal_a_run_waits_and_is_answered_later(flags: Flags, tmp_path: Path) -> None:
    code, report, said = finish(program("start", *flags))
    run_dir = tmp_path / "runs" / report["run"]
    where = [run_dir.name, "--runs-dir", str(tmp_path / "runs"), "--json"]
    assert (code, report["stop_reason"], report["final"]) == (3, "waiting", None), said
    assert report["question"]["tool"] == "generate_data" and f"run_agent.py approve {run_dir.name}" in said
    assert views.run_state(run_dir) == "waiting"
    assert f"run_agent.py approve {run_dir.name}: generate_data(" in views.status_text(views.run_status(run_dir))
    assert not list((run_dir / "calls").glob("*")), "nothing was done without an answer"

    code, report, said = finish(program("approve", *where, "--reject", "too many items"))
    assert (code, report["stop_reason"]) == (3, "waiting"), said
    (answered,) = events_of(run_dir, "answered")
    assert (answered["who"], answered["answer"], answered["reason"]) == ("person", "no", "too many items")
    thread_of_step = [event["kind"] for event in events_of(run_dir, "observed", "decided", "answered")]
    assert thread_of_step == ["observed", "decided", "answered", "decided"], "it decides again, on the same situation"

    fewer = '{"tool": "generate_data", "arguments": {"samples_per_item": 32, "temperature": 1.0}}'
    code, report, said = finish(program("approve", *where, "--edit", fewer))
    assert (code, report["stop_reason"]) == (3, "waiting"), said
    assert report["question"]["step"] == 2
    (call,) = (read_json(path) for path in (run_dir / "calls").glob("*.json"))
    assert call["args"]["temperature"] == 1.0
    *_, edited, next_one = events_of(run_dir, "decided")
    assert (edited["decided_by"], edited["step"], next_one["step"]) == ("person", 1, 2)
    assert events_of(run_dir, "answered")[-1]["edited"]["args"]["samples_per_item"] == 32

    code, report, said = finish(program("resume", *where, "--no-approve"))
    assert (code, report["stop_reason"]) == (0, "nothing_verifiable"), said
    assert len(events_of(run_dir, "answered")) == 2 and report["question"] is None


def test_at_a_terminal_it_asks_until_it_understands(flags: Flags, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = program("start", *flags, stdin=theirs)
    os.close(theirs)
    os.write(ours, b"maybe\nn\nn not these items\ny\n")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs").glob("*/calls/0001-*.json")) and process.poll() is None:
        assert time.monotonic() < deadline, "the answers did not reach the run"
        time.sleep(0.1)
    os.write(ours, b"\x04")  # Ctrl-D: the person leaves
    code, report, said = finish(process)
    os.close(ours)
    assert (code, report["stop_reason"], report["question"]["step"]) == (3, "waiting", 2), said
    assert "'maybe' is no answer" in said and "say why" in said
    run_dir = tmp_path / "runs" / report["run"]
    assert [event["answer"] for event in events_of(run_dir, "answered")] == ["no", "yes"]


def test_answers_are_checked_before_anything_starts() -> None:
    assert make_answer(QUESTION) == {"answer": "yes", "reason": "", "action": None}
    assert make_answer(QUESTION, reject=" too dear ")["reason"] == "too dear"
    edited = make_answer(QUESTION, edit='{"tool": "train", "arguments": {"rate": 0.2}}')
    assert edited["action"] == {"tool": "train", "args": {"rate": 0.2, "method": "lora"}}
    wrong = {"{": "not valid JSON", "[]": "not understood", '{"tool": "dance"}': "legal: train, finish",
             '{"tool": "train", "arguments": {"rate": 9}}': "legal: [0.1, 0.2]"}  # fmt: skip
    for edit, said in wrong.items():
        with pytest.raises(ValueError, match=said.replace("[", r"\[")):
            make_answer(QUESTION, edit=edit)
    with pytest.raises(ValueError, match="say why"):
        make_answer(QUESTION, reject=" ")
    only = QUESTION | {"menu": [{"tool": "train", "description": "", "arguments": {"rate": [0.1]}}]}
    with pytest.raises(ValueError, match="the only legal action"):
        make_answer(only, reject="no")


def test_a_run_that_waits_for_nothing_cannot_be_approved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_views import make_run

    run_dir = make_run(tmp_path)
    assert main(["approve", run_dir.name, "--runs-dir", str(tmp_path)]) == 2
    assert "waits for no approval: it is finished" in capsys.readouterr().err


def test_a_wait_does_not_count_against_the_wall_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(minutes=1.0, tokens=None)
    now[0] += 20
    with budget.paused():
        now[0] += 86_400
    assert budget.spent_s == 20
