"""`trace diff`: where two runs part and why, step by step, and what came of both."""

import re
from pathlib import Path

from tests.test_trace import GENERATE, NOTE, Cli, Json, begin, cli, runs_dir, step, stop

__all__ = ["cli", "runs_dir"]


def two_runs(runs_dir: Path, *, seed: int = 0, budget: int = 90, action: Json = GENERATE, num_right: int = 3) -> None:
    """Write `a` and `b`, alike in step 1; step 2 of `b` is as told here."""
    for name in ("a", "b"):
        ours = name == "a"
        trace = begin(runs_dir, name, seed=0 if ours else seed)
        step(trace, 1, result={"dataset": "d1", "train_s": 1.0 if ours else 2.0})
        chosen, shown, right = (GENERATE, 90, 3) if ours else (action, budget, num_right)
        logprob = -0.25 if ours else -0.75
        step(trace, 2, chosen, result={"dataset": "d2", "num_right": right}, budget=shown, logprob=logprob)
        stop(trace)


def test_runs_that_differ_in_time_alone_do_not_part(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    found = cli.json("diff", "a", "b")
    assert found["parted"] is None and found["counts"] == {"same": 2} and found["settings"] == []
    assert "the runs do not part: 2 steps are the same" in cli("diff", "a", "b")[1]


def test_runs_part_by_a_decision_on_the_same_situation(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, action=NOTE, seed=1)
    found = cli.json("diff", "a", "b")
    assert found["settings"] == [{"field": "seed", "a": 0, "b": 1}]
    parted = found["parted"]
    assert (parted["step"], parted["how"], parted["situation"]) == (2, "different tool", [])
    assert parted["why"] == "a different decision on the same situation"
    assert found["decided_differently"] == parted
    text = cli("diff", "a", "b")[1]
    assert "A  model decides generate_data(num_items=512) (-0.25), instead of note_lesson (-1.50)" in text
    assert "B  model decides note_lesson() (-0.75), instead of generate_data (-1.50)" in text
    assert re.search(r"^ +1  same$", text, re.M)
    assert re.search(r"^ +2  different tool +generate_data\(num_items=512\) \| note_lesson\(\)$", text, re.M)


def test_runs_part_by_what_the_planner_was_shown(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, action=GENERATE | {"args": {"num_items": 256}}, budget=70)
    parted = cli.json("diff", "a", "b")["parted"]
    assert (parted["how"], parted["why"]) == ("different arguments", "the planner was shown something else")
    assert parted["situation"] == [{"field": "budget_left_percent", "a": 90, "b": 70}]
    assert "budget_left_percent: 90 | 70" in cli("diff", "a", "b")[1]


def test_the_same_decision_on_another_situation_is_a_difference_too(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, budget=70)
    found = cli.json("diff", "a", "b")
    assert found["parted"]["how"] == "different situation" and found["decided_differently"] is None


def test_runs_part_by_a_result_of_the_same_call(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, num_right=4)
    parted = cli.json("diff", "a", "b")["parted"]
    assert (parted["step"], parted["how"]) == (2, "different result")
    assert parted["outcome"] == [{"field": "result.num_right", "a": 3, "b": 4}]


def test_the_first_different_decision_is_shown_beside_an_earlier_parting(runs_dir: Path, cli: Cli) -> None:
    for name, right, action in (("a", 3, GENERATE), ("b", 4, NOTE)):
        trace = begin(runs_dir, name)
        step(trace, 1, result={"num_right": right})
        step(trace, 2, action, result={})
    text = cli("diff", "a", "b")[1]
    assert "they part at step 1, different result" in text
    assert "the first different decision at step 2, different tool" in text


def test_a_refusal_and_an_end_are_differences(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    trace = begin(runs_dir, "short")
    step(trace, 1, error="no")
    found = cli.json("diff", "a", "short")
    assert [row["how"] for row in found["rows"]] == ["different result", "only in A"]
    assert found["num_steps"] == {"a": 2, "b": 1}
    assert {"field": "refused", "a": "-", "b": "no"} in found["parted"]["outcome"]
