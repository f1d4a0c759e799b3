"""What processes take of this machine, and what of its GPUs can be given back."""

import contextlib
import gc
import sys
from pathlib import Path

import psutil


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process and of all that it started; 0.0 when it is gone."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:2])
    return total


def num_gpus() -> int:
    """Return how many NVIDIA GPUs this process was given, whether or not torch is loaded."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def give_back_gpu_memory() -> None:
    """Return what torch, where it is loaded, keeps of earlier work."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
