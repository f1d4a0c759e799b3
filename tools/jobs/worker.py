"""The worker process: holds the models and runs one job after the other. `python -m tools.jobs.worker <run folder>`.

Reads from standard input, one a line, a job's key and into how many parts its batches are cut, and writes each job's
result into its folder. It ends when standard input closes, that is when the agent is gone, so that nothing of a killed
run stays behind. worker.lock names it by process id and start: the next agent ends one that does not end by itself.
"""

import fcntl
import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from memory.lessons import lessons_file, lock_file
from memory.records import read_json, write_json
from tools.contract import ToolError
from tools.jobs import landlock
from tools.jobs.job import MOST_DIVISION, run_job
from tools.jobs.machine import give_back_gpu_memory, num_gpus, started_ticks

READABLE = ("evals", "policies", "task", "worker.json", "referee/evaluation_ids.json")
WRITABLE = ("jobs", "data", "models", "lessons", "memory", "metrics", "tmp")
"""What the worker sees of the run folder: not the trace, the verdicts or the answers of evaluation items."""
_CACHES = ("~/.cache", "~/.triton", "~/.nv")


class Resident:
    """What stays in the worker's memory between jobs. Everything is made when first asked for."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.settings: dict[str, Any] = read_json(run_dir / "worker.json")
        """Written by the agent: model_dir, embedder_dir, engine, dtype, task (without what is held out), system_prompt,
        readable and closed (places beside the run folder)."""
        self.trained_tokens = 0
        self.batch_divisor = 1
        """Into how many parts batches are cut in this job, because memory did not hold them."""

    @cached_property
    def engine(self) -> Any:
        """The engine that generates (`tools.engines.base.Engine`)."""
        if self.settings["engine"] == "transformers":
            return self.local_engine
        if self.settings["engine"] == "vllm":
            from tools.engines.transformers_engine import dtype_name
            from tools.engines.vllm_engine import VllmEngine

            log = self.run_dir / "jobs" / "vllm.log"
            return VllmEngine(Path(self.settings["model_dir"]), dtype_name(self.settings["dtype"]), log)
        from tools.engines.openai_engine import OpenAIEngine

        url, _, model = self.settings["engine"].removeprefix("openai:").partition("#")
        return OpenAIEngine(url, model or None, os.environ.get("OPENAI_API_KEY"))

    @cached_property
    def local_engine(self) -> Any:
        """The transformers engine: generation by default, and always what trains and plans."""
        from tools.engines.transformers_engine import TransformersEngine, limit_threads

        limit_threads()
        return TransformersEngine(Path(self.settings["model_dir"]), self.settings["dtype"], lambda: self.batch_divisor)

    @cached_property
    def teacher(self) -> Any:
        """The endpoint that the user named with --teacher (`tools.engines.teacher.Teacher`)."""
        from memory.store import RunStore
        from tools.acquire.teacher import known_teacher
        from tools.engines.teacher import Teacher

        named = known_teacher(RunStore(self.run_dir))
        assert named is not None, "the tool is legal only with a teacher"
        return Teacher(named["address"], named["model"])

    @cached_property
    def memory(self) -> Any:
        """The vector memory of this run (`memory.vectors.VectorMemory`), repaired when it lacks something."""
        from memory.vectors import open_memory

        return open_memory(self.run_dir, Path(self.settings["embedder_dir"]))

    @cached_property
    def task(self) -> Any:
        """The task, for its training stream and seed examples (`tools.tasks.base.Task`)."""
        from tools.tasks import load_task

        return load_task(self.settings["task"])

    @cached_property
    def scorer(self) -> Any:
        """The task's scorer, started: in its bounded child process, or a judge."""
        from tools.tasks.judge import open_scorer

        return open_scorer(self.task.scorer, self.ask_base).__enter__()

    def ask_base(self, prompts: list[str]) -> list[str]:
        """Let the base model reply to a judge's prompts; whoever generates next chooses the model again."""
        from tools.tasks.judge import ask_engine

        self.local_engine.use_model(None)
        return ask_engine(self.local_engine, prompts)

    def make_room(self) -> None:
        """Give back the memory of an engine that is a process of its own: a training needs it."""
        close = getattr(self.__dict__.get("engine"), "close", None)
        if close is not None:
            close()

    def halve_batches(self) -> None:
        """From now on, in this job, compute half as much at once; give back what the last attempt left in memory."""
        self.batch_divisor *= 2
        give_back_gpu_memory()

    @property
    def tokens_processed(self) -> int:
        """Tokens processed since the worker started, all engines and training together."""
        names = ("engine", "local_engine", "teacher")
        engines = {self.__dict__[name] for name in names if name in self.__dict__}
        return self.trained_tokens + sum(engine.tokens_processed for engine in engines)

    @property
    def paid_tokens(self) -> tuple[int, int, int, int]:
        """Tokens that the engine's endpoint read and wrote since the worker started, then the teacher's; 0 without."""
        counts: list[int] = []
        for name in ("engine", "teacher"):
            usages = getattr(self.__dict__.get(name), "usages", [])
            counts += sum(usage.prompt_tokens for usage in usages), sum(usage.completion_tokens for usage in usages)
        return counts[0], counts[1], counts[2], counts[3]

    @property
    def cpu_s(self) -> float:
        """Processor time of this process and of an engine's own."""
        return time.process_time() + getattr(self.__dict__.get("engine"), "cpu_s", 0.0)

    @property
    def num_gpus(self) -> int:
        """GPUs of the machine, as far as torch was loaded to use them or a server of ours does."""
        if self.settings.get("engine") == "vllm":
            return num_gpus()
        cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)  # a job may be in the middle of importing it
        return int(cuda.device_count()) if hasattr(cuda, "device_count") else 0


