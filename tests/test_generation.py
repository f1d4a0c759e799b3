"""Sampling: what is drawn, judged and kept, and where the samples of an item go."""

import json
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from agent.config import DEFAULT_TASK
from memory.store import RunStore
from tools.acquire.generate_data import legal_prompting, sample_items
from tools.contract import Jobs, Json, Judge, ToolContext
from tools.engines.base import Completion, Sampling
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.refine.proposal import add_policy

SHORT: Json = {"samples_per_item": [32, 64], "temperature": [1.0, 1.2]}
LONG: Json = {"samples_per_item": [8, 16], "temperature": [0.7]}
ARGS: Json = {"model": "base", "start": 0, "temperature": 1.0, "shots": False, "seed": 0}


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> Any:
    """A job in a new run of the default task; its scorer ends with the test."""
    run_dir = tmp_path / "run"
    (run_dir / "jobs" / "here").mkdir(parents=True)
    (run_dir / "referee").mkdir()
    settings = {"model_dir": str(tiny_model), "engine": "transformers", "dtype": "float32"}
    (run_dir / "worker.json").write_text(json.dumps(settings | {"task": DEFAULT_TASK, "system_prompt": ""}))
    (run_dir / "referee" / "evaluation_ids.json").write_text("[]")
    made = Job(run_dir / "jobs" / "here", Resident(run_dir))
    yield made
    made.resident.scorer.__exit__(None, None, None)


def test_samples_are_drawn_scored_and_resumed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job.resident.task.stream(0, 40, 0)
    held_out = [first[0].id, first[1].id]
    (job.run_dir / "referee" / "evaluation_ids.json").write_text(json.dumps(held_out))
    args = ARGS | {"num_items": 20, "samples_per_item": 2}
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(RunStore, "put", Mock(side_effect=KeyboardInterrupt))
        sample_items(job, **args)
    before = job.resident.tokens_processed
    summary = sample_items(job, **args)
    assert job.resident.tokens_processed == before > 0
    assert not (job.folder / "samples.jsonl").exists(), "the dataset holds them"
    rows = RunStore(job.run_dir).rows("data", summary["dataset"], "samples.jsonl")
    assert summary["num_items"] == 20 and summary["num_samples"] == len(rows) == 40
    assert summary["num_dropped_overlap"] == 2
    assert len({(row["item_id"], row["sample"]) for row in rows}) == 40
    assert not {row["item_id"] for row in rows} & set(held_out)
    assert all(row["right"] is False for row in rows if row["finish"] == "length")


def test_a_sampling_killed_before_its_result_is_the_same_and_costs_the_same(job: Job) -> None:
    items = {item.question: item.answer for item in job.resident.task.stream(0, 12, 0)}
    job.resident.__dict__["engine"] = Lucky(items)
    args = ARGS | {"num_items": 12, "samples_per_item": 16}
    summary = sample_items(job, **args)  # its items are solved now, and fresh ones would be drawn instead
    repeated = Job(job.folder, job.resident)
    assert sample_items(repeated, **args) == summary
    manifest = RunStore(job.run_dir).get("data", summary["dataset"])
    assert manifest is not None and repeated.earlier_tokens == manifest["num_tokens"] > 0


class Lucky:
    """Solves every third item at once, and the others only with the last sample of the second try."""

    tokens_processed = 0

    def __init__(self, right: dict[str, str]) -> None:
        self.right = right
        self.asked: list[tuple[int, int]] = []
        self.system_prompts: list[str] = []

    def use_model(self, model_dir: Path | None) -> None:
        """There is one model."""

    def generate(self, prompts: list[Any], sampling: Sampling) -> list[list[Completion]]:
        self.asked.append((len(prompts), sampling.num_samples))
        self.system_prompts.append(prompts[0][0]["content"])
        self.tokens_processed += len(prompts) * sampling.num_samples
        answers = []
        for place, prompt in enumerate(prompts):
            texts = ["no"] * sampling.num_samples
            if len(self.asked) > 1 or place % 3 == 0:
                texts[-1] = self.right[prompt[-1]["content"]]
            answers.append([Completion(text, 1, -1.0, "stop") for text in texts])
        return answers


def test_what_the_champion_solves_by_its_policy_becomes_data_for_the_question_alone(job: Job) -> None:
    store = RunStore(job.run_dir)
    policy = add_policy(store, {"system": "Add."})
    items = {item.question: item.answer for item in job.resident.task.stream(0, 12, 0)}
    job.resident.__dict__["engine"] = engine = Lucky(items)
    summary = sample_items(job, **ARGS | {"num_items": 12, "samples_per_item": 16, "policy": policy})
    assert engine.system_prompts == ["", "Add."], "only what it does not solve by itself is asked by the policy"
    manifest = store.get("data", summary["dataset"]) or {}
    assert (manifest["policy"], summary["num_items_right"]) == (policy, 12)
    assert {row["prompt"] for row in store.rows("data", summary["dataset"], "right.jsonl")} == set(items)


def test_more_samples_go_to_the_items_that_none_of_the_first_solved(job: Job) -> None:
    items = {item.question: item.answer for item in job.resident.task.stream(0, 12, 0)}
    assert len(items) == 12, "the first twelve items are distinct"
    job.resident.__dict__["engine"] = engine = Lucky(items)
    summary = sample_items(job, **ARGS | {"num_items": 12, "samples_per_item": 16})
    assert engine.asked == [(12, 4), (8, 12)]
    assert summary["num_items_right"] == 12 and summary["num_samples"] == 4 * 4 + 8 * 16
    rows = RunStore(job.run_dir).rows("data", summary["dataset"], "samples.jsonl")
    assert {(row["pass_rate"], row["num_samples"]) for row in rows} == {(1 / 4, 4), (1 / 16, 16)}
    assert len({(row["item_id"], row["sample"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("score", "answer_tokens", "expected"),
    [
        (0.0, 5, {"prompting": ["few_shot"], "num_items": [512]} | SHORT),
        (0.2, 5, {"prompting": ["zero_shot"], "num_items": [1024, 1536]} | SHORT),
        (0.0, 50, {"prompting": ["few_shot"], "num_items": [256]} | LONG),
        (0.2, 50, {"prompting": ["zero_shot"], "num_items": [512, 1024]} | LONG),
    ],
)
def test_long_answers_are_sampled_less_often(tmp_path: Path, score: float, answer_tokens: int, expected: Json) -> None:
    store = RunStore(tmp_path)
    for shots in (0, 6):
        record = {"model": "base", "split": "search", "shots": shots, "score": score}
        store.put(
            "evals", f"base{shots}", record | {"prompt_tokens_per_item": 20, "answer_tokens_per_item": answer_tokens}
        )
    assert legal_prompting(ToolContext(store, cast(Jobs, None), cast(Judge, None), 0, "sums")) == [
        expected,
        expected
        | {"num_items": [expected["num_items"][0] // 2], "samples_per_item": [16 if answer_tokens == 5 else 8]},
    ]
