"""Short trainings whose models are thrown away: what would these rows teach? A job, beside sft_worker.py."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memory.store import BASE, RunStore
from tools.contract import Json
from tools.evaluate.costs import TRAINED_TOKEN_COST
from tools.jobs.job import Job

SETTINGS = {"learning_rate": 0.0005, "schedule": "constant", "thrown_away": True}


def gains(
    job: Job, pool: str, subsets: list[list[int]], probe_pool: str, probes: list[int], model: str, seed: int
) -> Json:
    """Train a model once on each subset of a pool; returns {"gains": for each subset, one of each probe}.

    subsets, probes: places in the candidates of `pool` and of `probe_pool`. A gain is how much likelier the probe's
    right answer became, in nats per token: far less noisy than whether it is right, for so short a training.
    """
    from tools.engines.base import build_messages
    from tools.engines.likelihood import AnswerReader

    store, engine = RunStore(job.run_dir), job.resident.local_engine
    rows = store.rows("data", pool, "candidates.jsonl")
    asked = store.rows("data", probe_pool, "candidates.jsonl")
    system_prompt = job.resident.settings["system_prompt"]
    chats = [build_messages(asked[place]["prompt"], [], system_prompt) for place in probes]
    answers = [asked[place]["completion"] for place in probes]
    engine.use_model(store.model_dir(model))
    reader = AnswerReader(engine, chats, answers, [True] * len(probes))
    before = reader.logprobs()
    found = []
    for number, subset in enumerate(subsets):
        with taught(job, [rows[place] for place in subset], model, seed, job.folder / f"throwaway-{number}"):
            found.append([round(after - was, 5) for after, was in zip(reader.logprobs(), before, strict=True)])
        job.progress(number + 1, len(subsets))
    return {"gains": found}


@contextmanager
def taught(job: Job, rows: list[Json], model: str, seed: int, folder: Path, passes: int = 1) -> Iterator[None]:
    """Let the engine answer with what passes over the rows make of a model; with the base model afterwards.

    Raises ToolError when the training diverges.
    """
    engine = job.resident.local_engine
    try:
        _train(job, rows, model, seed, folder, passes)
        engine.use_model(folder)
        yield
    finally:
        engine.use_model(None)  # it keeps what it loaded from a folder
        for left in (folder, job.folder / "checkpoints"):
            shutil.rmtree(left, ignore_errors=True)


def _train(job: Job, rows: list[Json], model: str, seed: int, folder: Path, passes: int) -> None:
    """Write the model that passes over the rows make of this one."""
    import torch

    from tools.optimize import sft_worker

    job.resident.make_room()
    store, engine = RunStore(job.run_dir), job.resident.local_engine
    method = "lora" if model == BASE else (store.get("models", model) or {})["settings"]["method"]
    settings = SETTINGS | {"method": method, "epochs": passes}
    engine.use_model(None)
    torch.manual_seed(seed)
    start = sft_worker.starting_model(engine, store.model_dir(model), "base" if model == BASE else method, method)
    watch = sft_worker.Watch(job, SETTINGS["learning_rate"])  # type: ignore[arg-type]
    trainer = sft_worker.completion_trainer(job, rows, settings, seed, start, watch)
    trainer.args._n_gpu = 1  # of several GPUs one is enough for so little
    trainer.train()
    job.resident.trained_tokens += TRAINED_TOKEN_COST * trainer.count_tokens()
    sft_worker._save(trainer.model, engine.tokenizer, folder, method)
