"""The training job, top to bottom: rows -> tokens -> trainer -> trial -> checkpoints -> candidate.

Runs in the worker process; on a machine with several GPUs the worker launches it under `accelerate`, one process a GPU
(`accelerate launch -m tools.optimize.sft_worker <job folder>`). Goes on from its last complete checkpoint.
Writes models/<id>/ (PEFT adapter or full safetensors), model.json last. Another trainer (`make_trainer`, see
dpo_worker.py) shares all of this.
"""

import copy
import ctypes
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from memory.records import content_id, read_json
from memory.store import BASE, RunStore
from tools.contract import Json, ToolError
from tools.engines.base import build_messages
from tools.engines.models import WEIGHT_FILES, fingerprint
from tools.evaluate.costs import REHEARSAL_SHARE, TRAINED_TOKEN_COST
from tools.jobs.job import Job
from tools.optimize import row_attention
from tools.optimize.adapters import ADAPTERS
from tools.optimize.collate import IGNORED, PrefixCollator, tokenise
from tools.optimize.fused_lora import fuse
from tools.optimize.rehearsal import rehearsal
from tools.optimize.report_to import reporting

BATCH_EXAMPLES = 16
LORA_RANK = 16
TRIAL_STEPS = 4
"""The first steps are a trial: a loss that is not finite or has exploded by then ends the training."""
CHECKPOINT_SECONDS = 30.0
RESULT = ("num_examples", "num_steps", "loss_first", "loss_last", "train_s")
FULL_LEARNING_RATE_FACTOR = 0.05


def completion_trainer(job: Job, rows: list[Json], settings: Json, seed: int, model: Any, watch: "Watch") -> Any:
    """Return the trainer of supervised fine-tuning."""
    engine, system_prompt = job.resident.local_engine, job.resident.settings["system_prompt"]
    tokens = [
        tokenise(
            engine.tokenizer,
            build_messages(row["prompt"], [], system_prompt),
            row["completion"],
            row.get("whole", True),
        )._asdict()
        for row in rows
    ]
    return CompletionTrainer(
        model=model,
        args=SFTConfig(**arguments(job, settings, seed)),
        train_dataset=Dataset.from_list(tokens),
        processing_class=engine.tokenizer,
        data_collator=PrefixCollator(),
        callbacks=[watch],
    )


def run_training(
    make_trainer: Callable[..., Any],
    job: Job,
    model_id: str,
    settings: Json,
    parent: str,
    datasets: list[str],
    rehearse: list[str],
    seed: int,
    beside: Sequence[str] = (),
) -> Json:
    """Train and save one candidate with the trainer that make_trainer builds (see `completion_trainer`).

    Returns {"model", "num_examples", "num_steps", "loss_first", "loss_last", "train_s"}.
    rehearse: datasets of which some rows are read again; beside: those of which all are.

    The trainer's count_tokens() returns the tokens that were trained on; its `notes`, if any, go into the manifest.
    """
    job.resident.make_room()
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        return train_in_processes(job, torch.cuda.device_count())

    # --- Act 1: the rows
    store = RunStore(job.run_dir)
    known = store.get("models", model_id)
    if known is not None:  # killed between the manifest and the job's result
        job.earlier_tokens = TRAINED_TOKEN_COST * known["num_tokens"]
        return {"model": model_id} | {name: known[name] for name in RESULT}
    engine = job.resident.local_engine
    rows_of = {name: store.rows("data", name, "train.jsonl") for name in dict.fromkeys([*datasets, *rehearse, *beside])}
    rows = [row for name in datasets for row in rows_of[name]]
    earlier = [row for name in rehearse for row in rows_of[name]]
    rows += rehearsal(earlier, int(REHEARSAL_SHARE * len(rows)), seed)
    rows += [row for name in beside for row in rows_of[name]]

    # --- Act 2: the model to start from
    engine.use_model(None)
    parent_dir = store.model_dir(parent)
    parent_method = "base" if parent == BASE else store.get("models", parent)["settings"]["method"]  # type: ignore[index]
    torch.manual_seed(seed)  # before the adapter is drawn
    model = starting_model(engine, parent_dir, parent_method, settings["method"])

    # --- Act 3: trainer, trial, training
    started = time.monotonic()
    trainer = make_trainer(job, rows, settings, seed, model, Watch(job, settings["learning_rate"]))
    checkpoints = job.folder / "checkpoints"
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        raise ToolError(f"the loss is not finite at learning rate {settings['learning_rate']}; choose a lower one")
    num_tokens = trainer.count_tokens()
    job.resident.trained_tokens += TRAINED_TOKEN_COST * num_tokens

    # --- Act 4: save the candidate, manifest last; of several processes the first does it
    folder = store.folder("models", model_id)
    if trainer.is_world_process_zero():
        _save(trainer.accelerator.unwrap_model(trainer.model), engine.tokenizer, folder, settings["method"])
    result = {
        "model": model_id,
        "num_examples": len(trainer.train_dataset),
        "num_steps": trainer.state.global_step,
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
        "train_s": round(time.monotonic() - started, 1),
    }
    manifest = (
        result
        | {
            "parent": parent,
            "dataset": datasets[-1],
            "datasets": datasets,
            "rehearse": [*rehearse, *beside],
            "data_hashes": {name: content_id(found) for name, found in rows_of.items()},
            "settings": settings,
            "seed": seed,
            "num_tokens": num_tokens,
            "losses": [round(loss, 4) for loss in losses],
        }
        | getattr(trainer, "notes", {})
    )
    if trainer.is_world_process_zero():
        manifest["weights"] = fingerprint(folder, WEIGHT_FILES)
        store.put("models", model_id, {key: value for key, value in manifest.items() if key != "model"})
        shutil.rmtree(checkpoints, ignore_errors=True)
    return result


