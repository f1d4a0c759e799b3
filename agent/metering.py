"""Counts what jobs cost: into the budget for the planner, and by kind of work for the table at the end of a run."""

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.budget import Budget
from agent.clock import PRODUCTIVE
from agent.console import Console
from agent.trace import Trace
from memory.records import read_json, write_json
from tools.contract import Json
from tools.jobs.client import WorkerClient
from tools.jobs.job import NO_USAGE, Usage

FIND_OVERLAPS = "tools.select.contamination:find_overlaps"
WORK = {
    "tools.acquire.generate_data:sample_items": "generation",
    "tools.acquire.vote_labels:label_items": "generation",
    "tools.acquire.self_play:play": "generation",
    "tools.acquire.self_instruct:instruct": "generation",
    "tools.acquire.evolve_questions:evolve": "generation",
    "tools.acquire.magpie:ask_as_users": "generation",
    "tools.acquire.rationalise:explain_rows": "generation",
    "tools.acquire.distil_answers:ask_teacher": "generation",
    "tools.acquire.from_documents:read_document": "generation",
    "tools.acquire.write_programs:write_and_run": "generation",
    "tools.acquire.play_games:play": "generation",
    "tools.optimize.sft_worker:train": "training",
    "tools.optimize.rehearsal:write_chats": "training",
    "tools.optimize.dpo_worker:train": "training",
    "tools.optimize.kto_worker:train": "training",
    "tools.optimize.grpo_worker:train": "training",
    "tools.optimize.distill_worker:train": "training",
    "tools.optimize.rate_worker:sweep_rates": "training",
    "tools.optimize.merge_worker:average": "training",
    "tools.optimize.merge_worker:scale": "training",
    "tools.optimize.throwaway:gains": "training",
    "tools.select.compare_choice:train_both": "training",
    "tools.evaluate.answer:answer_questions": "evaluation",
    "tools.evaluate.probe:sample_answers": "evaluation",
    "tools.evaluate.probe:probe_model": "evaluation",
    "tools.tasks.judge:ask_base": "evaluation",
    "tools.engines.constrained:deliberate": "planning",
    "tools.select.ifd:read_difficulty": "curation",
    "tools.select.judged:grade_answers": "curation",
    "tools.select.pool:make_pool": "curation",
    "tools.select.pool:embed_pool": "curation",
    "memory.regions:remember": "curation",
    "memory.regions:remember_verdict": "curation",
    "tools.refine.prompt_search:propose_prompts": "evaluation",
    "tools.refine.few_shot:seed_examples": "curation",
    FIND_OVERLAPS: "curation",
    "tools.acquire.import_data:check_rows": "curation",
    "tools.jobs.worker:warm_up": "start-up",
}


def tell_retries(client: WorkerClient, trace: Trace, console: Console, heartbeat_s: float) -> None:
    """Let a job that is done again be told and recorded, and one end that gives no sign of life for so long."""

    def retried(function: str, why: str) -> None:
        trace.emit("retried", function=function, why=why)
        console.say(f"  {function.rpartition(':')[2]} is done again: {why}")

    client.on_retry, client.heartbeat_s = retried, heartbeat_s


class MeteredJobs:
    """The worker as tools see it; each job's cost is counted once, also over a resume."""

    def __init__(self, client: WorkerClient, budget: Budget, earlier_s: Mapping[str, float] | None = None) -> None:
        """earlier_s: wall seconds by kind of work before this process, None = none."""
        self.client = client
        self.budget = budget
        self.fingerprint = client.fingerprint
        self.call: Path | None = None
        """The tool call that is running: its jobs' inputs are kept beside it."""
        self._time: tuple[Mapping[str, float], tuple[str, float] | None] = earlier_s or {}, None
        """Seconds by kind of what has ended; kind and begin of the job that runs now. In one: a thread reads it."""
        self._counted: dict[str, Usage] = {}
        for path in sorted((client.run_dir / "jobs").glob("*/spec.json")):
            self._count(path.parent)

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Usage]:
        """Run a job (see WorkerClient.run) and count it."""
        args, inputs = self._pinned(function, args, inputs)
        self._time = self._time[0], (WORK.get(function, "other tools"), time.monotonic())
        try:
            value, usage = self.client.run(function, args, inputs)
        finally:
            self._time = self.time_s(), None
            self._count(self.client.folder(function, args, inputs))
        return value, usage

    def time_s(self) -> dict[str, float]:
        """Return the wall seconds by kind of work since the run began, with the job under way."""
        ended_s, under_way = self._time
        ended = dict(ended_s)
        if under_way is not None:
            kind, began = under_way
            ended[kind] = ended.get(kind, 0.0) + time.monotonic() - began
        return ended

    def _pinned(self, function: str, args: Json, inputs: Json | None) -> tuple[Json, Json | None]:
        """Return what this call's job was given at first: a repeated call would see its own job's artifacts."""
        if self.call is None or WORK.get(function) == "evaluation" or function == FIND_OVERLAPS:
            return args, inputs  # these depend on nothing but their arguments
        path = self.call.with_suffix(f".{function.rpartition(':')[2]}")
        if not path.exists():
            write_json(path, {"args": args, "inputs": inputs})
        pinned = read_json(path)
        return pinned["args"], pinned["inputs"]

    def _count(self, folder: Path) -> None:
        """Count what a job cost beyond what was counted of it; one that was refused or killed cost something, too."""
        if not (folder / "spec.json").exists():
            return
        usage, attempts = spent_on(folder)
        before = self._counted.get(folder.name, NO_USAGE)
        if usage != before:
            self._counted[folder.name] = usage
            kind = WORK.get(read_json(folder / "spec.json")["function"])
            # What a killed attempt had done already took no time of this one: that is no measure of speed.
            measures = kind in PRODUCTIVE and before == NO_USAGE and attempts == 1
            self.budget.add(usage.minus(before), kind if measures else None)


def spent_on(folder: Path) -> tuple[Usage, int | None]:
    """Return what a job cost, and in how many attempts; None when it has not finished or its status was damaged."""
    result, status = (_read(folder / name) for name in ("result.json", "status.json"))
    if result:
        return Usage(**result["usage"]), status.get("attempts")
    return Usage(**status.get("spent", NO_USAGE._asdict())), None


def _read(path: Path) -> Json:
    return read_json(path) if path.exists() else {}


def peak_rss_gib(pids: list[int | None]) -> float:
    """Return the agent's peak plus those of its processes: an upper bound of what was in memory at one time."""
    total_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        lines = status.read_text().splitlines() if pid and status.exists() else []
        total_kib += next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    return total_kib / 2**20
