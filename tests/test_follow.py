"""`follow` of what training reads (rehearsed rows, chats, merges), of jobs, calls, questions and copies of a row."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.follow import follow, follow_text
from memory.records import content_id, write_json
from memory.store import RunStore
from tests.test_views import BAD, DUPLICATE, GOOD, RIGHT, SAMPLES, TRAIN, kinds, make_run
from tools.optimize.rehearsal import rehearsal
from tools.select.curate_data import training_row

Json = dict[str, Any]
FIRST, LATER, MERGED, NEXT = "f125" * 4, "1a7e" * 4, "3e26" * 4, "4e47" * 4
OLD, FRESH = "01d0" * 4, "f2e5" * 4
CALL, JOB = "0007-finetune_model-" + "ca11" * 4, "70b0" * 4


def right(example: str, number: int) -> Json:
    """Return a right sample."""
    return {
        "example_id": example, "item_id": f"item-{example}", "prompt": f"{number} + 1 =", "completion": "2",
        "pass_rate": 0.5, "difficulty": "1 digit", "model": "base", "generation": SAMPLES, "sample": number,
    }  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose second model rehearsed rows of the first set, a merge, and a model that went on from it."""
    run_dir = make_run(tmp_path)
    store = RunStore(run_dir)
    old, fresh = ([training_row(right(f"{name}{n}", n)) for n in range(8)] for name in ("old", "new"))
    chats = [{"id": f"general-chats-{n}", "prompt": "Hi", "completion": "Ho", "difficulty": "general"} for n in (0, 1)]
    copy = training_row(right("old0", 99)) | {"reason": "exact_duplicate", "neighbour": "old0", "similarity": 1.0}
    for name, rows, rejected in ((OLD, old, [copy]), (FRESH, fresh, [])):
        manifest = {"kind": "train", "num_examples": 8, "rejected": {}, "keep": "hard", "choice": "diverse"}
        store.put("data", name, manifest, {"train.jsonl": rows, "rejected.jsonl": rejected})
    store.put("data", "general-chats", {"kind": "general_chats", "num_examples": 2}, {"train.jsonl": chats})
    common: Json = {"settings": {"method": "lora"}, "seed": 0}
    for name, parent, dataset, rehearse, number in (
        (FIRST, "base", OLD, ["general-chats"], 10),
        (LATER, FIRST, FRESH, [OLD, "general-chats"], 12),
    ):
        told: Json = {"parent": parent, "dataset": dataset, "datasets": [dataset], "rehearse": rehearse}
        store.put("models", name, common | told | {"num_examples": number})
    merged: Json = {
        "parent": GOOD,
        "members": [GOOD, LATER],
        "dataset": FRESH,
        "datasets": [OLD, FRESH],
        "rehearse": [],
    }
    store.put("models", MERGED, common | merged | {"num_examples": 13})
    told = {"parent": MERGED, "dataset": TRAIN, "datasets": [TRAIN], "rehearse": [], "num_examples": 1}
    store.put("models", NEXT, common | told)
    args = {"model_id": LATER, "datasets": [FRESH]}
    write_json(run_dir / "calls" / f"{CALL}.json", {"tool": "finetune_model", "args": {}, "result": {"model": LATER}})
    write_json(run_dir / "calls" / f"{CALL}.train", {"args": args, "inputs": None})
    spec = {"function": "tools.optimize.sft_worker:train", "args": args, "inputs": {"config": "c"}}
    usage = {"wall_s": 147.2, "cpu_s": 125.6, "tokens": 31350, "gpu_s": 140.5}
    write_json(run_dir / "jobs" / JOB / "spec.json", spec)
    write_json(run_dir / "jobs" / JOB / "status.json", {"state": "finished", "attempts": 2})
    write_json(run_dir / "jobs" / JOB / "result.json", {"value": {"model": LATER}, "usage": usage})
    return run_dir


def drawn() -> list[str]:
    """Return the ids of the rows that LATER rehearsed."""
    return [row["id"] for row in rehearsal([training_row(right(f"old{n}", n)) for n in range(8)], 2, 0)]


def test_the_way_from_a_set_reaches_who_rehearsed_it_and_who_went_on(run_dir: Path) -> None:
    led_to = follow(run_dir, OLD)["led_to"]
    assert [node["id"] for node in led_to] == [FIRST, LATER, MERGED, NEXT]
    first, later, merged, after = (node["how"] for node in led_to)
    assert first == "trained on 8 rows of it" and "rehearsed 2 rows of it and went on from" in later
    assert f"went on from {LATER}" in merged and f"went on from {MERGED}" in after


def test_every_row_of_a_model_has_a_source_and_the_sums_agree(run_dir: Path) -> None:
    node = follow(run_dir, LATER)
    assert node["examples_by_part"] == {"new": 8, "rehearsed": 2, "general chats": 2}
    assert node["examples_by_source"] == {SAMPLES: 10, "general-chats": 2}
    assert node["examples_by_filter"] == {"hard, diverse": 10, "no evaluation items": 2}
    assert node["examples_by_model"] == {"base": 12}
    parts = {child["part"]: child["rows"] for child in node["made_from"] if "part" in child}
    assert parts["new"] == [f"new{n}" for n in range(8)] and parts["rehearsed"] == drawn()
    assert "rows new0, new1, new2, new3, new4 and 3 more (all with --json)" in follow_text(node)


