"""What processes take of this machine, what of its GPUs can be given back, and what is done every few seconds."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

BEAT_S = 2.0
"""How often what was spent is written down: a kill loses no more."""


@contextlib.contextmanager
def repeated(action: Callable[[], None], every_s: float = BEAT_S) -> Iterator[None]:
    """Do something now, every so many seconds on a thread, and when the block ends, also by an error.

    An OSError of it is passed over: a full disk is told by whoever writes what matters.
    """
    ended = threading.Event()

    def act() -> None:
        with contextlib.suppress(OSError):
            action()

    def repeat() -> None:
        while not ended.wait(every_s):
            act()

    act()
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        act()


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process and of all that it started; 0.0 when it is gone."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:2])
    return total


def started_ticks(pid: int) -> int | None:
    """Return when a process began, in ticks since the machine started: with its id its name. None when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])


def num_memory_kills() -> int:
    """Return how many processes the kernel has ended for want of memory; 0 where it does not tell."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def num_gpus() -> int:
    """Return how many NVIDIA GPUs this process was given, whether or not torch is loaded."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def give_back_gpu_memory() -> None:
    """Return what torch, where it is loaded, keeps of earlier work."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
