"""The test of learning rates: the curve, the suggestion, a kill, and what the menu makes of it."""

from pathlib import Path
from typing import Any, cast

import pytest

from memory.store import BASE, RunStore
from tests.test_training import Run, new_run
from tools.contract import Jobs, Json, Judge, Tool, ToolContext, ToolError
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.optimize import rate_worker
from tools.optimize.finetune_model import legal_training
from tools.optimize.rate_worker import HIGHEST, LOWEST, NUM_STEPS, rate_of, smooth, suggest, sweep_rates
from tools.registry import load_tools

__all__ = ["new_run"]


class KilledJob(Job):
    """A job whose process ends after some steps."""

    def progress(self, done: int, total: int, **metrics: float) -> None:
        if done == 8:
            raise KeyboardInterrupt


def sweep(run_dir: Path, job: type[Job] = Job) -> Json:
    return sweep_rates(job(run_dir / "jobs" / "training", Resident(run_dir)), "toy", BASE, "lora", 0)


def test_the_suggestion_lies_below_the_rate_of_the_lowest_loss() -> None:
    assert [rate_of(0), rate_of(NUM_STEPS - 1)] == pytest.approx([LOWEST, HIGHEST])
    losses = [4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 3.0, float("nan"), 0.1]
    curve = smooth(losses)
    assert [point["loss"] for point in curve] == losses[:7], "what is behind a loss that is not finite says nothing"
    found = suggest(curve)
    assert found["lowest_at"] == pytest.approx(rate_of(5), rel=0.01)
    assert found["suggestion"] == pytest.approx(found["lowest_at"] / 4)


def test_the_sweep_ends_when_the_loss_breaks_and_a_kill_changes_nothing(
    new_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_worker, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(rate_worker, "NUM_STEPS", 16)
    monkeypatch.setattr(rate_worker, "HIGHEST", 1e20)
    whole, killed = new_run("whole"), new_run("killed")
    expected = sweep(whole)
    assert 8 < len(expected["curve"]) < 16, "it ended when the loss was not finite any more"
    assert expected["curve"][0]["rate"] < expected["suggestion"] < expected["lowest_at"]
    assert expected["num_tokens"] > 0 and RunStore(whole).all("models") == []
    assert not (whole / "jobs" / "training" / "checkpoints").exists()
    with pytest.raises(KeyboardInterrupt):
        sweep(killed, KilledJob)
    assert list((killed / "jobs" / "training" / "checkpoints").glob("checkpoint-*"))
    assert sweep(killed) | {"train_s": 0} == expected | {"train_s": 0}


@pytest.fixture
def find_learning_rate() -> Tool:
    return load_tools(("find_learning_rate",))["find_learning_rate"]


class Sweeps:
    """The worker, with this answer."""

    def __init__(self, suggestion: float) -> None:
        self.suggestion = suggestion

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Any]:
        assert function == "tools.optimize.rate_worker:sweep_rates" and args["dataset"] == "d1"
        return {"suggestion": self.suggestion, "lowest_at": 1.0, "curve": [{"rate": 1.0, "loss": 1.0}]}, None


@pytest.mark.parametrize(("found", "offered"), [(0.0007, 0.0005), (0.03, 0.002), (1e-6, 0.0001), (0.0011, 0.001)])
def test_finetune_model_offers_what_was_found(
    find_learning_rate: Tool, tmp_path: Path, found: float, offered: float
) -> None:
    store = RunStore(tmp_path)
    context = ToolContext(store, cast(Jobs, Sweeps(found)), cast(Judge, None), 0, "words")
    assert find_learning_rate.legal(context) is None
    with pytest.raises(ToolError, match="call curate_data first"):
        find_learning_rate(context)
    record = {"model": BASE, "split": "search", "shots": 0, "score": 0.0, "identity": {"device": "cpu"}}
    store.put("evals", "base", record)
    store.put("data", "d1", {"kind": "train", "num_examples": 100})
    assert find_learning_rate.legal(context) == {}
    assert find_learning_rate(context)["learning_rate"] == offered
    (grid, _) = legal_training(context) or [{}, {}]
    assert grid["learning_rate"] == sorted({0.001, offered})
    assert find_learning_rate.legal(context) is None, "it is known"
    store.put("data", "d2", {"kind": "train", "num_examples": 100})
    assert (legal_training(context) or [{}])[0]["learning_rate"] == [0.001], "another dataset"


@pytest.mark.parametrize(
    ("device", "method", "offered"),
    [
        ("cpu", None, ["lora"]),
        ("cpu", "rslora", ["rslora"]),
        ("cuda", None, ["lora", "rslora", "qlora", "full"]),
        ("cuda", "qlora", ["qlora", "full"]),
        ("cuda", "full", ["full"]),
    ],
)
def test_kinds_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, method: str | None, offered: list[str]
) -> None:
    (tmp_path / "bitsandbytes.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    store = RunStore(tmp_path / "run")
    record = {"model": BASE, "split": "search", "shots": 0, "score": 0.0, "identity": {"device": device}}
    store.put("evals", "base", record)
    if method is not None:
        made = {"parent": BASE, "dataset": "d0", "datasets": ["d0"], "settings": {"method": method}}
        store.put("models", "m1", made)
        store.put("evals", "s1", record | {"model": "m1", "score": 0.5})
        store.put("evals", "g1", {"model": "m1", "split": "gate", "shots": 0, "accepted": True})
    store.put("data", "d1", {"kind": "train", "num_examples": 100})
    context = ToolContext(store, cast(Jobs, None), cast(Judge, None), 0, "words")
    assert (legal_training(context) or [{}])[0]["method"] == offered
