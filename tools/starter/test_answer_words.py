"""Tests of the tool, on a small made-up run."""

from pathlib import Path

import pytest

from tools.contract import ToolError
from tools.sample_run import make_sample_run
from tools.starter.answer_words import answer_words


def test_answer_words(tmp_path: Path) -> None:
    """The made-up run has three right answers of one word and three wrong ones of six."""
    run = make_sample_run(tmp_path)
    expected = {"num_right": 3, "num_wrong": 3, "words_right": 1.0, "words_wrong": 6.0}
    assert answer_words(run, prompting="zero_shot") == expected
    assert answer_words.legal(run) == {"prompting": ["zero_shot", "few_shot"]}


def test_answer_words_without_an_evaluation(tmp_path: Path) -> None:
    """Without one the planner is told what to do."""
    run = make_sample_run(tmp_path)
    (tmp_path / "evals" / "base-6" / "record.json").unlink()
    assert answer_words.legal(run) == {"prompting": ["zero_shot"]}
    with pytest.raises(ToolError, match="choose the other"):
        answer_words(run, prompting="few_shot")
