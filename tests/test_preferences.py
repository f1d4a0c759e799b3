"""Training on preferences: which pairs are made, what training does to them, kills, and that it is off the menu."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from agent.tool_host import ToolHost
from memory.records import read_json
from memory.store import BASE, RunStore
from tests.test_training import KilledJob, Run, new_run, padded_loss, same, train_toy, weights
from tools.contract import Jobs, Json, Judge, Tool, ToolContext, ToolError
from tools.engines.base import build_messages
from tools.jobs.job import Job, JobSpec
from tools.jobs.worker import Resident
from tools.optimize import dpo_worker, row_attention, sft_worker
from tools.optimize.collate import tokenise
from tools.optimize.dpo_worker import preference_pairs, train
from tools.optimize.shared_prompts import share_prompts
from tools.registry import load_tools

__all__ = ["new_run"]


def sample(word: str, completion: str, right: bool, logprob: float = -1.0, finish: str = "stop") -> Json:
    return {
        "item_id": word, "generation": "gen", "prompt": f"reverse {word}", "completion": completion, "right": right,
        "logprob": logprob, "finish": finish, "difficulty": "all",
    }  # fmt: skip


def put_samples(run_dir: Path, num_words: int = 64) -> None:
    """Freeze right answers as dataset "pairs"; "zz" is the likeliest wrong one."""
    words = ["".join(letters) for letters in itertools.product("abc", repeat=4)][:num_words]
    wrong = [sample(word, "zz", False, -1.5) for word in words]
    right = [sample(word, word[::-1], True, -3.0) for word in words]
    store = RunStore(run_dir)
    samples = [*wrong, *right, *(sample(word, "z", False, -9.0) for word in words)]
    store.put("data", "gen", {"kind": "samples"}, {"samples.jsonl": samples, "right.jsonl": right})
    store.put("data", "pairs", {"kind": "train", "num_examples": len(right)}, {"train.jsonl": right})


def prefer(run_dir: Path, model_id: str = "m2", job: type[Job] = Job, parent: str = "m1", **settings: Any) -> Json:
    chosen = {"start_from": "latest", "method": "lora", "objective": "preferences", "learning_rate": 0.01}
    chosen |= {"schedule": "linear", "epochs": 4} | settings
    return train(job(run_dir / "jobs" / "training", Resident(run_dir)), model_id, chosen, parent, ["pairs"], [], 0)


def margins(run_dir: Path, folder: Path) -> tuple[float, float]:
    """Return how much likelier right answers are than the likeliest wrong ones, and their own mean loss per token."""
    engine, store = Resident(run_dir).local_engine, RunStore(run_dir)
    model = sft_worker.starting_model(engine, folder, "lora", "lora")
    tokenizer, pairs = engine.tokenizer, preference_pairs(store, store.rows("data", "pairs", "train.jsonl"))
    differences, losses = [], []
    for pair in pairs:
        total = {}
        for name in ("chosen", "rejected"):
            row = tokenise(tokenizer, build_messages(pair["prompt"], []), pair[name])._asdict()
            with torch.no_grad():
                loss = padded_loss(model, [row]).item()
            total[name] = -loss * (len(tokenizer(pair[name]).input_ids) + 1)
            losses += [loss] if name == "chosen" else []
        differences.append(total["chosen"] - total["rejected"])
    return sum(differences) / len(differences), sum(losses) / len(losses)


def test_a_pair_is_a_right_answer_and_the_likeliest_wrong_one(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    samples = [
        sample("abc", "cba", True, -0.1),
        sample("abc", "unlikely", False, -7.0),
        sample("abc", "likely", False, -2.0),
        sample("abc", "likelier but cut off", False, -1.0, "length"),
        sample("abc", "", False, -0.5),
        sample("bca", "acb", True),
        sample("bca", "acc", False) | {"generation": "other"},
    ]
    store.put("data", "gen", {"kind": "samples"}, {"samples.jsonl": samples[:-1]})
    store.put("data", "other", {"kind": "samples"}, {"samples.jsonl": samples[-1:]})
    brought = {"prompt": "reverse aa", "completion": "aa", "item_id": "aa", "generation": "i", "source": "mine.jsonl"}
    store.put("data", "i", {"kind": "imported"}, {"samples.jsonl": [brought | {"right": True}]})
    rows = [samples[0], samples[5], brought]
    assert preference_pairs(store, rows) == [{"prompt": "reverse abc", "chosen": "cba", "rejected": "likely"}]


@pytest.mark.parametrize(("told", "rejected"), [((None, None), "first"), ((None, -9.0), "second")])
def test_an_answer_without_a_log_probability_is_the_least_likely(
    tmp_path: Path, told: tuple[float | None, ...], rejected: str
) -> None:
    store = RunStore(tmp_path)
    wrong = [
        sample("abc", name, False) | {"logprob": value} for name, value in zip(("first", "second"), told, strict=True)
    ]
    right = sample("abc", "cba", True) | {"logprob": None}
    store.put("data", "gen", {"kind": "samples"}, {"samples.jsonl": [right, *wrong]})
    assert [pair["rejected"] for pair in preference_pairs(store, [right])] == [rejected]


def test_training_prefers_right_answers_and_keeps_them_likely(new_run: Run) -> None:
    run_dir = new_run("run")
    put_samples(run_dir)
    train_toy(run_dir, "m1")
    before = margins(run_dir, run_dir / "models" / "m1")
    parent = weights(run_dir, "m1")
    result = prefer(run_dir, learning_rate=0.05)
    after = margins(run_dir, run_dir / "models" / "m2")

    assert (result["num_examples"], result["num_steps"]) == (64, 4 * 64 / 16)
    assert after[0] > before[0] + 0.2 and after[1] < before[1] + 0.05
    assert result["loss_last"] < result["loss_first"]
    assert same(parent, weights(run_dir, "m1")) and not same(parent, weights(run_dir, "m2"))
    assert weights(run_dir, "m2").keys() == parent.keys()
    assert sorted(path.name for path in (run_dir / "models" / "m2").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "model.json"
    ]  # fmt: skip
    manifest = read_json(run_dir / "models" / "m2" / "model.json")
    assert (manifest["parent"], manifest["dataset"], manifest["settings"]["objective"]) == (
        "m1",
        "pairs",
        "preferences",
    )
    assert list(manifest["data_hashes"]) == ["pairs"] and manifest["num_tokens"] > 4 * 64 * 2 * 7
    assert not (run_dir / "jobs" / "training" / "checkpoints").exists()


def test_the_first_loss_is_that_of_equal_preference_and_the_right_answers(new_run: Run) -> None:
    """Before the first step policy and reference are the same model: -log sigmoid(0), plus the mean loss per token."""
    run_dir = new_run("run")
    put_samples(run_dir, 48)
    train_toy(run_dir, "m1")
    resident = Resident(run_dir)
    job = Job(run_dir / "jobs" / "training", resident)
    store = RunStore(run_dir)
    settings = {"method": "lora", "learning_rate": 0.01, "schedule": "linear", "epochs": 1}
    rows = store.rows("data", "pairs", "train.jsonl")
    model = sft_worker.starting_model(resident.local_engine, store.model_dir("m1"), "lora", "lora")
    watch = sft_worker.Watch(job, 0.01)
    trainer = dpo_worker.preference_trainer(job, rows, settings, 0, model, watch)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(16)])
    loss = trainer.compute_loss(trainer.model, batch).item()

    engine = resident.local_engine
    untrained = sft_worker.starting_model(engine, store.model_dir("m1"), "lora", "lora")
    chosen = [tokenise(engine.tokenizer, build_messages(row["prompt"], []), row["completion"]) for row in rows[:16]]
    with torch.no_grad():
        expected = padded_loss(untrained, [row._asdict() for row in chosen]) - logsigmoid(torch.tensor(0.0))
    assert loss == pytest.approx(expected.item(), rel=1e-3)
    assert trainer.model.active_adapters == ["default"] and list(trainer.model.peft_config) == ["default"]


def test_a_killed_training_ends_with_the_same_weights(new_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_worker, "CHECKPOINT_SECONDS", 0.0)
    whole, killed = new_run("whole"), new_run("killed")
    for run_dir in (whole, killed):
        put_samples(run_dir)
        torch.manual_seed(1)
        train_toy(run_dir, "m1", epochs=1)
    expected = prefer(whole, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        prefer(killed, job=KilledJob, epochs=2)
    assert list((killed / "jobs" / "training" / "checkpoints").glob("checkpoint-*"))
    assert [model["id"] for model in RunStore(killed).all("models")] == ["m1"]
    steps: list[int] = []

    class WatchedJob(Job):
        def progress(self, done: int, total: int, **metrics: float) -> None:
            steps.append(done)

    result = prefer(killed, job=WatchedJob, epochs=2)
    assert steps == list(range(5, 9))
    assert result | {"train_s": 0} == expected | {"train_s": 0}
    assert same(weights(whole, "m2"), weights(killed, "m2"))
    assert prefer(killed, epochs=2) == result, "a candidate that is there is returned"


def test_too_few_pairs_are_told(new_run: Run) -> None:
    run_dir = new_run("run")
    put_samples(run_dir, dpo_worker.LEAST_PAIRS - 1)
    train_toy(run_dir, "m1", epochs=1)
    with pytest.raises(ToolError, match=r"only 31 of 31 rows have a wrong answer .*call finetune_model"):
        prefer(run_dir)
    assert RunStore(run_dir).get("models", "m2") is None


def test_a_diverging_rate_is_named(new_run: Run) -> None:
    run_dir = new_run("run")
    put_samples(run_dir)
    train_toy(run_dir, "m1", epochs=1)
    with pytest.raises(ToolError, match=r"learning rate .* choose a lower one"):
        prefer(run_dir, learning_rate=1e30)


def test_the_pair_is_tokenised_as_everywhere(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = dpo_worker._tokens(tokenizer, "", {"prompt": "reverse abc", "chosen": "cba", "rejected": "abc"})
    texts = {name: tokenizer.decode(ids) for name, ids in tokens.items()}
    assert texts == {
        "prompt_ids": "<|user|><|end|><|user|>reverse abc<|end|><|assistant|>",
        "chosen_ids": "cba<|end|>",
        "rejected_ids": "abc<|end|>",
    }


def test_shared_prompts_give_what_padded_rows_give(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.set_attn_implementation(row_attention.NAME)
    pairs = [("reverse abc", "cba", "abc!"), ("reverse a", "a", "aaaaaa"), ("reverse abcdef", "fedcba", "x")]
    rows = [dpo_worker._tokens(tokenizer, "", {"prompt": p, "chosen": c, "rejected": r}) for p, c, r in pairs]
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(rows)
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    add_fused_lm_head(model, outputs=names)
    found, gradients = [], []
    counted: list[int] = []
    for shared in (False, True):
        if shared:
            share_prompts(model, counted.append)
        model.zero_grad()
        found.append(model(**batch, labels=labels, fused_lm_head=True))
        (found[-1].log_probs * torch.arange(labels.shape[1] - 1)).sum().backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    for name in names:
        padded, ours = (getattr(output, name).float() for output in found)
        assert torch.allclose(padded, ours, atol=1e-4), name
    expected, gradient = gradients
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert counted[0] < int(batch["attention_mask"].sum()), "what the prompts share is counted once"


class JobsAsked:
    """Notes the jobs that a tool asks for."""

    def __init__(self) -> None:
        self.specs: list[JobSpec] = []

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Any]:
        self.specs.append(JobSpec(function, json.loads(json.dumps(args)), inputs or {}))
        return {"model": args["model_id"]}, None


@pytest.fixture
def prefer_answers() -> Iterator[Tool]:
    """The tool, as a run that asks for it gets it."""
    yield load_tools(("prefer_answers",))["prefer_answers"]


def test_it_is_offered_only_when_asked_for_and_an_adapter_to_go_on_from(prefer_answers: Tool, tmp_path: Path) -> None:
    for asked in ([], ["prefer_answers"]):
        with ToolHost(asked) as host:
            offered = {tool["name"]: tool["offered"] for tool in host.describe()}
        assert offered["prefer_answers"] is bool(asked) and offered["finetune_model"]
    store, jobs = RunStore(tmp_path), JobsAsked()
    context = ToolContext(store, cast(Jobs, jobs), cast(Judge, None), 0, "words")
    tool = prefer_answers
    store.put("data", "d1", {"kind": "train", "num_examples": 100})
    assert tool.legal(context) is None, "the base has no form to prefer"
    with pytest.raises(ToolError, match="call finetune_model first"):
        tool(context)
    record = {"model": BASE, "split": "search", "shots": 0, "score": 0.0}
    store.put("evals", "base", record)
    made = {"parent": BASE, "dataset": "d1", "datasets": ["d1"], "settings": {"method": "lora"}}
    store.put("models", "m1", made)
    store.put("evals", "s1", record | {"model": "m1", "score": 0.5})
    store.put("evals", "g1", {"model": "m1", "split": "gate", "shots": 0, "accepted": True})
    assert tool.legal(context) is None, "no dataset waits"
    store.put("data", "d2", {"kind": "train", "num_examples": 500})
    assert tool.legal(context) == {"learning_rate": [0.0001, 0.0005], "epochs": [1, 2]}
    tool(context, learning_rate=0.0005, epochs=2)
    ((function, args, _),) = [(spec.function, spec.args, spec.inputs) for spec in jobs.specs]
    assert function == "tools.optimize.dpo_worker:train"
    assert (args["parent"], args["datasets"], args["rehearse"]) == ("m1", ["d2"], ["d1"])
