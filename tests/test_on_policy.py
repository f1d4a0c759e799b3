"""Training on own samples: reinforcement and self-distillation of a tiny model that knows an answer's form."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.tiny import HALVES, make_tiny_model, teach_letters, write_letters_task
from memory.store import BASE, RunStore
from tests.test_training import KilledJob, same, weights
from tools.contract import Json, ToolError
from tools.engines.base import Completion, Sampling, build_messages
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.optimize import distill_worker, grpo_worker, row_attention, sft_worker
from tools.optimize.grpo_worker import REWARDS, SAMPLES, Rollouts, good_form, right_answer
from tools.optimize.on_policy import items_of, sampling_with
from tools.tasks import load_task
from tools.tasks.base import Item, Verdict

NUM_STREAMED = 240
SETTINGS = {"start_from": "latest", "method": "lora", "schedule": "linear"}


def high_items(task: Any) -> list[Item]:
    """Return training items whose likeliest answer is wrong."""
    return [item for item in task.stream(0, NUM_STREAMED, 0) if item.question.startswith("high")]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model answers with a letter, to half of the questions mostly a wrong one; m1 is untrained."""
    root = tmp_path_factory.mktemp("letters")
    model = make_tiny_model(root / "model")
    teach_letters(model)
    task = load_task(write_letters_task(root, 400))
    run_dir = root / "run"
    (run_dir / "jobs" / "training").mkdir(parents=True)
    settings = {"model_dir": str(model), "engine": "transformers", "dtype": "float32", "system_prompt": ""}
    (run_dir / "worker.json").write_text(json.dumps(settings | {"task": task.spec}))
    items = high_items(task)
    rows = [
        {"item_id": item.id, "generation": "gen", "prompt": item.question, "completion": item.answer, "difficulty": "a"}
        for item in items
    ]
    store = RunStore(run_dir)
    store.put("data", "gen", {"kind": "samples", "start": 0, "next_index": NUM_STREAMED, "seed": 0})
    store.put("data", "set", {"kind": "train", "num_examples": len(rows)}, {"train.jsonl": rows})
    few = {"method": "lora", "learning_rate": 1e-6, "schedule": "linear", "epochs": 1, "start_from": "base"}
    sft_worker.train(Job(run_dir / "jobs" / "first", Resident(run_dir)), "m1", few, BASE, ["set"], [], 0)
    return run_dir


@pytest.fixture
def run_dir(taught: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(taught, tmp_path / "run"))


def reinforce(run_dir: Path, job: type[Job] = Job, steps: int = 8) -> Json:
    resident = Resident(run_dir)
    settings = SETTINGS | {"objective": "grpo", "learning_rate": 0.01, "steps": steps}
    made = job(run_dir / "jobs" / "training", resident)
    try:
        return grpo_worker.train(made, "m2", settings, "m1", ["set"], [], 0)
    finally:
        resident.scorer.__exit__(None, None, None)


def share_right(run_dir: Path, model: str) -> float:
    """Return the share of right greedy answers."""
    resident = Resident(run_dir)
    resident.engine.use_model(RunStore(run_dir).model_dir(model))
    items = high_items(resident.task)
    answers = resident.engine.generate([build_messages(item.question, []) for item in items], Sampling(4))
    texts = [(item.question.split()[0], samples[0].text) for item, samples in zip(items, answers, strict=True)]
    return sum(len(text) == 1 and text in HALVES[half] for half, text in texts) / len(texts)


def test_reinforcement_raises_the_reward_and_a_kill_changes_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft_worker, "CHECKPOINT_SECONDS", 0.0)
    killed = Path(shutil.copytree(run_dir, tmp_path / "killed"))
    before = share_right(run_dir, "m1")
    expected = reinforce(run_dir)
    assert share_right(run_dir, "m2") > before + 0.15
    manifest = RunStore(run_dir).get("models", "m2")
    assert manifest is not None and manifest["num_tokens"] > 0 and manifest["parent"] == "m1"
    looks = manifest["held_out"]["right"]
    assert list(looks) == ["0", "4", "8"] and max(looks.values()) > looks["0"]
    assert manifest["held_out"]["n"] == grpo_worker.HELD_OUT

    with pytest.raises(KeyboardInterrupt):
        reinforce(killed, job=KilledJob)
    assert list((killed / "jobs" / "training" / "checkpoints").glob("checkpoint-*"))
    assert reinforce(killed) | {"train_s": 0} == expected | {"train_s": 0}
    assert same(weights(run_dir, "m2"), weights(killed, "m2"))


def test_training_ends_behind_the_peak_and_keeps_its_weights(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_worker, "STEPS_BETWEEN_LOOKS", 1)
    punish = {lambda verdicts, answers: [float(not verdict.right) for verdict in verdicts]: 1.0}
    next(iter(punish)).__name__ = "wrong_answer"
    monkeypatch.setattr(grpo_worker, "REWARDS", punish)  # a reward of one's own, and a bad one
    told = reinforce(run_dir)
    looks = RunStore(run_dir).get("models", "m2")["held_out"]["right"]  # type: ignore[index]
    counts = list(looks.values())
    peak = counts.index(max(counts))
    assert told["num_steps"] == peak + grpo_worker.PATIENCE < 8
    if peak == 0:
        assert same(weights(run_dir, "m1"), weights(run_dir, "m2"))


