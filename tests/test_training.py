"""Training: the loss mask, the collator against padded rows, and the job itself on a toy task (reverse a string)."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from memory.records import read_json
from memory.store import BASE, RunStore
from tools.contract import Jobs, Judge, ToolContext, ToolError
from tools.engines.base import Sampling, build_messages
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.optimize import row_attention, sft_worker
from tools.optimize.collate import IGNORED, PrefixCollator, shared_prompt, tokenise
from tools.optimize.finetune_model import latest_model, legal_training
from tools.optimize.rehearsal import rehearsal
from tools.optimize.sft_worker import CompletionTrainer, train

Run = Callable[[str], Path]


class KilledJob(Job):
    """A job whose process ends, as far as training can tell, after some steps."""

    last_step = 5

    def progress(self, done: int, total: int, **metrics: float) -> None:
        if done == self.last_step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def new_run(tiny_model: Path, tmp_path: Path) -> Run:
    """Makes run folders as the agent would leave them, with one frozen dataset called "toy"."""
    return lambda name: make_run(tmp_path / name, tiny_model)


def make_run(run_dir: Path, model: Path) -> Path:
    (run_dir / "jobs" / "training").mkdir(parents=True)
    settings = {"model_dir": str(model), "engine": "transformers", "dtype": "float32", "system_prompt": ""}
    (run_dir / "worker.json").write_text(json.dumps(settings))
    put_dataset(run_dir, "toy")
    return run_dir


def put_dataset(run_dir: Path, name: str, num_examples: int = 64) -> None:
    rows = reversals(num_examples)
    manifest = {"kind": "train", "num_examples": len(rows)}
    RunStore(run_dir).put("data", name, manifest, {"train.jsonl": rows})


def reversals(num_examples: int) -> list[dict[str, str]]:
    generator = random.Random(0)
    words = ["".join(generator.choices("abc", k=3)) for _ in range(num_examples)]
    return [{"prompt": f"reverse {word}", "completion": word[::-1]} for word in words]


def train_toy(
    run_dir: Path,
    model_id: str = "m1",
    job: type[Job] = Job,
    resident: Resident | None = None,
    parent: str = BASE,
    datasets: tuple[str, ...] = ("toy",),
    rehearse: tuple[str, ...] = (),
    **settings: Any,
) -> dict[str, Any]:
    chosen = {"start_from": "base", "method": "lora", "learning_rate": 0.03, "schedule": "linear", "epochs": 4}
    folder = run_dir / "jobs" / "training"
    chosen |= settings
    return train(
        job(folder, resident or Resident(run_dir)), model_id, chosen, parent, list(datasets), list(rehearse), 0
    )


def weights(run_dir: Path, model_id: str = "m1") -> dict[str, Tensor]:
    (file,) = (run_dir / "models" / model_id).glob("*.safetensors")
    return load_file(file)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def padded_loss(model: PreTrainedModel, rows: list[dict[str, list[int]]]) -> Tensor:
    """Cross-entropy over right-padded rows, the plain way."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [IGNORED] * (longest - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_loss_is_taken_on_the_completion_and_its_stop_token_only(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenise(tokenizer, build_messages("reverse abc", []), "cba")
    places = [place for place, label in enumerate(tokens.labels) if label != IGNORED]
    first = places[0]
    assert tokenizer.decode(tokens.input_ids[:first]) == "<|user|><|end|><|user|>reverse abc<|end|><|assistant|>"
    assert tokenizer.decode(tokens.input_ids[first:]) == "cba<|end|>"
    assert places == list(range(first, len(tokens.input_ids)))
    assert tokens.labels[first:] == tokens.input_ids[first:]


def test_training_tokens_begin_with_what_the_engine_sends(default_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    tokens = tokenise(tokenizer, build_messages("What is 1 + 1?", [], "Be brief."), "2")
    spans = ["", ""]
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        spans[label != IGNORED] += str(tokenizer.decode([token]))
    assert spans == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n",
        "2<|im_end|>",
    ]


BATCHES = {
    "shared prompts": [("reverse abc", "cba"), ("reverse ab", "ba"), ("reverse abcdef", "fedcba")],
    "one prompt, several answers": [("reverse abc", "cba"), ("reverse abc", "abc"), ("reverse abc", "")],
    "a prompt that begins another": [("reverse", "?"), ("reverse abc", "cba")],
    "one row": [("reverse abc", "cba")],
    "one long row": [("reverse a", "a"), ("reverse b", "b"), ("reverse " + "abc" * 20, "cba" * 20)],
}


