"""`trace diff`: where two runs part and why, step by step, and what came of both."""

import re
from pathlib import Path

from agent.final_pair import FINAL_ANSWERS
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
    alone = "of the tool alone, instead of:"
    assert f"A  model decides: generate_data(num_items=512), probability 78 % {alone} note_lesson (22 %)" in text
    assert f"B  model decides: note_lesson(), probability 68 % {alone} generate_data (32 %)" in text
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
        trace = begin(runs_dir, name)
        trace.emit("observed", step=1, situation={"champion": "base"}, menu=menu)
        trace.emit("decided", step=1, action=NOTE, decided_by="model", logprob=None, alternatives=[], usage={})
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
    assert found["num_steps"] == {"a": 2, "b": 2} and found["counts"] == {"same": 2}
    assert found["not_compared"] == []
    Trace(runs_dir / "a").emit("observed", step=3, situation={"champion": "base"}, menu=[])
    assert "the runs do not part: 2 steps are the same" in cli("diff", "a", "b")[1]


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


def test_a_replay_is_compared_by_what_a_replay_repeats(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, budget=100)
    assert cli.json("diff", "a", "b")["parted"]["how"] == "different situation"
    record = read_json(runs_dir / "b" / "run.json")
    own = {"planner": "replay:a", "budget_minutes": 1e6, "max_steps": 2, "approve": False, "prices": None}
    told = {"config": record["config"] | own, "replay_of": {"run": "a", "dir": str(runs_dir / "a")}}
    write_json(runs_dir / "b" / "run.json", record | told)
    found = cli.json("diff", "a", "b")
    assert (found["parted"], found["settings"], found["counts"]) == (None, [], {"same": 2})
    assert found["related"].startswith("B is a replay of A; by design it has no limits")
    assert cli.json("diff", "b", "a")["related"].startswith("A is a replay of B;")
    events = rows_of((runs_dir / "b" / "events.jsonl").read_text())
    next(event for event in events if event["kind"] == "tool_finished")["result"] = {"dataset": "other"}
    write_jsonl(runs_dir / "b" / "events.jsonl", events)
    assert cli.json("diff", "a", "b")["parted"]["how"] == "different result"


def end_with(run_dir: Path, right: dict[str, bool]) -> None:
    """Write the end of a run whose champion answered these final items, right or wrong."""
    share = sum(right.values()) / len(right)
    write_json(run_dir / "report.json", {"final": {"n": len(right), "champion": {"score": share, "n": len(right)}}})
    write_jsonl(run_dir / "referee" / "final.jsonl", [{"id": name} for name in right])
    rows = [{"id": name, "verdict": "right" if is_right else "wrong"} for name, is_right in right.items()]
    write_jsonl(run_dir / "referee" / FINAL_ANSWERS, rows)


def test_final_scores_are_compared_item_by_item_in_either_order(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    unopened = cli.json("diff", "a", "b")["final"]
    assert unopened == {"why": "not both runs have opened it"}
    names = [f"i{number}" for number in range(100)]
    end_with(runs_dir / "a", {name: number < 40 for number, name in enumerate(names)})
    end_with(runs_dir / "b", {name: 2 <= number < 60 for number, name in enumerate(names)} | {})
    rows = rows_of((runs_dir / "b" / "referee" / FINAL_ANSWERS).read_text())
    write_jsonl(runs_dir / "b" / "referee" / FINAL_ANSWERS, rows[::-1])
    found = cli.json("diff", "a", "b")["final"]
    assert (found["why"], found["n"], found["num_fixed"], found["num_broken"]) == (None, 100, 20, 2)
    assert found["p_better"] < 0.025 < found["p_worse"]
    assert "final split, B against A on the same 100 items: better, estimated +17.6 points" in cli("diff", "a", "b")[1]
    assert "B against A on the same 100 items: WORSE" in cli("diff", "b", "a")[1]
    end_with(runs_dir / "b", {name: 2 <= number < 45 for number, name in enumerate(names)})
    assert "items: no clear change, " in cli("diff", "a", "b")[1]


def test_final_scores_that_do_not_compare_say_why(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    for name in ("a", "b"):
        end_with(runs_dir / name, {"one": True, "two": False})
    record = read_json(runs_dir / "b" / "run.json")
    write_json(runs_dir / "b" / "run.json", record | {"identity": {"hashes": {"scorer code": "new"}}})
    assert "the same items, but not the same scorer code" in cli("diff", "a", "b")[1]
    write_json(runs_dir / "b" / "run.json", record)
    (runs_dir / "a" / "referee" / FINAL_ANSWERS).unlink()
    assert "not kept by the version that made a" in cli("diff", "a", "b")[1]
    end_with(runs_dir / "b", {"one": True, "three": False})
    assert "final split not compared item by item: not the same items" in cli("diff", "a", "b")[1]


def test_of_a_different_result_verdict_and_scores_come_first(runs_dir: Path, cli: Cli) -> None:
    for name, number in (("a", 1), ("b", 2)):
        result = {"ci95": [number], "dataset": number, "search_score": number, "accepted": number > 1}
        step(begin(runs_dir, name), 1, result=result)
    fields = [row["field"] for row in cli.json("diff", "a", "b")["rows"][0]["differs"]]
    assert fields == ["result.accepted", "result.search_score", "result.ci95[0]", "result.dataset"]
