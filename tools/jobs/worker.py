"""The worker process: holds the models and runs one job after the other. `python -m tools.jobs.worker <run folder>`.

Reads job keys from standard input, one a line, and writes each job's result into its folder. It ends when standard
input closes, that is when the agent is gone, so that nothing of a killed run stays behind.
"""

import fcntl
import json
import os
import sys
import threading
import traceback
from functools import cached_property
from pathlib import Path
from typing import Any

from memory.records import read_json, write_json
from tools.contract import ToolError
from tools.jobs.job import run_job


class Resident:
    """What stays in the worker's memory between jobs. Everything is made when first asked for."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.settings: dict[str, Any] = read_json(run_dir / "worker.json")
        """Written by the agent: model_dir, embedder_dir, engine, dtype, task, seed, system_prompt."""
        self.trained_tokens = 0

    @cached_property
    def engine(self) -> Any:
        """The engine that generates (`tools.engines.base.Engine`)."""
        if self.settings["engine"] == "transformers":
            return self.local_engine
        from tools.engines.openai_engine import OpenAIEngine

        url, _, model = self.settings["engine"].removeprefix("openai:").partition("#")
        return OpenAIEngine(url, model or None, os.environ.get("OPENAI_API_KEY"))

    @cached_property
    def local_engine(self) -> Any:
        """The transformers engine: generation by default, and always what trains and plans."""
        from tools.engines.transformers_engine import TransformersEngine, limit_threads

        limit_threads()
        return TransformersEngine(Path(self.settings["model_dir"]), self.settings["dtype"])

    @cached_property
    def memory(self) -> Any:
        """The vector memory of this run (`memory.vectors.VectorMemory`)."""
        from memory.vectors import VectorMemory

        return VectorMemory(self.run_dir / "memory", Path(self.settings["embedder_dir"]))

    @cached_property
    def task(self) -> Any:
        """The task, for its training stream and seed examples (`tools.tasks.base.Task`)."""
        from tools.tasks import load_task

        return load_task(self.settings["task"])

    @cached_property
    def scorer(self) -> Any:
        """The task's scorer in its bounded child process, started."""
        from tools.tasks.scoring import ScorerProcess

        return ScorerProcess(self.task.scorer).__enter__()

    @property
    def tokens_processed(self) -> int:
        """Tokens processed since the worker started, all engines and training together."""
        engines = {self.__dict__[name] for name in ("engine", "local_engine") if name in self.__dict__}
        return self.trained_tokens + sum(engine.tokens_processed for engine in engines)


def warm_up(job: Any) -> dict[str, Any]:
    """Load the model and say what runs here (the first job of a run)."""
    engine = job.resident.engine
    return {"identity": engine.identity()}


def main() -> None:
    """Serve jobs until standard input closes."""
    run_dir = Path(sys.argv[1])
    lock = (run_dir / "worker.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # an orphan of a killed agent may still be ending
    keys, answers = sys.stdin, os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print; the answers have their own pipe
    resident = Resident(run_dir)
    for key in _lines_until_closed(keys):
        answers.write(json.dumps({"key": key} | _serve(run_dir / "jobs" / key, resident)) + "\n")
        answers.flush()


def _serve(folder: Path, resident: Resident) -> dict[str, str]:
    # The one broad except of this process: a failed job is recorded and told, and the agent decides what it means.
    try:
        run_job(folder, resident)
        return {"state": "finished"}
    except Exception as error:
        traceback.print_exc()
        kind = "tool_error" if isinstance(error, ToolError) else "failed"
        message = str(error) if kind == "tool_error" else f"{type(error).__name__}: {error}"
        write_json(folder / "status.json", {"state": kind, "error": message, "trace": traceback.format_exc()[-4000:]})
        return {"state": kind, "error": message}


def _lines_until_closed(stream: Any) -> Any:
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
