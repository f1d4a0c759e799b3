"""What each tool has brought: rounds, their gain with interval, their cost, and where the planner reads it."""

import json
from pathlib import Path

import pytest

from agent.history import Outcome, earlier_outcomes, outcomes_of
from agent.planners.base import Choice
from agent.planners.chat import menu_text
from memory.records import append_jsonl, write_json
from memory.store import BASE, RunStore
from tools.contract import Json


def put_score(store: RunStore, model: str, right: list[bool]) -> None:
    rows = [{"id": str(place), "verdict": "right" if good else "wrong"} for place, good in enumerate(right)]
    record = {"model": model, "split": "search", "shots": 0, "score": sum(right) / len(right)}
    store.put("evals", f"of-{model}", record, {"items.jsonl": rows})


def finished(step: int, tool: str, tokens: int) -> Json:
    return {"kind": "tool_finished", "step": step, "tool": tool, "usage": {"tokens": tokens}}


def judged(candidate: str, champion: str, accepted: bool) -> Json:
    return {"kind": "judged", "step": None, "candidate": candidate, "champion": champion, "accepted": accepted}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A run of two rounds: the first fixes 6 of 10 items, the second fixes one and breaks two."""
    run_dir = tmp_path / "one"
    run_dir.mkdir()
    store = RunStore(run_dir)
    put_score(store, BASE, [False] * 10)
    put_score(store, "m1", [True] * 6 + [False] * 4)
    put_score(store, "m2", [True] * 4 + [False, False, True] + [False] * 3)
    first = [finished(1, "generate_data", 900), finished(1, "generate_data", 1000), finished(2, "finetune_model", 3000)]
    second = [finished(4, "finetune_model", 2000), judged("m2", "m1", False), finished(5, "generate_data", 10**6)]
    append_jsonl(run_dir / "events.jsonl", [*first, judged("m1", BASE, True), *second])
    write_json(run_dir / "run.json", {"identity": {"task": "t", "model": "m"}})
    return store


def test_a_round_counts_for_every_tool_in_it_with_the_tools_own_cost(store: RunStore) -> None:
    found = outcomes_of(store)
    # Step 1 was told twice, as after a kill, and counts once; what follows the last verdict is no round yet.
    assert found["generate_data"] == Outcome(1, 1, 6, 0, 10, 1000)
    assert found["finetune_model"] == Outcome(2, 1, 7, 2, 20, 5000)
    assert found["finetune_model"].text().startswith("1 of 2 kept, +23 points [")
    assert found["finetune_model"].text().endswith("2k tokens a round")


def test_only_runs_of_the_same_task_and_model_are_recalled(store: RunStore, tmp_path: Path) -> None:
    for name, task in (("same", "t"), ("other", "u")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", {"identity": {"task": task, "model": "m"}})
    assert earlier_outcomes(tmp_path / "same") == outcomes_of(store)
    assert earlier_outcomes(tmp_path / "other") == {}
    assert earlier_outcomes(store.run_dir) == {}
    assert outcomes_of(store, earlier_outcomes(tmp_path / "same"))["generate_data"].num_rounds == 2


@pytest.mark.parametrize("damaged", ['{"identity": {"ta', '{"identity": null}', "[]"])
def test_a_damaged_old_run_stops_no_new_one(store: RunStore, tmp_path: Path, damaged: str) -> None:
    (tmp_path / "new").mkdir()
    write_json(tmp_path / "new" / "run.json", {"identity": {"task": "t", "model": "m"}})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(damaged)
    assert earlier_outcomes(tmp_path / "new") == outcomes_of(store)


def test_the_planner_reads_it_beside_the_action() -> None:
    menu = [Choice(tool="train", description="Train.", arguments={}, outcome="1 of 1 kept, +23 points [5, 40]")]
    assert menu_text(menu) == "- train: Train. So far: 1 of 1 kept, +23 points [5, 40]."
    assert menu_text(menu, outcomes=False) == menu_text([Choice(tool="train", description="Train.", arguments={})])
    assert json.dumps(menu)
