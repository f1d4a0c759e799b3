"""A person between planner and tool: a run of the tiny model that waits, at a terminal and without one."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from agent import views
from agent.approval import approve, asks, check_still_asked, make_answer
from agent.budget import Budget
from agent.config import RunConfig
from agent.graph import after_approve
from agent.nodes import Services
from agent.state import State, StopReason
from agent.trace import Trace, read_events
from memory.records import read_json, write_json
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


def test_a_person_answers_at_a_terminal_and_later_without_one(flags: Flags, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = program("start", *flags, stdin=theirs)
    os.close(theirs)
    os.write(ours, b'maybe\nn\nn too many items\ne {"arguments": {"samples_per_item": 32, "temperature": 1.0}}\n')
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs").glob("*/calls/0001-*.json")) and process.poll() is None:
        assert time.monotonic() < deadline, "the answers did not reach the run"
        time.sleep(0.1)
    os.write(ours, b"\x04")  # Ctrl-D: the person leaves
    code, report, said = finish(process)
    os.close(ours)
    assert (code, report["stop_reason"], report["final"]) == (3, "waiting", None), said
    assert "'maybe' is no answer" in said and "say why" in said
    run_dir = tmp_path / "runs" / report["run"]
    story = [event["kind"] for event in events_of(run_dir, "observed", "decided", "answered") if event["step"] == 1]
    assert story == ["observed", "decided", "answered", "decided", "answered", "decided"]
    rejected, edited = events_of(run_dir, "answered")
    assert (rejected["who"], rejected["answer"], rejected["reason"]) == ("person", "no", "too many items")
    assert (edited["answer"], edited["edited"]["args"]["temperature"]) == ("edit", 1.0)
    (call,) = (read_json(path) for path in (run_dir / "calls").glob("*.json"))
    assert (call["args"]["temperature"], call["args"]["samples_per_item"]) == (1.0, 32)
    proposed, done = [event["decided_by"] for event in events_of(run_dir, "decided") if event["step"] == 1][1:]
    assert (proposed, done) == ("rules", "person")
    assert (report["question"]["step"], report["question"]["tool"]) == (2, "generate_data")
    assert f"run_agent.py approve {run_dir.name}: generate_data(" in views.status_text(views.run_status(run_dir))

    where = [run_dir.name, "--runs-dir", str(tmp_path / "runs"), "--json"]
    code, report, said = finish(program("approve", *where, "--reject", "not again"))
    assert (code, report["stop_reason"], report["question"]["step"]) == (3, "waiting", 2), said
    assert f"run_agent.py approve {run_dir.name}" in said
    assert events_of(run_dir, "answered")[-1]["reason"] == "not again"
    assert len(list((run_dir / "calls").glob("*.json"))) == 1, "nothing was done without an answer"

    code, report, said = finish(program("resume", *where, "--no-approve"))
    assert (code, report["stop_reason"], report["question"]) == (0, "nothing_verifiable", None), said
    assert len(events_of(run_dir, "answered")) == 3


def test_a_person_may_be_asked_about_one_tool_alone(flags: Flags) -> None:
    flags = ["--approve-tools" if flag == "--approve" else flag for flag in flags]
    place = flags.index("--approve-tools") + 1
    code, _, said = finish(program("start", *flags[:place], "generate_dat", *flags[place:]))
    assert code == 2 and "did you mean 'generate_data'?" in said
    config = RunConfig(approve_tools=("finish_run",))
    assert asks(config, "finish_run") and not asks(config, "finetune_model")


def ask_once(run_dir: Path, decided_by: str, answer: Json | None) -> Json:
    """Let the node `approve` alone meet a decision, answer it, and return the state behind it."""
    graph = StateGraph(State, context_schema=Services)
    graph.add_node("approve", approve)
    graph.add_edge(START, "approve")
    loop = graph.compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "one"}}
    console: Any = SimpleNamespace(observed=lambda *_: None, say=print)
    services: Any = SimpleNamespace(config=SimpleNamespace(approve=True), trace=Trace(run_dir), console=console)
    chosen = {"tool": "train", "args": {"rate": 0.1, "method": "lora"}, "decided_by": decided_by, "reasoning": ""}
    situation: Json = {"last_action": None, "lessons": []}
    begun: Any = {"step": 2, "decision": chosen, "menu": MENU, "situation": situation, "last": None}
    state: Json = loop.invoke(begun, thread, context=services)
    return state if answer is None else loop.invoke(Command(resume=answer), thread, context=services)


def test_a_rejection_is_told_and_the_last_outcome_that_the_planner_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = ask_once(tmp_path / "waiting", "model", None)
    assert waiting["__interrupt__"][0].value == QUESTION
    state = ask_once(tmp_path / "told", "model", make_answer(QUESTION, reject="too dear"))
    assert state["decision"] == {} and after_approve(cast(State, state)) == "plan"
    assert state["situation"]["last_action"]["outcome"] == "rejected by a person: too dear"
    assert state["last"] == state["situation"]["last_action"]
    assert "person answers no (too dear)" in capsys.readouterr().out
    assert after_approve(cast(State, ask_once(tmp_path / "yes", "model", make_answer(QUESTION)))) == "act"


def test_who_forced_an_action_is_not_asked_about_it(tmp_path: Path) -> None:
    assert "__interrupt__" not in ask_once(tmp_path, "forced", None)


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


def test_an_answer_is_to_the_question_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_views import end_run, make_run

    run_dir = make_run(tmp_path, ended=None)
    end_run(run_dir, StopReason.WAITING)
    write_json(run_dir / "report.json", read_json(run_dir / "report.json") | {"question": QUESTION})
    where = [run_dir.name, "--runs-dir", str(tmp_path)]
    asked = "step 2: train(rate=0.1, method=lora)"
    for other in ("step 1: train(rate=0.1, method=lora)", "step 2: train(rate=0.2, method=lora)", ""):
        assert main(["approve", *where, "--question", other]) == 2
        assert f"nothing was answered: the answer is to {other!r}, but run {run_dir.name} now asks {asked!r}" in (
            capsys.readouterr().err
        )
    check_still_asked({"to": asked}, run_dir)
    Trace(run_dir).emit("run_resumed", config={}, identity={}, isolation="")  # it went on meanwhile, and was killed
    with pytest.raises(ValueError, match="now asks 'nothing'"):
        check_still_asked({"to": asked}, run_dir)


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
