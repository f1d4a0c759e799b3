"""A run that shares another one's first steps and decides anew from there: `run_agent.py fork`.

The fork begins where the parent had observed step N and not yet decided: LangGraph's checkpoint of that moment, the
same situation and menu, the trace up to there, and hard links to what existed then (see agent/folders.py). What was
spent until there counts. Nothing of later steps comes along: no artifact, verdict, job, lesson or entry of the vector
memory, which is filled anew from the datasets. The parent is not changed.

What a fork does to the statistics. A fork is tested on the gate items of its parent, after its parent's later
verdicts were there to be read, perhaps because of them. Those verdicts do not come along, but they were looks at this
gate: the fork's first own candidate gets the level of the candidate after all that any run of the family (the root
run and all forks of it) had tested when the fork began, as if those beyond the shared ones had been rejected, so that
the chance of any wrong promotion in such a chain of runs stays what it is in one run. What relatives test later, side
by side, is not counted: who forks ten times at once and keeps the best has looked ten times. The counts of looks in
run.json and report.json go on from those of the family, for final items too; the final score of a fork that was begun
in knowledge of its parent's is no first look any more.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from langgraph.checkpoint.sqlite import SqliteSaver

from agent.changes import take_surroundings
from agent.config import from_mapping
from agent.console import Console
from agent.folders import link, sharing
from agent.graph import build_graph
from agent.nodes import trace_decision
from agent.planners import Choice, Decision, make_planner
from agent.planners.base import person_action
from agent.planners.fixed import decision
from agent.run import from_anywhere, job_fingerprint, resume
from agent.sealing import looks_of
from agent.trace import Event, Trace, read_events
from agent.views import is_locked, open_run, run_folders
from memory.records import read_json, read_jsonl, write_json, write_jsonl
from memory.store import MANIFESTS, RunStore, candidate_of
from tools.contract import Json
from tools.optimize.finetune_model import latest_model

BEFORE_THE_DECISION = ("plan",)
"""What is next in LangGraph's checkpoint when a step was observed and not yet decided."""


class Forced(NamedTuple):
    """The action that a fork begins with."""

    tool: str
    args: dict[str, str]
    """Values as typed: compared with the legal ones as text."""


def fork(
    parent: Path,
    step: int,
    console: Console,
    planner: str | None = None,
    forced: Forced | None = None,
    max_steps: int | None = None,
) -> Json:
    """Begin a fork and work until it ends; returns its report. planner, max_steps: None = the parent's.

    Raises ValueError for a step that the parent did not observe, a parent at work and an action that is not legal.
    """
    run_dir = make_fork(parent, step, planner, forced, max_steps)
    first = "" if forced is None else f", which begins with {forced.tool}"
    console.say(f"forked run {parent.name} at step {step}: run {run_dir.name}{first}")
    return resume(run_dir, console)


def make_fork(
    parent: Path, step: int, planner: str | None = None, forced: Forced | None = None, max_steps: int | None = None
) -> Path:
    """Make the folder of a fork, ready to be resumed; returns it."""
    if max_steps is not None and max_steps < step:
        raise ValueError(f"--max-steps {max_steps} is before step {step}, where the fork begins")
    record = open_run(parent)
    if "replay_of" in record:
        raise ValueError(f"run {parent.name} is a replay; fork the run that it repeats, {record['replay_of']['run']}")
    if is_locked(parent):
        raise ValueError(f"a process works on run {parent.name}; wait for its end or stop it, then fork it")
    own_options = {"planner": planner, "max_steps": max_steps}
    config = record["config"] | {name: value for name, value in own_options.items() if value is not None}
    # The data was read when the run began, from files that need not be there any more.
    brought = config.get("data", [])
    config = from_anywhere(from_mapping(config | {"data": []}), config["task"]).to_json() | {"data": brought}
    make_planner(config["planner"], 0, None, lambda: None, "")  # type: ignore[arg-type]  # a missing file or key
    events = _events_until(parent, step)
    own = {"config": config, "fingerprint": job_fingerprint(record), "forked_from": {"run": parent.name, "step": step}}
    own["surroundings"] = take_surroundings(from_mapping(config))
    with sharing(parent, own) as (run_dir, fork_record):
        snapshot = _copy_checkpoints(parent, run_dir, step)
        chosen = None if forced is None else _forced_decision(forced, snapshot["menu"], run_dir)
        _share_what_was_there(parent, run_dir, step, datetime.fromisoformat(events[-1]["ts"]).timestamp())
        _check_weights(RunStore(run_dir), step)
        fork_record["lessons"] = snapshot["situation"]["lessons"]
        fork_record |= _family(parent, len(RunStore(run_dir).all_verdicts()))
        write_jsonl(run_dir / "events.jsonl", events)
        trace = Trace(run_dir)
        trace.clock = lambda: max(event["spent_s"] for event in events)
        about = {"from_run": parent.name, "from_step": step, "planner": config["planner"]}
        trace.emit("forked", **about, forced=chosen is not None)
        if chosen is not None:
            trace_decision(trace, step, chosen, [])
    return run_dir


