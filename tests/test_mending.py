"""What breaks and is made good: damaged files, too little memory, a process that hangs, a destroyed vector memory."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from agent.console import Console
from agent.identity import IdentityError, check_model
from agent.mending import mend
from agent.trace import Trace, read_events
from memory.records import read_json, write_json, write_jsonl
from memory.store import RunStore
from memory.vectors import EXAMPLES, open_memory
from tools.contract import Json
from tools.engines.base import Sampling
from tools.engines.models import MODELS_DIR, WEIGHT_FILES, fingerprint, resolve_embedder
from tools.engines.transformers_engine import TransformersEngine, _batches
from tools.jobs.job import MOST_DIVISION, Job
from tools.jobs.worker import Resident, _serve, is_out_of_memory
from tools.optimize.sft_worker import _is_complete, arguments

REPO = Path(__file__).resolve().parents[1]

ROWS = [{"id": f"r{number}", "prompt": f"What is {number} and 1?", "item_id": str(number), "difficulty": "d",
         "example_id": f"r{number}"}
        for number in range(6)]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with one finished job, a call and a frozen dataset."""
    write_json(tmp_path / "run.json", {"config": {}})
    write_json(tmp_path / "worker.json", {})
    job = tmp_path / "jobs" / "key"
    write_json(job / "spec.json", {"function": "tests.test_mending:starved", "args": {}, "inputs": {}})
    write_json(job / "result.json", {"value": {}, "usage": {"wall_s": 1.0, "cpu_s": 1.0, "tokens": 1}})
    write_json(tmp_path / "calls" / "0001-generate_data-key.json", {"result": {}})
    RunStore(tmp_path).put("data", "d1", {"kind": "train", "num_examples": len(ROWS)}, {"train.jsonl": ROWS})
    return tmp_path


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- files


def test_a_run_in_order_is_left_as_it_is(run_dir: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    mend(run_dir, Console(quiet=True))
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["jobs/key/result.json", "calls/0001-generate_data-key.json", "report.json"])
def test_what_is_made_again_is_set_aside_and_told(run_dir: Path, name: str) -> None:
    write_json(run_dir / "report.json", {"stop_reason": "failed"})
    half(run_dir / name)
    mend(run_dir, Console(quiet=True))
    assert not (run_dir / name).exists() and (run_dir / f"{name}.damaged").exists()
    assert [event["files"] for event in read_events(run_dir)] == [[name]]


def test_a_result_without_its_question_is_no_result(run_dir: Path) -> None:
    half(run_dir / "jobs" / "key" / "spec.json")
    mend(run_dir, Console(quiet=True))
    assert not (run_dir / "jobs" / "key" / "result.json").exists()


def scribble_trace(run_dir: Path) -> None:
    Trace(run_dir).emit("plateau", sign="")
    path = run_dir / "events.jsonl"
    path.write_text("{half a li\n" + path.read_text())


def rubbish_state(run_dir: Path) -> None:
    (run_dir / "state.sqlite").write_bytes(b"rubbish" * 1000)


def no_state(run_dir: Path) -> None:
    Trace(run_dir).emit("decided", step=1, usage={})


def half_manifest(run_dir: Path) -> None:
    half(run_dir / "data" / "d1" / "manifest.json")


def other_weights(run_dir: Path) -> None:
    store = RunStore(run_dir)
    store.put("models", "m1", {"parent": "base"})
    (store.folder("models", "m1") / "adapter_model.safetensors").write_bytes(b"weights")
    store.put("evals", "e1", {"model": "m1", "split": "gate", "accepted": True})
    write_json(run_dir / "referee" / "models.json", {"m1": "another"})


def flipped_candidate(run_dir: Path) -> None:
    """Before any measurement: what was trained is not what would be judged."""
    store = RunStore(run_dir)
    weights = store.folder("models", "m1") / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    store.put("models", "m1", {"parent": "base", "weights": fingerprint(weights.parent, WEIGHT_FILES)})
    weights.write_bytes(b"Weights")


