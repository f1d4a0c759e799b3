"""Breaks one thing in the processes of a run: for bench/faults.py, which puts this folder first on PYTHONPATH.

Python imports this file when it starts. FAULT names what breaks; the product knows nothing of it. What breaks once
leaves a mark in the run's folder for temporary files, the only place that the worker may write to besides artifacts.
"""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

FAULT = os.environ.get("AUTODIDACT_BENCH_FAULT", "")
IN_WORKER = "tools.jobs.worker" in sys.orig_argv


def module(name: str) -> Any:
    """Import what is to be broken."""
    return importlib.import_module(name)


def once() -> bool:
    """Whether this fault has not happened yet."""
    mark = Path(os.environ["TMPDIR"]) / "fault-happened"
    if mark.exists():
        return False
    mark.touch()
    return True


def no_memory_in_training() -> None:
    """Let training ask for a petabyte while its batch is whole."""
    torch = module("torch")
    trainer = module("tools.optimize.sft_worker").CompletionTrainer
    compute = trainer.compute_loss

    def starved(self: Any, *args: Any, **keywords: Any) -> Any:
        if self.args.per_device_train_batch_size == 16:
            torch.empty(1 << 50)  # torch's own words for what happens then
        return compute(self, *args, **keywords)

    trainer.compute_loss = starved


def no_memory_in_generation() -> None:
    """Let sampling ask for a petabyte, once."""
    torch = module("torch")
    engine = module("tools.engines.transformers_engine")
    sample = engine.sample_branches

    def starved(*args: Any, **keywords: Any) -> Any:
        if keywords["num_samples"] > 1 and once():
            torch.empty(1 << 50)
        return sample(*args, **keywords)

    engine.sample_branches = starved


def nan_loss() -> None:
    """Let the third step of a training have no loss, once."""
    trainer = module("tools.optimize.sft_worker").CompletionTrainer
    compute = trainer.compute_loss

    def broken(self: Any, *args: Any, **keywords: Any) -> Any:
        loss = compute(self, *args, **keywords)
        return loss * float("nan") if self.state.global_step == 2 and once() else loss

    trainer.compute_loss = broken


def hung_job() -> None:
    """Let sampling wait for ever, once."""
    engine = module("tools.engines.transformers_engine")
    sample = engine.sample_branches

    def stuck(*args: Any, **keywords: Any) -> Any:
        if keywords["num_samples"] > 1 and once():
            time.sleep(3600)
        return sample(*args, **keywords)

    engine.sample_branches = stuck


def short_timeout() -> None:
    """Let the endpoint answer in a second (16 requests at a time), or be asked again soon."""
    module("tools.engines.openai_engine").OpenAIEngine.__init__.__defaults__ = (
        1.0,
        16,
        (0.5, 0.5, 0.5, 0.5),
    )


def often_checkpoints() -> None:
    """Let every step of a training be kept."""
    module("tools.optimize.sft_worker").CHECKPOINT_SECONDS = 0.0


def clock(shift_s: float) -> None:
    """Move the clock on the wall."""
    datetime = module("datetime")
    real_time, real, shift = time.time, datetime.datetime, datetime.timedelta(seconds=shift_s)
    module("time").time = lambda: real_time() + shift_s

    now = classmethod(lambda cls, tz=None: real.now(tz) + shift)
    if not IN_WORKER:  # there it is a native library, not the run, that dies of a datetime that is not Python's own
        datetime.datetime = type("datetime", (real,), {"now": now})


if FAULT.startswith("clock:"):
    clock(float(FAULT.removeprefix("clock:")))
elif FAULT and IN_WORKER:
    globals()[FAULT]()
