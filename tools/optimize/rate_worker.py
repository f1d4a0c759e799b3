"""Find a learning rate by trying: a few dozen steps at rising rates, and how the loss takes it (arXiv 1506.01186).

The model that the test moves is thrown away. A killed test goes on from its last checkpoint, like a training.
"""

import math
import shutil
import time
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl.trainer.sft_config import SFTConfig

from memory.store import BASE, RunStore
from tools.contract import Json
from tools.engines.base import build_messages
from tools.evaluate.costs import TRAINED_TOKEN_COST
from tools.jobs.job import Job
from tools.optimize.collate import PrefixCollator, tokenise
from tools.optimize.sft_worker import (
    CHECKPOINT_SECONDS,
    CompletionTrainer,
    arguments,
    last_complete_checkpoint,
    starting_model,
)

LOWEST, HIGHEST = 1e-5, 1e-1
NUM_STEPS = 40
SMOOTHING = 0.7
"""Of the losses before, in the smoothed loss."""
BURST = 2.0
"""Times the lowest smoothed loss at which the test ends: higher rates would only be worse."""
SAFETY = 4.0
"""The suggestion is this much below the rate at which the smoothed loss was lowest: there it is about to rise."""


def sweep_rates(job: Job, dataset: str, parent: str, method: str, seed: int) -> Json:
    """Return {"curve": [{"rate", "loss", "smoothed"}], "suggestion", "lowest_at", "num_tokens", "train_s"}.

    Rates are those of finetune_model's menu, so that full training takes a twentieth of them.
    """
    job.resident.make_room()
    store, engine = RunStore(job.run_dir), job.resident.local_engine
    started = time.monotonic()
    engine.use_model(None)
    parent_method = "base" if parent == BASE else store.lineage(parent)[-1]["settings"]["method"]
    trainer = _trainer(job, dataset, store.model_dir(parent), parent_method, method, seed)
    checkpoints = job.folder / "checkpoints"
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    num_tokens = trainer.count_tokens()
    job.resident.trained_tokens += TRAINED_TOKEN_COST * num_tokens
    curve = smooth([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    shutil.rmtree(checkpoints, ignore_errors=True)
    return suggest(curve) | {
        "curve": curve,
        "num_tokens": num_tokens,
        "train_s": round(time.monotonic() - started, 1),
    }


def rate_of(step: int) -> float:
    """Return the rate of a step, from 0: the same factor between neighbours."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (NUM_STEPS - 1)))


def smooth(losses: list[float]) -> list[Json]:
    """Return the curve: each step's rate, its loss, and the mean of the losses so far, later ones weighing more."""
    curve: list[Json] = []
    total = weight = 0.0
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            break
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        curve.append({"rate": float(f"{rate_of(step):.3g}"), "loss": round(loss, 4), "smoothed": total / weight})
    return curve


def suggest(curve: list[Json]) -> Json:
    """Return the rate at which the smoothed loss was lowest, and the suggestion below it."""
    lowest = min(curve, key=lambda point: point["smoothed"])["rate"]
    return {"lowest_at": lowest, "suggestion": lowest / SAFETY}


class Sweep(TrainerCallback):
    """Ends the test when the loss bursts; tells progress and asks for checkpoints."""

    def __init__(self, job: Job) -> None:
        self.job, self.last_checkpoint_s = job, time.monotonic()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Look at the losses so far."""
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        curve = smooth(losses)
        burst = curve and curve[-1]["smoothed"] > BURST * min(point["smoothed"] for point in curve)
        if losses and (len(curve) < len(losses) or burst):
            control.should_training_stop = True
        self.job.progress(state.global_step, state.max_steps)
        return control

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Save by time, as trainings do."""
        if time.monotonic() - self.last_checkpoint_s > CHECKPOINT_SECONDS and state.global_step < state.max_steps:
            control.should_save = True
            self.last_checkpoint_s = time.monotonic()
        return control


class RisingRate(CompletionTrainer):
    """Supervised training whose rate rises by the same factor each step."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule; the optimizer's own rate is LOWEST."""
        chosen: Any = optimizer if optimizer is not None else self.optimizer
        self.lr_scheduler = LambdaLR(chosen, lambda step: rate_of(step) / LOWEST)
        return self.lr_scheduler


def _trainer(job: Job, dataset: str, parent_dir: Any, parent_method: str, method: str, seed: int) -> RisingRate:
    engine, system_prompt = job.resident.local_engine, job.resident.settings["system_prompt"]
    rows = RunStore(job.run_dir).rows("data", dataset, "train.jsonl")
    tokens = [
        tokenise(engine.tokenizer, build_messages(row["prompt"], [], system_prompt), row["completion"])._asdict()
        for row in rows
    ]
    torch.manual_seed(seed)  # before the adapter is drawn
    settings = {"method": method, "learning_rate": LOWEST, "schedule": "constant"}
    return RisingRate(
        model=starting_model(engine, parent_dir, parent_method, method),
        args=SFTConfig(**arguments(job, settings, seed) | {"max_steps": NUM_STEPS, "warmup_steps": 0}),
        train_dataset=Dataset.from_list(tokens),
        processing_class=engine.tokenizer,
        data_collator=PrefixCollator(),
        callbacks=[Sweep(job)],
    )
