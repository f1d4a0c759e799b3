"""Candidates out of trained adapters, without training: averages (arXiv 2203.05482) and scaled updates (2109.01903).

An adapter adds s B A to a layer's weights. The average of such updates is not what averaged A and B give: the factors
are stacked, which is exact (PEFT's "cat"), and cut to the first adapter's rank by their singular values, so that
training goes on at the same cost. Works on the adapters' files, without the base model. Writes models/<id>/ like
sft_worker.py.
"""

import math
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory.store import RunStore
from tools.contract import Json, ToolError
from tools.engines.models import WEIGHT_FILES, fingerprint
from tools.jobs.job import Job

WEIGHTS = "adapter_model.safetensors"
LORA_A, LORA_B = ".lora_A.", ".lora_B."


class Adapter(NamedTuple):
    """The factors of all layers, by PEFT's names, and what their products are multiplied with."""

    factors: dict[str, Tensor]
    """A (rank, in) and B (out, rank), fp32."""
    scaling: float


class Combined(NamedTuple):
    """A weighted sum of updates at the rank of the first adapter."""

    factors: dict[str, Tensor]
    share_kept: float
    """Of the exact sum's squared norm; what is missing lies in directions beyond the rank."""


def average(job: Job, model_id: str, settings: Json, members: list[str], weights: list[float], seed: int) -> Json:
    """Save the weighted sum of the members' updates as a child of the first.

    Returns {"model", "num_examples", "share_kept", "train_s"}. Raises ToolError when their layers differ.
    """
    started = time.monotonic()
    folders = [RunStore(job.run_dir).folder("models", name) for name in members]
    factors, share_kept = combine([read_adapter(folder) for folder in folders], weights)
    _save(job, model_id, members[0], factors)
    told = {"settings": settings, "seed": seed, "share_kept": round(share_kept, 4)}
    return _put(job, model_id, members, told | {"train_s": round(time.monotonic() - started, 1)})


def scale(job: Job, model_id: str, settings: Json, parent: str, factor: float, seed: int) -> Json:
    """Save an adapter whose update is factor times its parent's: between the base (0), the parent (1) and beyond."""
    started = time.monotonic()
    factors = read_adapter(RunStore(job.run_dir).folder("models", parent)).factors
    scaled = {name: tensor * factor if LORA_B in name else tensor for name, tensor in factors.items()}
    _save(job, model_id, parent, scaled)
    told = {"settings": settings, "seed": seed, "share_kept": 1.0}
    return _put(job, model_id, [parent], told | {"train_s": round(time.monotonic() - started, 1)})


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter of a model folder."""
    config = LoraConfig.from_pretrained(str(folder))
    root = math.sqrt(config.r) if config.use_rslora else config.r
    factors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    return Adapter(factors, config.lora_alpha / root)


def combine(adapters: list[Adapter], weights: list[float]) -> Combined:
    """Return the sum of weight times update, nearest in squared norm among those of the first adapter's rank."""
    first = adapters[0]
    if any(other.factors.keys() != first.factors.keys() for other in adapters[1:]):
        raise ToolError("the models' adapters change different layers, so they have no average; train a new one")
    factors: dict[str, Tensor] = {}
    kept = total = 0.0
    for name_a in (name for name in first.factors if LORA_A in name):
        name_b = name_a.replace(LORA_A, LORA_B)
        a = torch.cat([w * one.scaling * one.factors[name_a] for w, one in zip(weights, adapters, strict=True)])
        b = torch.cat([one.factors[name_b] for one in adapters], dim=1)
        # The product's singular values from its thin factors: no matrix of the layer's size is made.
        (left, small_b), (right, small_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
        u, sizes, v = torch.linalg.svd(small_b @ small_a.T)
        rank = len(first.factors[name_a])
        # A keeps its size, so that further training moves both factors as it did before.
        length = first.factors[name_a].norm(dim=1).mean()
        factors[name_a] = (length * v[:rank] @ right.T).contiguous()
        factors[name_b] = (left @ u[:, :rank] * (sizes[:rank] / (first.scaling * length))).contiguous()
        kept += float(sizes[:rank].square().sum())
        total += float(sizes.square().sum())
    return Combined(factors, kept / total if total else 1.0)


def _save(job: Job, model_id: str, like: str, factors: dict[str, Tensor]) -> None:
    """Write the adapter to a temporary folder, then move it into place; its form is that of the model `like`."""
    store = RunStore(job.run_dir)
    folder = store.folder("models", model_id)
    if store.get("models", model_id) is not None:  # killed between the manifest and the job's result
        return
    temporary = folder.with_name(f".{model_id}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(parents=True)
    shutil.copy(store.folder("models", like) / "adapter_config.json", temporary)
    save_file(factors, temporary / WEIGHTS, metadata={"format": "pt"})
    temporary.rename(folder)


def _put(job: Job, model_id: str, members: list[str], told: Json) -> Json:
    """Write the manifest: what the members learned from is what the model learned from."""
    store = RunStore(job.run_dir)
    lineages = [store.lineage(name) for name in members]
    hashes: Json = {}
    for ancestor in (model for lineage in lineages for model in lineage):
        hashes |= ancestor.get("data_hashes", {})
    inherited = store.trained_on(members[0])
    others = [name for member in members[1:] for name in store.trained_on(member) if name not in inherited]
    datasets = [*dict.fromkeys(others)] or [lineages[0][-1]["dataset"]]
    manifest = {
        "parent": members[0],
        "members": members,
        "dataset": datasets[-1],
        "datasets": datasets,
        "rehearse": [],
        "data_hashes": hashes,
        "num_examples": sum(lineage[-1]["num_examples"] for lineage in lineages),
        "num_steps": 0,
        "num_tokens": 0,
        "weights": fingerprint(store.folder("models", model_id), WEIGHT_FILES),
    }
    known = store.put("models", model_id, manifest | told)
    return {"model": model_id} | {name: known[name] for name in ("num_examples", "share_kept", "train_s")}