def test_rows_that_cannot_be_told_any_more_are_counted_too(run_dir: Path) -> None:
    path = run_dir / "models" / LATER / "model.json"
    write_json(path, (RunStore(run_dir).get("models", LATER) or {}) | {"num_examples": 13})
    counts = follow(run_dir, LATER)["examples_by_source"]
    assert counts == {SAMPLES: 8, "not known": 3, "general-chats": 2}
    [how] = [node["how"] for node in follow(run_dir, OLD)["led_to"] if node["id"] == LATER]
    assert how.startswith(f"may have rehearsed it (3 rows of {OLD} were drawn)")


def test_general_chats_and_each_of_them_are_followed(run_dir: Path) -> None:
    for name in ("general-chats", "general-chats-1"):
        node = follow(run_dir, name)
        assert [one["id"] for one in node["led_to"]] == [FIRST, LATER, MERGED, NEXT], name
        assert "base" in str(node["made_from"])


def test_jobs_and_calls_are_followed_and_stand_beside_what_they_made(run_dir: Path) -> None:
    job = follow(run_dir, JOB)
    assert (job["step"], job["state"], job["attempts"]) == (7, "finished", 2) and "147.2 s wall" in job["text"]
    assert "31350 tokens, 140.5 s gpu" in job["text"]
    assert kinds(job["made_from"]) == [("call", CALL), ("dataset", FRESH)] and kinds(job["led_to"]) == [
        ("model", LATER)
    ]
    for name in (CALL, f"{CALL}.train", "ca11" * 4):
        assert kinds(follow(run_dir, name)["led_to"]) == [("job", JOB), ("model", LATER)]
    made = follow(run_dir, LATER)["made_from"][-1]
    assert made["id"] == CALL and kinds(made["children"]) == [("job", JOB)]


def test_a_job_that_no_call_noted_is_placed_by_its_time_unless_the_run_was_over(run_dir: Path) -> None:
    folder = run_dir / "jobs" / ("50b0" * 4)
    write_json(folder / "spec.json", {"function": "m:f", "args": {"questions": ["What is 1 + 1?"]}, "inputs": {}})
    os.utime(folder / "spec.json", (0, 0))
    node = follow(run_dir, folder.name)
    assert node["step"] is None and "questions=1 values" in node["text"], "questions of the referee stay closed"


def test_of_copies_it_is_said_which_one_stayed(run_dir: Path) -> None:
    store = RunStore(run_dir)
    rows = [right("old0", n) | {"right": True, "verdict": "right", "score": 1.0, "finish": "stop", "logprob": -1.0,
                                "chunk": 0, "num_samples": 2} for n in (0, 99)]  # fmt: skip
    known = store.get("data", SAMPLES) or {}
    settings = {name: known[name] for name in ("model", "temperature", "seed", "shots")}
    manifest = settings | {"kind": "samples", "num_samples": 2, "num_right": 2}
    store.put("data", "5a3c" * 4, manifest, {"samples.jsonl": rows})
    stayed, left = (content_id({"generation": SAMPLES, "item_id": "item-old0", "sample": n}) for n in (0, 99))
    [use] = [node for node in follow(run_dir, "old0")["led_to"] if node["kind"] == "dataset"]
    assert f"in the set as sample {stayed}; sample {left} left out as exact duplicates" in use["text"]
    refused = follow_text(follow(run_dir, DUPLICATE))
    assert f"neighbour {RIGHT} (similarity 0.987) stayed" in refused


def test_a_question_leads_to_its_answers(run_dir: Path) -> None:
    node = follow(run_dir, f"item-{RIGHT}")
    assert kinds(node["made_from"]) == [("dataset", SAMPLES)] and kinds(node["led_to"]) == [("example", RIGHT)]
    assert kinds(node["led_to"][0]["children"]) == [("dataset", TRAIN)]


def test_a_wrong_answer_of_a_pair_reaches_the_model(run_dir: Path) -> None:
    store = RunStore(run_dir)
    rows = [
        sample | {"item_id": f"item-{RIGHT}"} for sample in store.rows("data", SAMPLES, "samples.jsonl")
        if not sample["right"]
    ]  # fmt: skip
    assert follow(run_dir, rows[0]["example_id"])["led_to"][0]["kind"] == "no dataset"
    everything = [row | {"item_id": f"item-{RIGHT}"} for row in store.rows("data", SAMPLES, "samples.jsonl")]
    manifest = store.get("data", SAMPLES) or {}
    (run_dir / "data" / SAMPLES / "manifest.json").unlink()
    store.put("data", SAMPLES, {key: value for key, value in manifest.items() if key not in ("id", "order", "hashes")},
              {"samples.jsonl": everything})  # fmt: skip
    path = run_dir / "models" / BAD / "model.json"
    model = store.get("models", BAD) or {}
    write_json(path, model | {"settings": model["settings"] | {"objective": "kto"}})
    led_to = follow(run_dir, rows[0]["example_id"])["led_to"]
    assert [node["id"] for node in led_to if node["kind"] == "model"] == [BAD] and "less likely" in led_to[1]["how"]