def lost_weights(run_dir: Path) -> None:
    flipped_candidate(run_dir)
    (run_dir / "models" / "m1" / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (scribble_trace, "events.jsonl line 1 is damaged.*restore it"), (rubbish_state, "state.sqlite is dam"),
        (no_state, "state.sqlite is gone"), (half_manifest, "manifest.json is not valid JSON"),
        (other_weights, "are not those that were written"), (flipped_candidate, "are not those that were written"),
        (lost_weights, "holds no model files.*put the model's files back"),
    ],
)  # fmt: skip
def test_what_nothing_makes_again_is_refused_with_the_cure(
    run_dir: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(run_dir)
    with pytest.raises(ValueError, match=said):
        mend(run_dir, Console(quiet=True))


def test_a_candidate_that_changed_before_its_first_measurement_is_not_scored(run_dir: Path) -> None:
    write_json(run_dir / "worker.json", {"model_dir": str(run_dir)})
    flipped_candidate(run_dir)
    with pytest.raises(IdentityError, match="changed since they were written"):
        check_model(RunStore(run_dir), "m1")
    (run_dir / "models" / "m1" / "adapter_model.safetensors").write_bytes(b"weights")
    check_model(RunStore(run_dir), "m1")
    assert list(read_json(run_dir / "referee" / "models.json")) == ["m1"]


def test_rows_that_were_lost_or_changed_are_noticed(run_dir: Path) -> None:
    store, path = RunStore(run_dir), run_dir / "data" / "d1" / "train.jsonl"
    assert store.rows("data", "d1", "train.jsonl") == ROWS
    write_jsonl(path, ROWS[:-1])
    with pytest.raises(ValueError, match=r"train.jsonl is not what was written.*restore it"):
        store.rows("data", "d1", "train.jsonl")
    path.unlink()
    with pytest.raises(ValueError, match="is not what was written"):
        store.rows("data", "d1", "train.jsonl")


def test_a_damaged_checkpoint_of_a_training_is_passed_over(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(100)}, tmp_path / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(1000)}, tmp_path / name)
    write_json(tmp_path / "trainer_state.json", {})
    assert _is_complete(tmp_path)
    for name, damage in (("optimizer.pt", flip), ("adapter_model.safetensors", half), ("trainer_state.json", half)):
        written = (tmp_path / name).read_bytes()
        damage(tmp_path / name)
        assert not _is_complete(tmp_path), name
        (tmp_path / name).write_bytes(written)
    assert _is_complete(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


# --- memory of the machine


def starved(job: Job, needs: int) -> Json:
    """Work that fits only when batches are cut into so many parts."""
    if job.resident.batch_divisor < needs:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")
    return {"done": True}


@pytest.mark.parametrize(("needs", "state"), [(1, "finished"), (4, "finished"), (2 * MOST_DIVISION, "failed")])
def test_a_job_short_of_memory_is_done_with_smaller_batches(run_dir: Path, needs: int, state: str) -> None:
    folder = run_dir / "jobs" / "hungry"
    write_json(folder / "spec.json", {"function": "tests.test_mending:starved", "args": {"needs": needs}, "inputs": {}})
    resident = Resident(run_dir)
    answer = _serve(folder, resident)
    assert answer["state"] == state
    assert resident.batch_divisor == 1, "the next job begins with whole batches"
    if state == "failed":
        assert not (folder / "result.json").exists() and "can't allocate" in answer["error"]
    else:
        assert read_json(folder / "result.json").get("batch_divisor", 1) == needs
        assert ("why" in answer) is (needs > 1)


def test_a_worker_outlives_a_full_disk(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run_dir / "jobs" / "key"
    (job / "result.json").unlink()
    write_json(job / "spec.json", read_json(job / "spec.json") | {"args": {"needs": 1}})
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("tools.jobs.worker.write_json", full)
    monkeypatch.setattr("tools.jobs.job.write_json", full)
    answer = _serve(job, Resident(run_dir))
    assert full.called and answer["state"] == "failed" and "No space left" in answer["error"]


def test_what_counts_as_too_little_memory() -> None:
    import torch

    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)
    assert is_out_of_memory(real.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError("out of memory"))


def test_smaller_batches_are_the_same_work(tiny_model: Path, run_dir: Path) -> None:
    whole, cut = (list(_batches([[1] * 8] * 6000, Sampling(8), parts)) for parts in (1, 4))
    assert sorted(i for batch, _ in whole for i in batch) == sorted(i for batch, _ in cut for i in batch)
    assert max(len(batch) for batch, _ in cut) <= max(len(batch) for batch, _ in whole) // 4 + 1
    resident = Resident(run_dir)
    resident.__dict__["local_engine"] = TransformersEngine(tiny_model, "float32")
    settings = {"method": "lora", "epochs": 1, "learning_rate": 0.1, "schedule": "linear"}
    sizes = []
    for resident.batch_divisor in (1, 2, 8):
        made = arguments(Job(run_dir / "jobs" / "key", resident), settings, 0)
        sizes.append(made["per_device_train_batch_size"] * made["gradient_accumulation_steps"])
    assert sizes == [16, 16, 16], "an update is made from as many examples"


# --- the vector memory


@pytest.mark.parametrize("how", ["whole", "gone", "rubbish", "an entry short"])
def test_the_vector_memory_is_made_again_from_the_files(run_dir: Path, how: str) -> None:
    from chromadb.api.shared_system_client import SharedSystemClient

    embedder = resolve_embedder(MODELS_DIR)
    if how != "gone":
        memory: Any = open_memory(run_dir, embedder)
        assert memory.holds(EXAMPLES, [row["id"] for row in ROWS])
        memory.upsert("notes", ["n1"], memory.embed(["note"]), ["note"], [{"n": 1}])
        if how == "an entry short":
            memory._collection(EXAMPLES).delete(ids=["r3"])
    if how == "rubbish":
        shutil.rmtree(run_dir / "memory")
        (run_dir / "memory").mkdir()
        (run_dir / "memory" / "chroma.sqlite3").write_bytes(b"rubbish" * 1000)
    SharedSystemClient.clear_system_cache()  # as in another process
    again: Any = open_memory(run_dir, embedder)
    assert again.holds(EXAMPLES, [row["id"] for row in ROWS])
    found = again.neighbours(EXAMPLES, again.embed(["What is 3 and 1?"]), 1)
    assert found[0][0][0] == "r3"
    assert found[0][0][3] == {"difficulty": "d", "item_id": "3", "region": -1, "verdict": "none"}
    assert again.holds("notes", ["n1"]) is (how == "whole"), "what was in order is not made again"
