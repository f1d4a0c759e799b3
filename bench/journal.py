"""What does it cost that a run can be killed anywhere: journal, trace and checkpoints, in time and on disk?

    .venv/bin/python -m bench.journal [--quick] [--json] [--steps 500]

The real loop (agent/graph.py) with LangGraph's checkpoints after each node, the trace, a record of each call and of
its job, all fsynced, around tools that do nothing; a random planner. So all of its time is book-keeping, that of
building situation and menu too. `ok`: so many steps take at most 50 MB, and a step at most 2 % of what one takes in the
default run (464 s for 9 steps, the quickest of three seeds in RESULTS.md), in the first tenth of the steps as in the
last: what is kept must not slow the loop down. --quick: 100 steps.
"""

import argparse
import sqlite3
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver

from agent.budget import Budget
from agent.config import RunConfig
from agent.console import Console
from agent.disk import folder_bytes
from agent.graph import build_graph, run_graph
from agent.metering import MeteredJobs
from agent.nodes import Services
from agent.planners.fixed import RandomPlanner
from agent.trace import Trace
from bench.common import Json, finish, machine, median
from memory.records import write_json
from memory.store import RunStore
from tools.contract import Jobs, Judge
from tools.jobs.job import Job, JobSpec, Usage, run_job

DEFAULT_RUN_S, DEFAULT_RUN_STEPS = 464.0, 9
MOST_SHARE, MOST_MB = 0.02, 50.0
GRID: dict[str, list[Any]] = {
    "num_items": [512, 1024, 1536], "samples_per_item": [32, 64], "temperature": [1.0, 1.2], "prompting": ["zero_shot"]
}  # fmt: skip
SUMMARY = "Let the champion answer new training items many times and keep what the scorer says is right. " * 2
TOOLS = ("generate_data", "curate_data", "finetune_model", "prefer_answers", "note_more", "look_again")


class IdleJobs:
    """Keeps the records of jobs that do nothing, as the worker does."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.fingerprint, self.pid = run_dir, "made up", None

    def folder(self, function: str, args: Json, inputs: Json | None = None) -> Path:
        """Return the folder of a job."""
        return self.run_dir / "jobs" / JobSpec(function, args, inputs or {}).key

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Usage]:
        """Write spec, status and result."""
        folder = self.folder(function, args, inputs)
        write_json(folder / "spec.json", JobSpec(function, args, inputs or {}).to_json())
        run_job(folder, SimpleNamespace(tokens_processed=0, cpu_s=0.0))
        return {}, Usage(0.0, 0.0, 0)


class IdleTools:
    """Offers six tools of the usual size, each of which runs one job that does nothing."""

    def __init__(self) -> None:
        self.num_calls = 0

    def offers(self) -> list[Json]:
        """Return the menu."""
        call = {"stage": "acquire", "summary": SUMMARY, "grid": GRID, "tokens": [1000] * 12}
        return [{"tool": name} | call for name in TOOLS]

    def call(self, name: str, args: Json, jobs: Jobs, referee: Judge) -> Json:
        """Do nothing, as a job."""
        self.num_calls += 1
        jobs.run("bench.journal:nothing", args | {"number": self.num_calls})
        counts = {key: 1000 + self.num_calls for key in ("num_items", "num_items_right", "num_samples", "num_right")}
        return {"dataset": f"{self.num_calls:016x}", "pass_rate": 0.25} | counts


def nothing(job: Job, **args: Any) -> Json:
    """Do nothing, and tell so."""
    job.progress(1, 1)
    return args


class TimedTrace(Trace):
    """A trace that remembers when each step was observed."""

    began: list[float]

    def emit(self, kind: str, *, step: int | None = None, **data: Any) -> Json:
        """Write one event."""
        if kind == "observed":
            self.began.append(time.perf_counter())
        return super().emit(kind, step=step, **data)


def main() -> None:
    """Run the steps and print their cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 steps")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    num_steps = 100 if arguments.quick else arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        trace = TimedTrace(run_dir)
        trace.began = []
        loop(run_dir, num_steps, trace)
        steps_s = [after - before for before, after in zip(trace.began, trace.began[1:], strict=False)]
        parts = {"checkpoints": "state.sqlite*", "trace": "events.jsonl", "calls": "calls", "jobs": "jobs"}
        bytes_of = {name: sum(map(size_of, run_dir.glob(pattern))) for name, pattern in parts.items()}
    step_s, default_s = sum(steps_s) / len(steps_s), DEFAULT_RUN_S / DEFAULT_RUN_STEPS
    tenth = len(steps_s) // 10
    first_s, last_s = median(steps_s[:tenth]), median(steps_s[-tenth:])
    total_mb = sum(bytes_of.values()) / 1e6
    share = max(step_s, last_s) / default_s
    print(f"machine: {machine()}")
    print(
        f"{num_steps} steps: {1000 * step_s:.1f} ms each (first tenth {1000 * first_s:.1f}, last {1000 * last_s:.1f})"
    )
    print(f"a step of the default run takes {default_s:.1f} s, so this is {100 * share:.2f} % of it (most: 2 %)")
    shown = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in bytes_of.items())
    print(f"on disk {total_mb:.1f} MB for {num_steps} steps (most: {MOST_MB:.0f} for 500): {shown}")
    ok = share <= MOST_SHARE and total_mb * 500 / num_steps <= MOST_MB
    figures = {"bench": "journal", "quick": arguments.quick, "machine": machine(), "steps": num_steps}
    figures |= {"step_ms": 1000 * step_s, "last_tenth_ms": 1000 * last_s, "share": share, "mb": total_mb}
    finish(figures | {"bytes": bytes_of, "ok": ok}, arguments.json)


def loop(run_dir: Path, num_steps: int, trace: Trace) -> None:
    """Run the real loop over tools that do nothing."""
    store, budget = RunStore(run_dir), Budget(None, None)
    jobs = MeteredJobs(IdleJobs(run_dir), budget)  # type: ignore[arg-type]
    idle: Any = IdleTools()
    config = RunConfig(planner="random", max_steps=num_steps)
    services = Services(config, store, jobs, Any, idle, RandomPlanner(0), budget, trace, Console(quiet=True), [])  # type: ignore[arg-type]
    services.referee = SimpleNamespace(remove_overlaps=None)  # type: ignore[assignment]
    connection = sqlite3.connect(run_dir / "state.sqlite", check_same_thread=False)
    thread = {"configurable": {"thread_id": "journal"}, "recursion_limit": 6 * num_steps + 20}
    reason = run_graph(build_graph(SqliteSaver(connection)), {"stop_reason": None}, thread, services)
    connection.close()
    assert reason.value == "steps", f"the loop ended for another reason: {reason}"


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all below a folder."""
    return folder_bytes(path) if path.is_dir() else path.stat().st_size


if __name__ == "__main__":
    main()
