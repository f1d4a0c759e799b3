"""`trace diff`: where two runs part and why, step by step, and what came of both."""

import re
from pathlib import Path

from agent.trace import Trace
from memory.records import read_json, write_json, write_jsonl
from tests.test_trace import GENERATE, NOTE, Cli, Json, begin, cli, rows_of, runs_dir, step, stop

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
    covers = "of the tool alone, instead of"
    assert f"A  model decides generate_data(num_items=512), log-probability -0.25 {covers} note_lesson -1.50" in text
    assert f"B  model decides note_lesson(), log-probability -0.75 {covers} generate_data -1.50" in text
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
    assert cli.json("diff", "a", "b")["rows"][1]["differs"] == parted["outcome"]
    assert re.search(r"different result .*\n +result.num_right: 3 \| 4$", cli("diff", "a", "b")[1], re.M)


def test_a_value_more_on_the_menu_is_one_difference(runs_dir: Path, cli: Cli) -> None:
    for name, values in (("a", [1, 2]), ("b", [1, 2, 3])):
        menu = [{"tool": "train", "arguments": {"epochs": values}, "outcome": ""}]
        begin(runs_dir, name).emit("observed", step=1, situation={"champion": "base"}, menu=menu)
    assert cli.json("diff", "a", "b")["parted"]["situation"] == [
        {"field": "menu.train.epochs", "a": "1|2", "b": "1|2|3"}
    ]


def test_what_only_one_version_recorded_is_not_compared_and_named_once(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    events = rows_of((runs_dir / "a" / "events.jsonl").read_text())
    for event in events:
        if event["kind"] == "observed":  # as an earlier version wrote it
            event["menu"] = [row["tool"] for row in event["menu"]]
            del event["situation"]["unused_right_answers"]
    write_jsonl(runs_dir / "a" / "events.jsonl", events)
    for names in (("a", "b"), ("b", "a")):
        found = cli.json("diff", *names)
        assert found["counts"] == {"same": 2} and found["parted"] is None
        text = cli("diff", *names)[1]
        assert text.count("recorded by another version, so not compared: unused_right_answers, values on the menu") == 1
    events[1]["menu"].append("finish_run")
    write_jsonl(runs_dir / "a" / "events.jsonl", events)
    assert cli.json("diff", "a", "b")["parted"]["situation"] == [{"field": "menu.finish_run", "a": "legal", "b": "-"}]


def test_a_step_without_a_decision_is_not_counted(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    Trace(runs_dir / "b").emit("observed", step=3, situation={"champion": "base"}, menu=[])
    found = cli.json("diff", "a", "b")
    assert found["num_steps"] == {"a": 2, "b": 2} and found["counts"] == {"same": 2, "only in B": 1}
    assert found["not_compared"] == []


def test_both_ends_and_where_a_fork_comes_from_are_told(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, num_right=4)
    record = read_json(runs_dir / "b" / "run.json")
    write_json(runs_dir / "b" / "run.json", record | {"forked_from": {"run": "a", "step": 2}})
    champion = {"score": 0.6, "ci95": [0.55, 0.65], "n": 400}
    write_json(runs_dir / "a" / "report.json", {"final": {"n": 400, "champion": champion}})
    judged = {"accepted": True, "num_fixed": 9, "num_broken": 1, "num_items": 90, "p_value": 0.01, "alpha": 0.05}
    Trace(runs_dir / "b").emit("judged", step=2, candidate="m1", **judged)
    found = cli.json("diff", "a", "b")
    assert found["related"] == "B is a fork of A at step 2"
    assert cli.json("diff", "b", "a")["related"] == "A is a fork of B at step 2"
    assert found["ends"]["a"] == {"verdicts": [], "final": {"n": 400, "champion": champion}}
    assert [verdict["step"] for verdict in found["ends"]["b"]["verdicts"]] == [2]
    text = cli("diff", "a", "b")[1]
    assert "B is a fork of A at step 2" in text and re.search(r"champion +60.0 % \[55.0, 65.0\] n=400", text)
    assert "step 2: ACCEPTED: 9 fixed, 1 broken of n=90" in text and "final split not opened" in text


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
