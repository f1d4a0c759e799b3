"""Test-time training: a throw-away adapter for each question, with the tiny model and real trainings."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memory.records import content_id
from memory.store import BASE, GREEDY, RunStore
from tests.test_refining import NearMemory
from tools.contract import Json, Judge, ToolContext, ToolError
from tools.engines.base import Sampling, build_messages
from tools.evaluate.answer import answer_questions
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.optimize.throwaway import taught
from tools.refine.card import write_policy
from tools.refine.policy import answer, datasets_of
from tools.refine.proposal import add_policy
from tools.refine.test_time_training import legal_training, training_settings, training_tokens

QUESTIONS = ["say something with b", "say something with x"]


@pytest.fixture
def resident(tiny_model: Path, tmp_path: Path) -> Resident:
    """A run with two kinds of rows; the neighbours of a question are the rows that end with the same letter."""
    settings = {"model_dir": str(tiny_model), "engine": "transformers", "dtype": "float32", "system_prompt": ""}
    (tmp_path / "worker.json").write_text(json.dumps(settings))
    resident = Resident(tmp_path)
    resident.__dict__["memory"] = NearMemory()
    rows = [
        {"id": f"{letter}{n}", "item_id": f"{letter}{n}", "prompt": f"row {n} {letter}", "completion": text}
        for letter, text in (("b", "bbbb"), ("x", "xyxy"))
        for n in range(10)
    ]
    RunStore(tmp_path).put("data", "d", {"kind": "train", "num_examples": 20, "rejected": {}}, {"train.jsonl": rows})
    return resident


def settings_for(store: RunStore, neighbours: int = 8) -> Json:
    rows = store.rows("data", "d", "train.jsonl")
    return {"choice": training_settings({"d": content_id(rows)}, neighbours)}


def test_each_question_is_answered_by_a_model_that_read_its_neighbours_and_forgot_the_rest(resident: Resident) -> None:
    store, engine = RunStore(resident.run_dir), resident.local_engine
    policy = add_policy(store, settings_for(store))
    chats = [build_messages(text, []) for text in QUESTIONS]
    plain = engine.generate(chats, Sampling(4))
    found = answer(resident, store, BASE, policy, QUESTIONS, 4)
    assert answer(resident, store, BASE, policy, QUESTIONS[::-1], 4) == found[::-1], "each question for itself"
    assert [one.logprob for one in found] != [samples[0].logprob for samples in plain]
    rows = store.rows("data", "d", "train.jsonl")
    job = Job(resident.run_dir / "jobs" / "check", resident)
    for chat, mine, one in zip(chats, (rows[:8], rows[10:18]), found, strict=True):
        with taught(job, mine[::-1], BASE, 0, job.folder / "model", passes=4):
            assert engine.generate([chat], Sampling(4)) == [[one]]
    assert engine.model is engine.base and engine.generate(chats, Sampling(4)) == plain
    assert not (resident.run_dir / "jobs" / "taught").exists()


def test_the_trainings_are_part_of_what_an_answer_costs(resident: Resident) -> None:
    store = RunStore(resident.run_dir)
    job = Job(resident.run_dir / "jobs" / "check", resident)
    job.folder.mkdir(parents=True)
    policy = add_policy(store, settings_for(store))
    plain, taught_ones = (answer_questions(job, BASE, QUESTIONS, False, 4, policy=one) for one in (GREEDY, policy))
    assert taught_ones["prompt_tokens_per_item"] > 16 * plain["prompt_tokens_per_item"]


def test_a_training_that_diverges_leaves_the_model_as_it_was(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise ToolError("training diverged")

    store = RunStore(resident.run_dir)
    monkeypatch.setattr("tools.optimize.throwaway._train", diverge)
    found = answer(resident, store, BASE, add_policy(store, settings_for(store)), QUESTIONS, 4)
    assert [one.text for one in found] == [one.text for one in answer(resident, store, BASE, GREEDY, QUESTIONS, 4)]


def test_it_is_offered_where_the_engine_can_be_trained_and_costs_what_it_takes(resident: Resident) -> None:
    store = RunStore(resident.run_dir)
    context = ToolContext(store, cast(Any, None), cast(Judge, None), 0, "made up")
    assert legal_training(context) is None, "nothing was measured yet"
    record = {
        "model": BASE, "split": "search", "shots": 0, "score": 0.5, "prompt_tokens_per_item": 10.0,
        "answer_tokens_per_item": 5.0, "tokens_per_question": 15.0, "first_look": 150,
        "split_sizes": {"search": 20, "gate": 30, "final": 20}, "identity": {"engine": "transformers"},
    }  # fmt: skip
    store.put("evals", "e", record)
    assert legal_training(context) == {"neighbours": [8, 16]}
    assert training_tokens(context, 16) > 1.9 * training_tokens(context, 8) > 70 * 96 * 15
    path = store.folder("evals", "e") / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": {"engine": "openai"}}))
    assert legal_training(context) is None


def test_its_rows_are_named_and_exported(resident: Resident, tmp_path: Path) -> None:
    store = RunStore(resident.run_dir)
    settings = settings_for(store)
    assert [name for name, _ in datasets_of(settings)] == ["d"]
    policy = add_policy(store, settings)
    champion = SimpleNamespace(champion_policy=lambda: policy, policy=store.policy, rows=store.rows)
    assert write_policy(cast(RunStore, champion), tmp_path / "out") == ["policy.json", "examples.jsonl"]
    assert len((tmp_path / "out" / "examples.jsonl").read_text().splitlines()) == 20