def _events_until(parent: Path, step: int) -> list[Event]:
    """Return the events up to the observation of a step: of a step that was repeated after a kill, the first."""
    events: list[Event] = []
    for event in read_events(parent):
        events.append(event)
        if event["kind"] == "observed" and event["step"] == step:
            return events
    raise ValueError(f"run {parent.name} has no step {step} to decide anew; {_decided(parent)}")


def _decided(parent: Path) -> str:
    last = max((event["step"] for event in read_events(parent) if event["kind"] == "decided"), default=0)
    return f"it decided steps 1 to {last}" if last else "it decided no step"


def _share_what_was_there(parent: Path, run_dir: Path, step: int, moment: float) -> None:
    """Link artifacts, finished jobs and calls that existed at a moment (seconds of the epoch), by when they were made.

    Raises ValueError when the times of the files contradict the numbers of the calls.
    """

    def was_there(path: Path) -> bool:
        return path.exists() and path.stat().st_mtime <= moment

    for path in sorted((parent / "calls").glob("[0-9]*")):
        earlier = int(path.name[:4]) < step
        if path.suffix == ".json" and was_there(path) is not earlier:
            raise ValueError(
                f"the files of run {parent.name} do not have the times at which they were made, so what existed at "
                f"step {step} cannot be told; copy runs with their times (cp -a)"
            )
        if earlier:
            link(path, run_dir / "calls" / path.name)
    for kind, manifest in MANIFESTS.items():
        for folder in (parent / kind).glob("[!.]*"):
            if was_there(folder / manifest):
                link(folder, run_dir / kind / folder.name)
    for folder in (parent / "jobs").glob("*"):
        if was_there(folder / "result.json"):
            link(folder, run_dir / "jobs" / folder.name)
        elif was_there(folder / "status.json"):  # refused: what it cost was spent
            for name in ("spec.json", "status.json"):
                link(folder / name, run_dir / "jobs" / folder.name / name)
    _share_referee(parent / "referee", run_dir, was_there)


def _check_weights(store: RunStore, step: int) -> None:
    """Raise ValueError when the fork would begin with a model whose weights were removed after its verdict."""
    candidate = store.candidate()
    for name in [latest_model(store)] if candidate is None else [candidate["id"]]:
        if (store.get("models", name) or {}).get("removed"):
            raise ValueError(
                f"step {step} began with model {name}, whose weights were removed after its rejection to save disk; "
                "fork at the step that trained it, or an earlier one"
            )


def _share_referee(referee: Path, run_dir: Path, was_there: Callable[[Path], bool]) -> None:
    """Link what the referee had measured; of its lists take what is about models and verdicts that come along."""
    for path in (referee / "identity.json", referee / "judge.json", *(referee / "judge").glob("*")):
        if was_there(path):
            link(path, run_dir / "referee" / path.relative_to(referee))
    store = RunStore(run_dir)
    judged = {candidate_of(verdict) for verdict in store.all_verdicts()}
    verdicts = [row for row in read_jsonl(referee / "verdicts.jsonl") if row["candidate"] in judged]
    if verdicts:
        write_jsonl(run_dir / "referee" / "verdicts.jsonl", verdicts)
    if (referee / "models.json").exists():
        models = {model["id"] for model in store.all("models")}
        hashes = {name: value for name, value in read_json(referee / "models.json").items() if name in models}
        write_json(run_dir / "referee" / "models.json", hashes)


