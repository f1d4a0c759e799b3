"""A job: one heavy function call, named by the hash of what goes into it, whose result is a file.

<run>/jobs/<key>/ spec.json (function, args), status.json, progress.json, result.json (written last), and whatever the
function keeps there to resume from. A finished job is never run twice; an unfinished one goes on from its folder.

status.json holds, under "spent", what all attempts took so far, written every few seconds: an attempt that is killed
belongs to the job's cost. Its tokens are not in there: work that is done again costs its tokens once. Those of an
attempt that ended by an error are, until it is begun again.
"""

import importlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from memory.records import content_id, read_json, write_json
from tools.jobs.machine import repeated

Json = dict[str, Any]


class Usage(NamedTuple):
    """What a piece of work cost."""

    wall_s: float
    cpu_s: float
    tokens: int
    """Tokens the model processed; a trained token counts three times, for its forward and backward passes."""
    gpu_s: float = 0.0
    """Wall seconds, once for each GPU of the machine."""
    input_tokens: int = 0
    """Tokens that the engine's endpoint read, and"""
    output_tokens: int = 0
    """wrote: what it may ask money for. 0 for models of this machine."""
    teacher_input_tokens: int = 0
    """The same of the teacher's endpoint."""
    teacher_output_tokens: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum of two costs."""
        return Usage(*(mine + more for mine, more in zip(self, other, strict=True)))  # type: ignore[arg-type]

    def minus(self, other: "Usage") -> "Usage":
        """Return what this cost is beyond another."""
        return Usage(*(mine - less for mine, less in zip(self, other, strict=True)))  # type: ignore[arg-type]


NO_USAGE = Usage(0.0, 0.0, 0)
MOST_DIVISION = 8
"""Out of memory with an eighth of the batch, a job fails."""


@dataclass(frozen=True)
class JobSpec:
    """What a job does. The key covers all of it, so equal work has one folder."""

    function: str
    """"module.path:name" of a function (job: Job, **args) -> JSON dict, imported in the worker."""
    args: Json
    inputs: Json
    """What the result depends on beside the arguments: ids of artifacts, the fingerprint of the configuration."""

    @property
    def key(self) -> str:
        """Name of the job's folder."""
        return content_id([self.function, self.args, self.inputs])

    def to_json(self) -> Json:
        """Return the spec as written to spec.json."""
        return {"function": self.function, "args": self.args, "inputs": self.inputs}

    @classmethod
    def load(cls, folder: Path) -> "JobSpec":
        """Read spec.json."""
        return cls(**read_json(folder / "spec.json"))


class Job:
    """What a job's function gets in the worker: its folder, the run, the resident models, a place to tell progress."""

    def __init__(self, folder: Path, resident: Any) -> None:
        self.folder = folder
        self.run_dir = folder.parent.parent
        self.resident = resident
        """The worker's `tools.jobs.worker.Resident`: engine, memory, task, scorer, made when first asked for."""
        self.earlier_tokens = 0
        """Tokens of what an earlier attempt finished and this one goes on from: they belong to the job's cost."""
        self._last_report_s = 0.0

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Tell how far the job is (for people; written at most five times a second)."""
        now = time.monotonic()
        if now - self._last_report_s < 0.2 and done < total:
            return
        self._last_report_s = now
        path = self.folder / "progress.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f'{{"done": {done}, "total": {total}, "metrics": {_numbers(metrics)}}}')
        temporary.replace(path)


def run_job(folder: Path, resident: Any) -> None:
    """Run a job in this process and write its result; does nothing when it is finished. Errors go up."""
    if (folder / "result.json").exists():
        return
    spec = JobSpec.load(folder)
    status = folder / "status.json"
    known = read_json(status) if status.exists() else {}
    earlier = Usage(**known.get("spent", NO_USAGE._asdict()))._replace(tokens=0)
    head = {"pid": os.getpid(), "attempts": known.get("attempts", 0) + 1}
    started, cpu_s, tokens, paid = time.monotonic(), resident.cpu_s, resident.tokens_processed, _paid_tokens(resident)

    def spent(num_tokens: int = 0) -> Usage:
        wall_s = time.monotonic() - started
        now_paid = (now - before for now, before in zip(_paid_tokens(resident), paid, strict=True))
        gpu_s = wall_s * getattr(resident, "num_gpus", 0)
        return earlier.plus(Usage(wall_s, resident.cpu_s - cpu_s, num_tokens, gpu_s, *now_paid))

    def spent_in_all() -> Usage:
        return spent(resident.tokens_processed - tokens + job.earlier_tokens)

    def tell(state: str = "running", usage: Usage | None = None) -> None:
        write_json(status, {"state": state} | head | {"spent": (usage or spent())._asdict()})

    job = Job(folder, resident)
    try:
        with repeated(tell):
            value = load_function(spec.function)(job, **spec.args)
    except Exception:
        with suppress(OSError):  # a full disk is told by whoever writes what matters
            tell("failed", spent_in_all())
        raise
    usage = spent_in_all()
    halved = {} if (divisor := getattr(resident, "batch_divisor", 1)) == 1 else {"batch_divisor": divisor}
    write_json(folder / "result.json", {"value": value, "usage": usage._asdict()} | halved)
    tell("finished", usage)


def _paid_tokens(resident: Any) -> tuple[int, int, int, int]:
    return getattr(resident, "paid_tokens", (0, 0, 0, 0))


def load_function(name: str) -> Any:
    """Import "module:function"."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _numbers(metrics: dict[str, float]) -> str:
    return "{" + ", ".join(f'"{name}": {value:.6g}' for name, value in metrics.items()) + "}"
