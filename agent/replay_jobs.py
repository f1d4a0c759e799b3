"""Who runs the jobs of a run: the worker, or for a replay the finished jobs of the run that it repeats."""

from pathlib import Path

from agent.folders import link
from agent.trace_search import leaves
from memory.records import read_json, write_json
from memory.store import MANIFESTS, REMOVED
from tools.contract import Json, ToolError
from tools.jobs.client import WORKER_FOLDERS, JobFailedError, ProgressListener, WorkerClient
from tools.jobs.job import NO_USAGE, JobSpec

WARM_UP = "tools.jobs.worker:warm_up"
REMEMBER = "memory.lessons:remember"
"""Writes for all runs; a lesson that is repeated is none."""


def open_client(run_dir: Path, record: Json, fingerprint: str, on_progress: ProgressListener) -> WorkerClient:
    """Return what runs a run's jobs; record: its run.json."""
    replay = record.get("replay_of")
    if replay is None:
        return WorkerClient(run_dir, fingerprint, on_progress)
    return ReplayJobs(run_dir, fingerprint, on_progress, None if replay["recompute"] else Path(replay["dir"]))


class ReplayJobs(WorkerClient):
    """Gives the results of another run's finished jobs, with what they made; no worker is started for them."""

    def __init__(self, run_dir: Path, fingerprint: str, on_progress: ProgressListener, source: Path | None) -> None:
        """With source None every job is computed anew, of which a repeated lesson is none."""
        super().__init__(run_dir, fingerprint, on_progress)
        self.source = source

    def __enter__(self) -> WorkerClient:
        """Start the worker, or make the folders that it would make."""
        if self.source is None:
            return super().__enter__()
        for name in WORKER_FOLDERS:
            (self.run_dir / name).mkdir(exist_ok=True)
        return self

    def _execute(self, spec: JobSpec, folder: Path) -> None:
        if spec.function == REMEMBER or (self.source is not None and spec.function == WARM_UP):
            write_json(folder / "result.json", {"value": {}, "usage": NO_USAGE._asdict()})
        elif self.source is None:
            super()._execute(spec, folder)
        else:
            self._take(self.source, spec, folder)

    def _take(self, source: Path, spec: JobSpec, folder: Path) -> None:
        known = source / "jobs" / spec.key
        status = read_json(known / "status.json") if (known / "status.json").exists() else {}
        if status.get("state") == "tool_error":
            link(known / "status.json", folder / "status.json")
            raise ToolError(status["error"])
        if not (known / "result.json").exists():
            raise JobFailedError(
                f"run {source.name} has no finished job like this one of {spec.function}: what goes into it has "
                "changed since; `replay --recompute` computes it"
            )
        made = {path.name: path for kind in ("data", "models") for path in (source / kind).glob("*")}
        for _, value in leaves(read_json(known / "result.json")["value"]):
            if isinstance(value, str) and value in made:
                target = self.run_dir / made[value].relative_to(source)
                link(made[value], target)
                if (target / REMOVED).exists():  # here it is new, and its answers are known without its weights
                    (target / REMOVED).unlink()
                    manifest = read_json(target / MANIFESTS["models"])
                    write_json(target / MANIFESTS["models"], manifest | {"weights": None})
        if spec.function == "tools.tasks.judge:ask_base":
            name = f"{spec.args['name']}.replies.jsonl"
            link(source / name, self.run_dir / name)
        link(known, folder)