@pytest.mark.parametrize("pairs", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("otherwise", ["no row", "one row", "every row"])
@pytest.mark.parametrize("most_scores", [0, 10**6], ids=["fused", "plain"])
def test_a_collated_batch_has_the_loss_and_gradients_of_padded_rows(
    tiny_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    pairs: list[tuple[str, str]], otherwise: str, most_scores: int,
) -> None:  # fmt: skip
    from trl.trainer.sft_config import SFTConfig

    monkeypatch.setattr(row_attention, "MOST_SCORES", most_scores)
    rows = [tokenise(tokenizer, build_messages(prompt, []), answer)._asdict() for prompt, answer in pairs]
    num_cut = {"no row": 0, "one row": 1, "every row": len(rows)}[otherwise]
    for cut, row in enumerate(rows[:num_cut], 3):  # at different places, so that not even the first token is shared
        row["input_ids"], row["labels"] = row["input_ids"][cut:], row["labels"][cut:]
    prefix, shares = shared_prompt(rows)
    num_alike = len(rows) - num_cut
    assert (len(prefix) > 3) == (num_alike > 1)
    assert not prefix or shares == [False] * num_cut + [True] * num_alike
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa")
    trainer = CompletionTrainer(
        model=model,
        args=SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PrefixCollator(),
    )
    plain = padded_loss(model, rows)
    expected = gradients(model, plain)
    model.set_attn_implementation(row_attention.NAME)
    loss = trainer.compute_loss(model, PrefixCollator()(rows))
    found = gradients(model, loss)

    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * scale), name
    assert trainer.compute_loss(model, PrefixCollator()(rows), num_items_in_batch=7).item() == pytest.approx(
        plain.item() * sum(label != IGNORED for row in rows for label in row["labels"]) / 7, rel=1e-5
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_lowers_the_loss_and_the_candidate_loads(new_run: Run, method: str) -> None:
    run_dir = new_run("run")
    resident = Resident(run_dir)
    engine = resident.local_engine
    base = {name: tensor.clone() for name, tensor in engine.base.state_dict().items()}
    rate = 0.1 if method == "lora" else 1.0  # full training takes a tenth
    result = train_toy(run_dir, resident=resident, method=method, learning_rate=rate, epochs=8)

    assert result["num_steps"] == 8 * 64 / 16
    # Under a random vocabulary matrix that stays as it is, an adapter can learn little.
    assert result["loss_last"] < result["loss_first"] - (0.3 if method == "lora" else 3)
    manifest = read_json(run_dir / "models" / "m1" / "model.json")
    assert (manifest["parent"], manifest["dataset"], manifest["seed"]) == (BASE, "toy", 0)
    assert len(manifest["losses"]) == 32
    rows = reversals(64)
    num_tokens = sum(
        len(tokenise(engine.tokenizer, build_messages(row["prompt"], []), row["completion"]).input_ids) for row in rows
    )
    shared = len(tokenise(engine.tokenizer, build_messages("reverse ", []), "").input_ids) - 3  # end, assistant, end
    assert manifest["num_tokens"] == 8 * num_tokens - 32 * 15 * shared, "what a batch shares goes through once"
    assert resident.tokens_processed == 3 * manifest["num_tokens"]
    assert same(base, engine.base.state_dict())
    assert not (run_dir / "jobs" / "training" / "checkpoints").exists()

    prompts = [build_messages(row["prompt"], []) for row in rows]
    before = engine.generate(prompts, Sampling(8))
    engine.use_model(run_dir / "models" / "m1")
    after = engine.generate(prompts, Sampling(8))
    assert set("".join(samples[0].text for samples in after)) <= set("abc")
    assert not set("".join(samples[0].text for samples in before)) <= set("abc")
    if method == "full":
        assert all(samples[0].finish == "stop" for samples in after)


def test_an_adapter_is_trained_on_from_its_parent(new_run: Run) -> None:
    run_dir = new_run("run")
    put_dataset(run_dir, "more", 32)
    first = train_toy(run_dir, "m1")
    parent = weights(run_dir, "m1")
    second = train_toy(run_dir, "m2", parent="m1", datasets=("more",), learning_rate=1e-4, epochs=1)

    assert second["num_examples"] == 32
    assert second["loss_first"] < first["loss_first"] - 0.3
    child = weights(run_dir, "m2")
    assert child.keys() == parent.keys() and not same(parent, child)
    assert same(parent, weights(run_dir, "m1"))
    assert all(torch.allclose(child[name], parent[name], atol=1e-2) for name in parent)
    assert read_json(run_dir / "models" / "m2" / "model.json")["parent"] == "m1"


@pytest.mark.parametrize("parent_method", ["lora", "full"])
def test_full_training_goes_on_from_its_parent(new_run: Run, parent_method: str) -> None:
    run_dir = new_run("run")
    first = train_toy(run_dir, "m1", method=parent_method, learning_rate=0.1)
    second = train_toy(run_dir, "m2", parent="m1", method="full", learning_rate=1e-3, epochs=1)
    assert second["loss_first"] < first["loss_first"] - 0.3
    assert (run_dir / "models" / "m2" / "config.json").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_training_ends_with_the_same_weights(
    new_run: Run, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(sft_worker, "CHECKPOINT_SECONDS", 0.0)
    whole, killed = new_run("whole"), new_run("killed")
    torch.manual_seed(1)
    expected = train_toy(whole, method=method)
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        train_toy(killed, job=KilledJob, method=method)
    checkpoints = killed / "jobs" / "training" / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert RunStore(killed).all("models") == []

    # Those that were being written when a process ended do not count.
    for name in ("checkpoint-5", "checkpoint-6"):
        shutil.copytree(checkpoints / "checkpoint-4", checkpoints / name)
    (checkpoints / "checkpoint-5" / "trainer_state.json").unlink()
    (checkpoints / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 0.')
    steps: list[int] = []

    class WatchedJob(Job):
        def progress(self, done: int, total: int, **metrics: float) -> None:
            steps.append(done)

    torch.manual_seed(2)
    result = train_toy(killed, job=WatchedJob, method=method)
    assert steps == list(range(5, 17))
    assert result | {"train_s": 0} == expected | {"train_s": 0}
    assert same(weights(whole), weights(killed))
    told, wanted = (read_json(run_dir / "models" / "m1" / "model.json") for run_dir in (killed, whole))
    assert [told[name] for name in ("losses", "num_tokens")] == [wanted[name] for name in ("losses", "num_tokens")]


def test_a_finished_training_can_be_repeated_after_a_kill_before_its_manifest(new_run: Run) -> None:
    run_dir = new_run("run")
    torch.manual_seed(1)
    train_toy(run_dir)
    before = weights(run_dir)
    (run_dir / "models" / "m1" / "model.json").unlink()
    (run_dir / "models" / ".m1.tmp").mkdir()
    torch.manual_seed(1)
    train_toy(run_dir)
    assert same(before, weights(run_dir))
    assert not (run_dir / "models" / ".m1.tmp").exists()


def test_training_depends_on_its_arguments_only(new_run: Run) -> None:
    runs = [new_run("one"), new_run("two")]
    for number, run_dir in enumerate(runs):
        torch.manual_seed(number)
        train_toy(run_dir, epochs=1)
    assert same(*(weights(run_dir) for run_dir in runs))


@pytest.mark.parametrize(("method", "rate"), [("full", 300.0), ("full", 1e30), ("lora", 1e30)])
def test_a_diverging_learning_rate_is_named(new_run: Run, method: str, rate: float) -> None:
    run_dir = new_run("run")
    with pytest.raises(ToolError, match=r"learning rate .* choose a lower one"):
        train_toy(run_dir, method=method, learning_rate=rate, epochs=2)
    assert RunStore(run_dir).all("models") == []


def test_the_rate_named_is_the_one_that_was_chosen(new_run: Run) -> None:
    with pytest.raises(ToolError, match=r"learning rate 300\b"):
        train_toy(new_run("run"), method="full", learning_rate=300.0, epochs=2)


@pytest.mark.slow
def test_the_default_model_learns_to_reverse_strings(default_model: Path, new_run: Run) -> None:
    run_dir = new_run("run")
    settings = read_json(run_dir / "worker.json") | {"model_dir": str(default_model)}
    (run_dir / "worker.json").write_text(json.dumps(settings))
    resident = Resident(run_dir)
    result = train_toy(run_dir, resident=resident, learning_rate=0.001, epochs=6)
    assert result["loss_last"] < 0.5 * result["loss_first"]

    rows = reversals(64)
    prompts = [build_messages(row["prompt"], []) for row in rows]
    engine = resident.local_engine
    num_right = []
    for folder in (None, run_dir / "models" / "m1", None):
        engine.use_model(folder)
        answers = engine.generate(prompts, Sampling(8))
        num_right.append(sum(row["completion"] == answer[0].text for row, answer in zip(rows, answers, strict=True)))
    assert num_right[0] == num_right[2] < 5
    assert num_right[1] > 32


@pytest.mark.parametrize(
    ("scores", "accepted", "latest"),
    [
        ([], [], "base"),
        ([0.2], [True], "m0"),
        ([0.2, 0.25], [True, False], "m1"),
        ([0.2, 0.15], [True, False], "m0"),
        ([0.2, 0.25, 0.3], [True, False, True], "m2"),
        ([0.1], [False], "m0"),
        ([0.0], [False], "base"),
    ],
)
def test_training_goes_on_from_the_newest_model_unless_it_got_worse(
    tmp_path: Path, scores: list[float], accepted: list[bool], latest: str
) -> None:
    store = RunStore(tmp_path)
    store.put("evals", "base", {"model": BASE, "split": "search", "shots": 0, "score": 0.0})
    for number, (score, kept) in enumerate(zip(scores, accepted, strict=True)):
        record = {"model": f"m{number}", "shots": 0}
        store.put("models", f"m{number}", {"parent": BASE, "datasets": [f"d{number}"]})
        store.put("evals", f"search{number}", record | {"split": "search", "score": score})
        store.put("evals", f"gate{number}", record | {"split": "gate", "accepted": kept})
    assert latest_model(store) == latest


def test_rehearsal_takes_as_many_of_each_difficulty() -> None:
    rows = [{"difficulty": "easy", "n": n} for n in range(3)] + [{"difficulty": "hard", "n": n} for n in range(50)]
    taken = rehearsal(rows, 20, 0)
    assert [row["difficulty"] for row in taken] == ["easy"] * 10 + ["hard"] * 10
    assert {row["n"] for row in taken[:10]} == {0, 1, 2} and len({row["n"] for row in taken[10:]}) == 10
    assert rehearsal([], 20, 0) == []
    assert rehearsal(rows, 20, 0) == taken != rehearsal(rows, 20, 1)


@pytest.mark.parametrize(
    ("accepted", "num_new", "starts", "epochs"),
    [
        ([], 100, ["base"], [1, 2]),
        ([], 600, ["base"], [2, 3, 4]),
        ([True], 100, ["latest"], [1, 2]),
        ([True, False], 400, ["latest", "base"], [2, 3, 4]),
    ],
)
def test_what_training_offers(
    tmp_path: Path, accepted: list[bool], num_new: int, starts: list[str], epochs: list[int]
) -> None:
    store = RunStore(tmp_path)
    record = {"model": BASE, "split": "search", "shots": 0, "score": 0.0, "identity": {"device": "cpu"}}
    store.put("evals", "base", record)
    for number, kept in enumerate(accepted):
        store.put("data", f"d{number}", {"kind": "train", "num_examples": 120})
        manifest = {"parent": BASE if number == 0 else f"m{number - 1}", "dataset": f"d{number}"}
        store.put("models", f"m{number}", manifest | {"datasets": [f"d{number}"], "settings": {"method": "lora"}})
        store.put("evals", f"s{number}", record | {"model": f"m{number}", "score": 0.1 + number / 10})
        store.put("evals", f"g{number}", {"model": f"m{number}", "split": "gate", "shots": 0, "accepted": kept})
    store.put("data", "new", {"kind": "train", "num_examples": num_new})
    context = ToolContext(store, cast(Jobs, None), cast(Judge, None), 0, "sums")
    grid, fallback = legal_training(context) or [{}, {}]
    assert fallback == grid | {"epochs": [1]} and grid["learning_rate"] == [0.0005, 0.001][not accepted :]
    assert grid == {"start_from": starts, "method": ["lora"], "epochs": epochs, "learning_rate": grid["learning_rate"]}
