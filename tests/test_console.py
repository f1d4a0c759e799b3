"""What a person is told of a run while it goes on, and in `status` and `list`."""

import re
from pathlib import Path
from typing import Any

import pytest

from agent import progress, views
from agent.console import Console
from agent.state import StopReason
from agent.trace import Trace
from memory.records import read_json, write_json
from tests.test_views import end_run, make_run, write_job

Json = dict[str, Any]


def test_of_a_result_only_what_there_is_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"accepted": True, "quarantined": None, "num_right": 0}
    Console().finished(1, "evaluate_model", result, {"wall_s": 1.0, "tokens": 2}, None)
    assert "-> accepted True, num_right 0  [1 s, 2 tokens]" in capsys.readouterr().err


def test_without_a_terminal_an_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say("a long word " * 40)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_step_that_ended_the_run_without_a_decision_is_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)  # its second step was observed, and nothing was decided
    status = views.run_status(run)
    assert (status["step"], status["steps"]) == (2, 1)
    text = views.status_text(status)
    assert "step       1 taken of at most 200" in text and "; 92 % left" in text
    assert "  rules    1 " in views.list_text([status])


def test_resume_says_where_it_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=None)
    write_job(run, "key", "running", 4)
    told = progress.resumed_text(views.run_status(run))
    assert told.startswith(f"goes on with run {run.name}; steps: 1 taken of at most 200; killed at generate_data: ")
    assert "sample_items 4/9" in told and told.endswith("s spent; 1 accepted, 1 rejected")


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (StopReason.WAITING, "1 taken of at most 200; step 2 waits for approval"),
        (StopReason.USER_STOPPED, "1 taken of at most 200; step 2 is not finished"),
        (None, "1 taken of at most 200; step 2 killed at generate_data"),
    ],
)
def test_a_step_that_waits_or_was_cut_off_is_not_taken(tmp_path: Path, ended: StopReason | None, told: str) -> None:
    run = make_run(tmp_path, ended=None)
    chosen = {"action": {"tool": "generate_data", "args": {}}, "decided_by": "model", "logprob": None, "usage": {}}
    Trace(run).emit("decided", step=2, **chosen, reasoning="", alternatives=[], problems=[])
    if ended is not None:
        end_run(run, ended)
    status = views.run_status(run)
    assert (status["steps"], status["under_way"]) == (2, 2)
    assert re.search(rf"step +{told}$", views.status_text(status), re.M)


def test_looks_say_why_they_are_more_than_a_verdict_takes_after_a_resume_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=None)
    cut_off = "cut off and the run repeated counts, too"
    assert cut_off not in views.status_text(views.run_status(run))
    Trace(run).emit("run_resumed", config={}, identity={})
    status = views.run_status(run)
    assert status["resumes"] == 1 and cut_off in views.status_text(status)


@pytest.mark.parametrize(
    ("origin", "in_list", "in_status"),
    [
        ({"forked_from": {"run": "mother", "step": 3}}, "(fork of mother at 3)", ", forked from mother at step 3"),
        ({"replay_of": {"run": "mother"}}, "(replay of mother)", ", a replay of mother"),
    ],
)
def test_where_a_run_comes_from_is_told(tmp_path: Path, origin: Json, in_list: str, in_status: str) -> None:
    run = make_run(tmp_path)
    write_json(run / "run.json", read_json(run / "run.json") | origin)
    status = views.run_status(run)
    assert in_list in views.list_text([status]) and in_status in views.status_text(status)