train = partial(run_training, completion_trainer)
"""The job of supervised fine-tuning."""


class CompletionTrainer(SFTTrainer):
    """SFTTrainer that computes logits only where the loss is taken: half of a short prompt's work is the vocabulary."""

    def count_tokens(self) -> int:
        """Return how many tokens were trained on, also before a resume; what a batch's prompts share counts once."""
        return int(self.state.num_input_tokens_seen)

    def compute_loss(
        self,
        model: Any,
        inputs: Json,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean negative log-likelihood of the completion tokens of a PrefixCollator batch."""
        assert not return_outputs, "training only: nothing evaluates inside the trainer"
        labels_T = inputs["labels"][0]
        predicting = (labels_T[1:] != IGNORED).nonzero()[:, 0]
        features = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**features, use_cache=False, logits_to_keep=predicting).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.float(), labels_T[predicting + 1], reduction="sum")
        if num_items_in_batch is None:
            return loss / len(predicting)
        # Counted over all processes, whose gradients are averaged.
        return loss / num_items_in_batch * self.accelerator.num_processes


class Watch(TrainerCallback):
    """Tells progress, stops a diverging trial, asks for a checkpoint every CHECKPOINT_SECONDS."""

    def __init__(self, job: Job, learning_rate: float) -> None:
        self.job = job
        self.learning_rate = learning_rate
        """As the planner chose it, for the error message."""
        self.first_loss: float | None = None
        self.last_checkpoint_s = time.monotonic()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the loss of each logged step."""
        loss = kwargs["logs"].get("loss")
        if loss is None:
            return
        self.first_loss = self.first_loss or loss
        exploded = loss > 3 * self.first_loss + 1 and state.global_step <= 2 * TRIAL_STEPS
        if not math.isfinite(loss) or exploded:
            raise ToolError(
                f"training diverged in step {state.global_step} (loss {self.first_loss:.2f} -> {loss:.2f}) at learning "
                f"rate {self.learning_rate:g}; choose a lower one"
            )
        if state.is_world_process_zero:
            self.job.progress(state.global_step, state.max_steps, loss=loss)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Save by time, not by step: a kill costs the same on a slow and on a quick machine."""
        if time.monotonic() - self.last_checkpoint_s > CHECKPOINT_SECONDS and state.global_step < state.max_steps:
            control.should_save = True
            self.last_checkpoint_s = time.monotonic()
        return control


def starting_model(engine: Any, parent_dir: Path | None, parent_method: str, method: str) -> Any:
    """Return a trainable model: an adapter on a copy of the base, or a full copy in fp32.

    "rslora" divides the update by the root of the rank (arXiv 2312.03732), "qlora" trains on the base in four bits
    (arXiv 2305.14314); what is served is the base as it is, with the adapter merged.
    """
    from tools.engines.transformers_engine import load_weights, merge_adapter

    if method in ADAPTERS:
        base = in_four_bits(engine) if method == "qlora" else copy.deepcopy(engine.base)
        base.set_attn_implementation(row_attention.NAME)
        adapted: Any
        if parent_method in ADAPTERS:
            adapted = PeftModel.from_pretrained(base, str(parent_dir), is_trainable=True)
        else:
            config = LoraConfig(
                r=LORA_RANK,
                lora_alpha=2 * LORA_RANK,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
                use_rslora=method == "rslora",
            )
            adapted = get_peft_model(base, config)
        if engine.device.type == "cpu":
            fuse(adapted)
        return adapted
    if parent_method == "full":
        assert parent_dir is not None, "a full parent has a folder"
        model = load_weights(parent_dir, torch.float32, engine.device)
    else:
        model = copy.deepcopy(engine.base).float()
        if parent_method in ADAPTERS:
            assert parent_dir is not None, "an adapter has a folder"
            model = merge_adapter(model, parent_dir)
    model.set_attn_implementation(row_attention.NAME)
    return model.to(engine.device).requires_grad_(True)


def in_four_bits(engine: Any) -> Any:
    """Load the base model in NF4; needs a GPU and bitsandbytes."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    form = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=engine.dtype)
    name = engine.base.name_or_path
    return AutoModelForCausalLM.from_pretrained(
        name, quantization_config=form, dtype=engine.dtype, device_map={"": engine.device}, use_safetensors=True
    )


def arguments(job: Job, settings: Json, seed: int) -> Json:
    """Return the arguments of a TRL configuration that all trainers share."""
    on_gpu, engine_dtype = torch.cuda.is_available(), job.resident.local_engine.dtype
    factor = 1.0 if settings["method"] in ADAPTERS else FULL_LEARNING_RATE_FACTOR
    report_to = "" if settings.get("thrown_away") else job.resident.settings.get("report_to", "")
    parts = job.resident.batch_divisor  # short of memory: the same batches, summed up from smaller ones
    return dict(
        output_dir=str(job.folder / "checkpoints"),
        per_device_train_batch_size=max(1, BATCH_EXAMPLES // parts // int(os.environ.get("WORLD_SIZE", "1"))),
        gradient_accumulation_steps=parts,
        num_train_epochs=settings.get("epochs", 1),
        learning_rate=settings["learning_rate"] * factor,
        lr_scheduler_type=settings["schedule"],
        warmup_steps=0.05,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        max_length=None,
        use_cpu=not on_gpu,
        bf16=engine_dtype == torch.bfloat16 and (on_gpu or settings["method"] == "full"),
        gradient_checkpointing=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN loss is logged as 0 and nobody notices
        save_strategy="no",
        save_total_limit=2,
        include_num_input_tokens_seen=True,
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
        **reporting(RunStore(job.run_dir), report_to, job.folder.name),
    )


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, method: str) -> None:
    """Write weights (and, for full weights, the tokenizer) to a temporary folder, then move it into place."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    if method in ADAPTERS:
        model.save_pretrained(temporary)
    else:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)
    temporary.rename(folder)


def last_complete_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end (the trainer writes trainer_state.json last)."""
    complete = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def _is_complete(checkpoint: Path) -> bool:
    """Whether all is there, written to its end and as it was written (torch's files are archives with check sums)."""
    needed = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "*.safetensors")  # one rng_state per process
    try:
        read_json(checkpoint / "trainer_state.json")
        for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return False
        for path in checkpoint.glob("*.safetensors"):
            safe_open(path, framework="pt").keys()
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):  # not written yet, half of it, or damaged
        return False
    return all(any(checkpoint.glob(name)) for name in needed)