def trainer_of(model: Any) -> Any:
    """Return what a rollout asks of a trainer."""
    accelerator = SimpleNamespace(process_index=0, unwrap_model=lambda wrapped: wrapped)
    return SimpleNamespace(accelerator=accelerator, state=SimpleNamespace(global_step=0), model=model)


def test_groups_of_equal_reward_are_replaced(run_dir: Path) -> None:
    resident = Resident(run_dir)
    job = Job(run_dir / "jobs" / "training", resident)
    engine, store = resident.local_engine, RunStore(run_dir)
    items = items_of(job, store.rows("data", "set", "train.jsonl"))
    assert [item.answer for item in items] == [item.answer for item in high_items(resident.task)]
    model = sft_worker.starting_model(engine, store.model_dir("m1"), "lora", "lora")
    trainer = trainer_of(model)
    groups = Rollouts(job, items, 8, 0).groups(trainer, 8)
    assert len(groups) == 8 and all(len(answers) == SAMPLES for _, answers, _ in groups)
    assert all(len(set(zip(*rewards.values(), strict=True))) > 1 for _, _, rewards in groups)
    told = Rollouts(job, items, 8, 0)([""] * 8 * SAMPLES, trainer)
    assert [len(told[name]) for name in ("prompt_ids", "completion_ids", "right_answer", "good_form")] == [64] * 4
    assert told == Rollouts(job, items, 8, 0)([""] * 8 * SAMPLES, trainer), "a step done again gets the same samples"
    assert model.get_base_model().config._attn_implementation == row_attention.NAME and engine.model is engine.base
    resident.scorer.__exit__(None, None, None)


def test_sampling_in_training_is_sampling_from_the_saved_adapter(run_dir: Path) -> None:
    engine, folder = Resident(run_dir).local_engine, run_dir / "models" / "m1"
    model = sft_worker.starting_model(engine, folder, "lora", "lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    prompts = [build_messages(f"low {number}", []) for number in range(20)]
    with sampling_with(engine, model):
        live = engine.generate(prompts, Sampling(4))
    plain = engine.generate(prompts, Sampling(4))
    model.save_pretrained(str(run_dir / "models" / "saved"))
    engine.use_model(run_dir / "models" / "saved")
    saved = engine.generate(prompts, Sampling(4))
    assert [samples[0].text for samples in live] == [samples[0].text for samples in saved]
    assert [samples[0].text for samples in live] != [samples[0].text for samples in plain]


def test_rewards() -> None:
    verdicts = [Verdict(1.0, "right"), Verdict(1.0, "right"), Verdict(0.5, "wrong"), Verdict(0.0, "malformed")]
    finishes = ["stop", "length", "stop", "stop"]
    answers = [Completion("a", 1, -1.0, finish) for finish in finishes]
    assert right_answer(verdicts, answers) == [1.0, 0.0, 0.5, 0.0]
    assert good_form(verdicts, answers) == [1.0, 0.0, 1.0, 0.0]
    assert list(REWARDS.items()) == [(right_answer, 1.0), (good_form, 0.1)]


def test_too_few_items_are_told(run_dir: Path) -> None:
    job = Job(run_dir / "jobs" / "training", Resident(run_dir))
    rows = RunStore(run_dir).rows("data", "set", "train.jsonl")[:63]
    with pytest.raises(ToolError, match=r"only 63 items to sample on .*call finetune_model"):
        items_of(job, rows)
    brought = [
        {"prompt": f"q{n}", "completion": "a", "item_id": str(n), "generation": "i", "source": "f"} for n in range(64)
    ]
    assert [item.answer for item in items_of(job, brought)] == ["a"] * 64


def distil(run_dir: Path, job: type[Job] = Job) -> Json:
    settings = SETTINGS | {"objective": "self-distillation", "learning_rate": 0.005, "epochs": 1}
    made = job(run_dir / "jobs" / "training", Resident(run_dir))
    return distill_worker.train(made, "m2", settings, "narrow", ["set"], [], 0)


def test_self_distillation_nears_the_teacher_and_a_kill_changes_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student has learned to say one letter more than others; the teacher says all of them."""
    few = {"method": "lora", "learning_rate": 0.03, "schedule": "linear", "epochs": 4, "start_from": "base"}
    sft_worker.train(Job(run_dir / "jobs" / "first", Resident(run_dir)), "narrow", few, BASE, ["set"], [], 0)
    monkeypatch.setattr(sft_worker, "CHECKPOINT_SECONDS", 0.0)
    killed = Path(shutil.copytree(run_dir, tmp_path / "killed"))
    expected = distil(run_dir)
    num_questions = len(RunStore(run_dir).rows("data", "set", "train.jsonl"))
    assert (expected["num_examples"], expected["num_steps"]) == (num_questions, num_questions // 16)
    assert expected["loss_last"] < 0.7 * expected["loss_first"], "the divergence from the teacher"
    assert not same(weights(run_dir, "narrow"), weights(run_dir, "m2"))
    manifest = RunStore(run_dir).get("models", "m2")
    assert manifest is not None and manifest["num_tokens"] > 10 * num_questions

    with pytest.raises(KeyboardInterrupt):
        distil(killed, job=KilledJob)
    assert distil(killed) | {"train_s": 0} == expected | {"train_s": 0}
    assert same(weights(run_dir, "m2"), weights(killed, "m2"))
