"""Disk space of a run's folder: what it takes, what an action may add, and what is removed after a verdict.

Removed are the weights of rejected candidates, the newest --keep-rejected left out, and the trainer's checkpoints. A
model that was removed keeps its manifest and its place in the lineage; <run>/models/<id>/removed.json says what went.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from memory.records import read_json, write_json
from memory.store import REMOVED, RunStore
from tools.contract import Json
from tools.optimize.adapters import ADAPTERS
from tools.optimize.finetune_model import latest_model

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
FOLDER_BYTES_LEAST = 16 * 2**20
LORA_SHARE = 0.1
"""Of the base model's bytes: no adapter of rank 16 that was seen takes more."""
ADAPTER_COPIES, FULL_COPIES = 7, 13
"""The weights, and two checkpoints of weights and optimiser: what a training holds at most, in its weights' size (full
weights are kept in two bytes each and trained in four)."""


FULL = ("no space left", "disk is full", "disk quota exceeded")
"""What the system and SQLite say when something finds no room."""


def failure_text(error: BaseException, place: Path) -> str:
    """Return what to tell of a failure, with the cure where a full disk is behind it. place: a folder on that disk."""
    text = f"{type(error).__name__}: {error}"
    if not any(words in text.lower() for words in FULL):
        return text
    free_mib = shutil.disk_usage(place).free / 2**20
    return f"{text}; {free_mib:,.0f} MiB are free at {place}: make room there, then `resume`"


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder. A hard link counts fully: the other run may be deleted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a live run writes and renames
            total += path.lstat().st_size
    return total


def needed_gib(store: RunStore, stage: str, method: str) -> float:
    """Return how much an action of a stage adds for a while: a training its checkpoints, any other its rows twice."""
    if stage != "optimize":
        largest = max((folder_bytes(path) for path in (store.run_dir / "data").glob("*")), default=0)
        return 2 * max(largest, FOLDER_BYTES_LEAST) / 2**30
    known = [weights_bytes(store, model) for model in store.all("models") if model["settings"]["method"] == method]
    settings = store.run_dir / "worker.json"
    base = sum(path.stat().st_size for path in Path(read_json(settings)["model_dir"]).glob("*.safetensors"))
    weights = max(known, default=base * (LORA_SHARE if method in ADAPTERS else 1.0))
    return (ADAPTER_COPIES if method in ADAPTERS else FULL_COPIES) * weights / 2**30


def weights_bytes(store: RunStore, model: Json) -> int:
    """Return the bytes of a model's weights; of a removed one, those that it had."""
    if model.get("removed"):
        return int(model["removed"]["bytes"])
    return sum(path.stat().st_size for path in _weights(store.folder("models", model["id"])))


def removable(store: RunStore, keep_rejected: int) -> list[Json]:
    """Return the rejected models whose weights can matter no more, and are there.

    Kept are the champion, the model that training may go on from and the newest keep_rejected rejected ones, each with
    its lineage.
    """
    rejected = list(dict.fromkeys(row["model"] for row in reversed(store.verdicts()) if not row["accepted"]))
    heads = [store.champion(), latest_model(store), *rejected[:keep_rejected]]
    kept = {model["id"] for name in heads for model in store.lineage(name)}
    models = [model for model in store.all("models") if model["id"] in set(rejected) - kept]
    return [model for model in models if _weights(store.folder("models", model["id"]))]


def checkpoints(store: RunStore) -> list[Path]:
    """Return the trainer's checkpoints. Right after a verdict no training is under way, so none is of use."""
    return [path for path in (store.run_dir / "jobs").glob("*/checkpoints") if path.is_dir()]


def freeable(store: RunStore, keep_rejected: int) -> Json | None:
    """Return {"models": id -> bytes, "checkpoints": number, "bytes"} of what `free` would remove, None for nothing."""
    models = {model["id"]: weights_bytes(store, model) for model in removable(store, keep_rejected)}
    folders = checkpoints(store)
    total = sum(models.values()) + sum(map(folder_bytes, folders))
    return {"models": models, "checkpoints": len(folders), "bytes": total} if models or folders else None


def freed_text(freed: Json) -> str:
    """Return it in words."""
    folders = f", and the checkpoints of {freed['checkpoints']} trainings" if freed["checkpoints"] else ""
    gone = ", ".join(freed["models"]) or "no model"
    return f"freed {freed['bytes'] / 2**20:.1f} MiB: weights of {gone}{folders}"


def free(store: RunStore, keep_rejected: int) -> None:
    """Remove it, each model's mark before its weights: a kill in between is made good after the next verdict."""
    for model in removable(store, keep_rejected):
        folder = store.folder("models", model["id"])
        write_json(folder / REMOVED, {"bytes": weights_bytes(store, model)})
        for path in _weights(folder):
            os.unlink(path)
    for path in checkpoints(store):
        shutil.rmtree(path)


def _weights(folder: Path) -> list[Path]:
    return [path for pattern in WEIGHTS for path in folder.glob(pattern)]
