from pathlib import Path

import pytest

from agent import progress, views
from agent.console import Console
from tests.test_views import make_run, write_job


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
    assert "step       1 taken of at most 200" in text and "92 % left at the end, before the final split" in text
    assert "  rules    1 " in views.list_text([status])


def test_resume_says_where_it_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=None)
    write_job(run, "key", "running", 4)
    told = progress.resumed_text(views.run_status(run))
    assert told.startswith(f"goes on with run {run.name}; steps: 1 taken of at most 200; killed at generate_data: ")
    assert "sample_items 4/9" in told and told.endswith("s spent; 1 accepted, 1 rejected")