def _copy_checkpoints(parent: Path, run_dir: Path, step: int) -> Json:
    """Copy LangGraph's checkpoints up to that before the decision of a step; returns the state of then.

    The parent's database is copied before it is opened: opening one may write into it.
    """
    old_thread: Any = {"configurable": {"thread_id": parent.name}}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("state.sqlite", "state.sqlite-wal"):
            if (parent / name).exists():
                shutil.copy(parent / name, folder)
        with (
            SqliteSaver.from_conn_string(f"{folder}/state.sqlite") as old,
            SqliteSaver.from_conn_string(str(run_dir / "state.sqlite")) as new,
        ):
            history = list(build_graph(old).get_state_history(old_thread))
            # A person may have had a step decided several times: the first is the one to decide anew.
            before = [one for one in history if one.next == BEFORE_THE_DECISION and one.values.get("step") == step]
            if not before:
                raise ValueError(f"run {parent.name} ended before it could decide step {step}; {_decided(parent)}")
            last = before[-1].config["configurable"]["checkpoint_id"]
            for saved in sorted(old.list(old_thread), key=lambda one: one.checkpoint["id"]):
                if saved.checkpoint["id"] <= last:
                    earlier = saved.parent_config["configurable"] if saved.parent_config else {}
                    own = {"thread_id": run_dir.name, "checkpoint_ns": ""}
                    own |= {key: earlier[key] for key in ("checkpoint_id",) if key in earlier}
                    new.put({"configurable": own}, saved.checkpoint, saved.metadata, {})
            return dict(before[-1].values)


def _forced_decision(forced: Forced, rows: list[Json], run_dir: Path) -> Decision:
    """Return the decision for the forced action, which the fork's checkpoint then holds as the plan's."""
    menu = [Choice(**row) for row in rows]  # type: ignore[typeddict-item]
    legal: Json = next((choice["arguments"] for choice in menu if choice["tool"] == forced.tool), {})
    given = {
        name: next((value for value in legal.get(name, []) if str(value).lower() == text.lower()), text)
        for name, text in forced.args.items()
    }
    tool, args = person_action(forced.tool, given, menu)
    choice = next(choice for choice in menu if choice["tool"] == tool)
    chosen = decision(choice, args, menu, "forced", "a person began the fork with it")
    thread: Any = {"configurable": {"thread_id": run_dir.name}}
    with SqliteSaver.from_conn_string(str(run_dir / "state.sqlite")) as saver:
        build_graph(saver).update_state(thread, {"decision": dict(chosen)}, as_node="plan")
    return chosen


def _family(parent: Path, shared_verdicts: int) -> Json:
    """Return what a fork's run.json says of verdicts and looks of its relatives: see the top of this file.

    family: root (its name), shared_verdicts, other_verdicts (of relatives, beyond the shared ones), looks (of all,
    when the fork began).
    """
    family = open_run(parent).get("family", {"root": parent.name, "other_verdicts": 0})
    num_verdicts, looks = 0, {"gate": 0, "final": 0}
    for run_dir in run_folders(parent.parent):
        with suppress(ValueError):  # a damaged run beside these
            record = open_run(run_dir)
            begun = record.get("family", {"root": run_dir.name, "shared_verdicts": 0, "looks": {"gate": 0, "final": 0}})
            if begun["root"] == family["root"] and "replay_of" not in record:
                num_verdicts += len(RunStore(run_dir).all_verdicts()) - begun["shared_verdicts"]
                looks = {name: looks[name] + count - begun["looks"][name] for name, count in looks_of(record).items()}
    others = max(num_verdicts - shared_verdicts, family["other_verdicts"])
    told = {"root": family["root"], "shared_verdicts": shared_verdicts, "other_verdicts": others, "looks": looks}
    return {"family": told, "looks": looks}
