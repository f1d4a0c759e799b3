"""A run that repeats the decisions in another one's trace, to check that the same comes out: `run_agent.py replay`.

Tools, menu, referee, scorer and curation run again; the planner's decisions are those of the trace. Jobs (generation,
training, answers of models) are the finished ones of that run, so that no model is loaded, or with --recompute
computed afresh. What the run was told of earlier lessons is told again, and it writes no lesson for others.

A replay is a check and no experiment: it tests nothing that was not tested, so its verdicts use up no level of the
run that it repeats, and it cannot be forked.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from agent.changes import take_surroundings
from agent.config import RunConfig, from_mapping
from agent.console import Console
from agent.folders import link, sharing
from agent.identity import take_hashes
from agent.run import job_fingerprint, resume
from agent.sealing import looks_of
from agent.state import StopReason
from agent.trace import read_events
from agent.trace_diff import BUDGET_TELLS, Step, different, steps_of
from agent.views import open_run, read_report, run_state
from memory.records import read_json
from memory.store import RunStore
from tools.acquire.data_source import brought
from tools.contract import Json
from tools.engines.models import resolve_model
from tools.tasks import load_task

NO_LIMIT_MINUTES = 1e6
COMPARED = ("accepted", "rejected", "champion", "final", "error")
"""Of the report."""
TRACE_ENDS = (StopReason.STEPS, StopReason.BUDGET, StopReason.NO_ACTION, StopReason.PLATEAU)
"""A replay has no such limit of its own: it stops where the trace does."""


def replay(source: Path, console: Console, recompute: bool = False) -> Json:
    """Repeat a run that has ended and compare; returns what `compare` says, with the replay's report.

    Raises ValueError for a run that has not ended.
    """
    record = open_run(source)
    if (state := run_state(source)) != "finished":
        raise ValueError(f"run {source.name} is {state}: only a run that has ended can be replayed")
    config = _config(source, record)
    task = load_task(config.task)
    replay_of = {"run": source.name, "dir": str(source), "recompute": recompute}
    own: Json = {"config": config.to_json(), "fingerprint": job_fingerprint(record), "replay_of": replay_of}
    own["surroundings"] = take_surroundings(config)
    with sharing(source, own) as (run_dir, new_record):
        for name in () if recompute else ("identity.json", "judge.json"):
            if (source / "referee" / name).exists():
                link(source / "referee" / name, run_dir / "referee" / name)
        for dataset in brought(RunStore(source)):  # no job makes them
            link(source / "data" / dataset["id"], run_dir / "data" / dataset["id"])
        hashes = take_hashes(run_dir, task, resolve_model(config.model, Path(config.models_dir)), config.system_prompt)
        new_record["identity"] = record["identity"] | {"hashes": hashes}
        observed = (event["situation"] for event in read_events(source) if event["kind"] == "observed")
        new_record["lessons"] = next(observed, {"lessons": []})["lessons"]
        new_record["looks"] = looks_of({})
        new_record.pop("forked_from", None)
    how = "afresh" if recompute else "with its finished jobs"
    console.say(f"repeats run {source.name} {how}: run {run_dir.name}")
    report = resume(run_dir, console)
    return compare(source, run_dir) | {"recompute": recompute, "report": report}


def compare(source: Path, run_dir: Path) -> Json:
    """Return {"run", "replay_of", "num_steps", "equal", "differences", "changed", "left_out"}.

    differences: [{"step" (None = the ending), "field", "a" (the run), "b" (its replay)}]; changed: what scores depend
    on (code, libraries) and was another thing when the run began.
    """
    rows: list[Json] = []
    num_steps = 0
    for number, (a, b) in enumerate(itertools.zip_longest(steps_of(source), steps_of(run_dir)), 1):
        num_steps += b is not None and b.decision is not None
        rows += [{"step": number} | field for field in different(_compared(a), _compared(b))]
    rows += [{"step": None} | field for field in different(_ending(source), _ending(run_dir))]
    began, now = (read_json(path / "run.json")["identity"].get("hashes", {}) for path in (source, run_dir))
    return {
        "run": run_dir.name,
        "replay_of": source.name,
        "num_steps": num_steps,
        "equal": not rows,
        "differences": rows,
        "changed": [name for name, value in now.items() if began.get(name) != value],
        "left_out": ["seconds", "who decides", "cost", *BUDGET_TELLS],
    }


def _config(source: Path, record: Json) -> RunConfig:
    """Return the settings of a replay: no limit and no prices, and the number format that was measured."""
    decided = {event["step"] for event in read_events(source) if event["kind"] == "decided"}
    identity = source / "referee" / "identity.json"
    measured: Json = read_json(identity) if identity.exists() else {}
    config = from_mapping(record["config"])
    limits = [setting.name for setting in dataclasses.fields(config) if setting.name.startswith("budget_")]
    unlimited: Json = dict.fromkeys(limits) | {"budget_minutes": NO_LIMIT_MINUTES}
    return dataclasses.replace(
        config,
        **unlimited,
        prices=None,
        planner=f"replay:{source}",
        approve=False,
        approve_tools=(),
        max_steps=max(1, len(decided)),
        dtype=measured.get("dtype", config.dtype),
    )


def _compared(step: Step | None) -> Json:
    if step is None or step.decision is None:
        return {}
    situation: Any = {key: value for key, value in (step.situation or {}).items() if key not in BUDGET_TELLS}
    return {"action": step.decision["action"], "outcome": step.outcome, "situation": situation}


def _ending(run_dir: Path) -> Json:
    report = read_report(run_dir) or {}
    reason = report.get("stop_reason")
    told: Json = {"stop_reason": "the trace ends" if reason in TRACE_ENDS else reason}
    return told | {key: report[key] for key in COMPARED if key in report}