def warm_up(job: Any) -> dict[str, Any]:
    """Load the model and say what runs here (the first job of a run)."""
    engine = job.resident.engine
    return {"identity": engine.identity()}


def main() -> None:
    """Serve jobs until standard input closes. Arguments: the run folder, and what may be written to beside it."""
    run_dir = Path(sys.argv[1])
    lock = (run_dir / "worker.lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX)  # an orphan of a killed agent may still be ending
    lock.truncate(0)
    lock.write(json.dumps({"pid": os.getpid(), "started": started_ticks(os.getpid())}))
    lock.flush()
    keys, answers = sys.stdin, os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print; the answers have their own pipe
    _confine(run_dir, [Path(name) for name in sys.argv[2:]])
    resident = Resident(run_dir)
    for line in lines_until_closed(keys):
        key, divisor = line.split()
        resident.batch_divisor = int(divisor)
        answers.write(json.dumps({"key": key} | _serve(run_dir / "jobs" / key, resident)) + "\n")
        answers.flush()


def _confine(run_dir: Path, beside: list[Path]) -> None:
    settings = read_json(run_dir / "worker.json")
    closed = [run_dir, *map(Path, settings.get("closed", [run_dir.parent]))]
    read = landlock.outside([*landlock.program_paths(), *map(Path, settings.get("readable", []))], closed)
    for place in (Path(settings[name]) for name in ("model_dir", "embedder_dir") if name in settings):
        # A model may come from an earlier run; what else is closed around it does not hold for its own folder.
        read += landlock.outside([place], [path for path in closed if not place.is_relative_to(path)])
    # CUDA writes the names of its threads into /proc; under `accelerate` they are other processes'.
    write = [*landlock.devices(), Path("/proc" if num_gpus() > 1 else "/proc/self"), *beside]
    write += [Path(name).expanduser() for name in _CACHES]
    write += [run_dir / name for name in WRITABLE] + [lessons_file(run_dir), lock_file(run_dir)]
    landlock.confine([*read, *(run_dir / name for name in READABLE)], write)


def _serve(folder: Path, resident: Resident) -> dict[str, str]:
    """Run a job; short of memory, with ever smaller batches, which its result and the answer say."""
    began = resident.batch_divisor
    # The one broad except of this process: a failed job is recorded and told, and the agent decides what it means.
    try:
        while True:
            try:
                run_job(folder, resident)
                return {"state": "finished"} | _less_memory(resident, began)
            except Exception as error:
                if not is_out_of_memory(error) or resident.batch_divisor >= MOST_DIVISION:
                    raise
                traceback.print_exc()
            resident.halve_batches()
    except Exception as error:
        traceback.print_exc()
        kind = "tool_error" if isinstance(error, ToolError) else "failed"
        message = str(error) if kind == "tool_error" else f"{type(error).__name__}: {error}"
        told = {"state": kind, "error": message, "trace": traceback.format_exc()[-4000:]}
        with suppress(OSError):  # on a full disk the answer alone tells it
            known = read_json(folder / "status.json") if (folder / "status.json").exists() else {}
            write_json(folder / "status.json", known | told)
        return {"state": kind, "error": message} | _less_memory(resident, began)
    finally:
        resident.batch_divisor = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a failure means that processor or GPU had too little memory for what was to be computed at once."""
    text = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))


def _less_memory(resident: Resident, began: int) -> dict[str, str]:
    divisor = resident.batch_divisor
    return {} if divisor == began else {"why": f"out of memory; done with batches of 1/{divisor} of the size"}


def lines_until_closed(stream: Any) -> Any:
    """Yield lines; end the whole process at once when the stream closes, also in the middle of a job."""
    import queue

    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line.strip())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


if __name__ == "__main__":
    main()