def train_in_processes(job: Job, count: int) -> Json:
    """Run this same job under accelerate, one process per GPU (or so many on a CPU); return what the first wrote."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count)]
    command += [] if torch.cuda.is_available() else ["--cpu"]
    command += ["-m", "tools.optimize.sft_worker", str(job.folder)]
    told = job.folder / "trained.json"
    told.unlink(missing_ok=True)
    done = subprocess.run(command, preexec_fn=_die_with_parent, check=False)
    result: Json = json.loads(told.read_text()) if told.exists() else {}
    if "tool_error" in result:
        raise ToolError(result["tool_error"])
    done.check_returncode()
    model = RunStore(job.run_dir).get("models", result["model"])
    assert model is not None, "the first process wrote the manifest before its result"
    job.resident.trained_tokens += TRAINED_TOKEN_COST * model["num_tokens"]
    return result


def _main() -> None:
    from tools.jobs.job import JobSpec, load_function
    from tools.jobs.worker import Resident

    folder = Path(sys.argv[1])
    job = Job(folder, Resident(folder.parent.parent))
    _die_with_parent()
    try:
        spec = JobSpec.load(folder)
        result = load_function(spec.function)(job, **spec.args)
    except ToolError as problem:
        result = {"tool_error": str(problem)}
    if os.environ.get("RANK", "0") == "0":
        (folder / "trained.json").write_text(json.dumps(result))


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it: an orphan would write into checkpoints."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _main()
