"""One run from start to report: folder, lock, services, the loop, the final evaluation.

run.json holds the configuration and identity, written before the first step; report.json the end.
"""

import dataclasses
import fcntl
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.approval import check_still_asked
from agent.baseline import take_baseline
from agent.budget import Budget, check_tokens, open_budget
from agent.changes import settle_changes, take_surroundings
from agent.clock import earlier_clock, time_table, write_clock
from agent.config import FORMAT_VERSION, RunConfig, from_mapping, unknown
from agent.console import Console
from agent.disk import failure_text
from agent.folders import new_folder, training_task
from agent.graph import build_graph, run_graph
from agent.identity import take_hashes
from agent.mending import mend
from agent.metering import MeteredJobs, peak_rss_gib, tell_retries
from agent.moving import Places, check_places, moved_record
from agent.nodes import Services, begun_calls, end_text
from agent.planners import make_planner
from agent.prices import load_prices
from agent.progress import resumed_text
from agent.referee import Referee, Scoring
from agent.replay_jobs import open_client
from agent.sealing import (
    PROCESS_ONLY,
    closed_places,
    draw_splits,
    evaluation_seed,
    isolation,
    looks_of,
    seal_splits,
)
from agent.situation import situation_text
from agent.state import StopReason
from agent.stopping import interruptible
from agent.tool_host import ToolHost
from agent.trace import Trace, read_events
from agent.trace_facts import facts_of
from agent.views import open_run, provable_text, run_status
from memory.lessons import lessons_file, lock_file
from memory.records import content_id, read_json, write_json
from memory.store import RunStore
from tools.acquire.data_source import Source, keep_source, parse_source, read_sources, source_text, unused_notes
from tools.acquire.teacher import keep_teacher
from tools.contract import Json
from tools.engines.models import PACKAGED_MODELS, fingerprint, resolve_embedder, resolve_model
from tools.engines.vllm_engine import check_installed
from tools.evaluate.costs import final_tokens
from tools.jobs.client import JobFailedError
from tools.jobs.machine import repeated
from tools.optimize.report_to import check_report_to, metrics_dir
from tools.tasks import load_task
from tools.tasks.base import Splits, SplitSizes, Task
from tools.tasks.judge import ask_base_through, open_scorer
from tools.tasks.training_view import write_training_view

FAILURES = (JobFailedError, OSError, RuntimeError, ValueError, sqlite3.Error)
"""What ends a run as failed: recorded in the report and turned into the exit code; the run stays resumable."""


class RunLockedError(ValueError):
    """Another process works on this run."""


def start(config: RunConfig, console: Console) -> Json:
    """Begin a new run and work until it ends; returns the report. Raises ValueError for bad input, before any work."""
    began = time.monotonic()
    task = load_task(config.task)
    check_report_to(config.report_to)
    if config.engine == "vllm":
        check_installed()
    if config.tools or config.approve_tools:
        with ToolHost(config.tools, closed=closed_places(Path(config.runs_dir) / "new", task)) as host:
            tools = host.describe()  # raises ValueError for a file that is missing or holds no tool
        for tool in tools:
            if tool["left_out"]:
                console.say(f"left out: {tool['name']}: {tool['left_out']}")
        known = [tool["name"] for tool in tools]
        for name in config.approve_tools:
            if name not in known:
                raise ValueError(unknown("tool", name, known))
    make_planner(config.planner, 0, None, lambda: None, "")  # type: ignore[arg-type]  # finds a missing file or key now
    load_prices(config)
    check_tokens(config)
    config = from_anywhere(config, task.spec)
    model_dir = resolve_model(config.model, Path(config.models_dir))
    sizes = SplitSizes(config.search_items, config.gate_items, config.final_items)
    seed = evaluation_seed(config)
    splits = draw_splits(task, sizes, seed)
    sources = read_sources(config.data, {key for items in splits for item in items for key in item.keys})
    console.say(provable_text(config.gate_items))
    for source in sources:
        console.say(source_text(source.manifest))
    for note in unused_notes(sources, config.teacher, config.tools):
        console.say(note)
    run_dir = create_run(config, task, model_dir, splits, seed, sources)
    console.say(f"run {run_dir.name} begins in {run_dir.parent}; `run_agent.py status` and `ui` show it while it works")
    return _work(run_dir, config, console, began)


def create_run(
    config: RunConfig,
    task: Task,
    model_dir: Path,
    splits: Splits,
    evaluation_seed: int,
    sources: Iterable[Source] = (),
) -> Path:
    """Make the folder of a new run: sealed splits, what may be trained on, and run.json; returns it."""
    run_dir = new_folder(Path(config.runs_dir))
    seal_splits(run_dir, splits, evaluation_seed)
    for source in sources:
        keep_source(RunStore(run_dir), source)
    rows_to_train_on = write_training_view(task, splits, run_dir / "task")
    if config.teacher:
        keep_teacher(RunStore(run_dir), config.teacher)
    identity = {"task": task.spec, "model": fingerprint(model_dir), "format": FORMAT_VERSION}
    identity["hashes"] = take_hashes(run_dir, task, model_dir, config.system_prompt)
    write_json(
        run_dir / "run.json",
        {
            "run": run_dir.name,
            "format": FORMAT_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config.to_json(),
            "identity": identity,
            "surroundings": take_surroundings(config),
            "isolation": isolation(),
            "training_task": rows_to_train_on,
            "looks": looks_of({}),
        },
    )
    return run_dir


def from_anywhere(config: RunConfig, task_spec: str) -> RunConfig:
    """Return the same settings with absolute paths: a run may be resumed from another folder."""

    def absolute(path: str) -> str:
        return str(Path(path).resolve()) if Path(path).exists() else path

    kind, _, script = config.planner.partition(":")
    return dataclasses.replace(
        config,
        task=task_spec,
        model=config.model if config.model in PACKAGED_MODELS else absolute(config.model),
        planner=f"{kind}:{absolute(script)}" if kind == "scripted" else config.planner,
        tools=tuple(map(absolute, config.tools)),
        prices=None if config.prices is None else absolute(config.prices),
        data=tuple(parse_source(spec).spec for spec in config.data),
        models_dir=str(Path(config.models_dir).resolve()),
    )


def resume(
    run_dir: Path, console: Console, answer: Json | None = None, given: Json | None = None, accepted: bool = False,
    places: Places | None = None,
) -> Json:  # fmt: skip
    """Go on with a run that was stopped or killed; returns the report (the old one when it had ended).

    answer: a person's, to the question that the run waits with. given: settings to go on with, places: OLD -> NEW path
    of what it needs and lies elsewhere now; with all else that changed they must be accepted, see agent/changes.py.
    """
    began = time.monotonic()
    record = open_run(run_dir)
    with locked(run_dir):
        mend(run_dir, console)
    if (run_dir / "report.json").exists():
        report: Json = read_json(run_dir / "report.json")
        if not StopReason(report["stop_reason"]).resumable:
            console.say(f"run {run_dir.name} has ended: {report['stop_sentence']}")
            return report
    places, key = places or {}, job_fingerprint(record)
    record = moved_record(record, places)
    config = from_mapping(record["config"] | (given or {}))
    check_places(run_dir.name, config)
    try:
        found = fingerprint(resolve_model(config.model, Path(config.models_dir)))
    except ValueError as problem:
        raise ValueError(f"{problem}; the run began with the base model {config.model!r}: put its files back") from None
    if found != record["identity"]["model"]:
        raise ValueError(f"the base model {config.model!r} is not the one this run began with; put that one back")
    if given:  # what was brought as data was read when the run began, from files that need not be there any more
        config = dataclasses.replace(from_anywhere(dataclasses.replace(config, data=()), config.task), data=config.data)
    with locked(run_dir):
        settle_changes(run_dir, record, config, key, accepted, console, places)
    if (run_dir / "worker.json").exists():  # a fork or replay only begins
        console.say(resumed_text(run_status(run_dir)))
    return _work(run_dir, config, console, began, answer)


def job_fingerprint(record: Json) -> str:
    """Return what is part of every job's key: configuration and identity of the run, or of the one it came from."""
    left_out = ("budget", "prices", "heartbeat", "keep", "runs", "models", "approve", "report_to")
    shape = {key: value for key, value in record["config"].items() if not key.startswith(left_out)}
    return record.get("fingerprint") or content_id([shape, record["identity"]])


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock; raises RunLockedError when another process has it."""
    with (run_dir / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(
                f"run {run_dir.name} is being worked on by another process; wait for it, or watch it with "
                f"`run_agent.py trace tail {run_dir.name}`"
            ) from None
        yield


def _work(run_dir: Path, config: RunConfig, console: Console, began: float, answer: Json | None = None) -> Json:
    record = open_run(run_dir)
    with locked(run_dir):
        trace = Trace(run_dir)
        events = list(read_events(run_dir))
        if answer is not None:
            check_still_asked(answer, run_dir)
        clock = earlier_clock(run_dir, events)
        budget = open_budget(run_dir, config, clock["spent_s"] + time.monotonic() - began, events)
        trace.clock = lambda: budget.spent_s
        task = load_task(config.task)
        closed = closed_places(run_dir, task)
        prepare_worker(run_dir, config, training_task(run_dir, record), task, closed)
        if isolation() == "process only":
            console.say(PROCESS_ONLY)
        with (
            open_client(run_dir, record, job_fingerprint(record), console.progress) as client,
            ToolHost(config.tools, run_dir, config.seed, config.task, closed, 60 * config.tool_minutes) as tools,
            nullcontext(MeteredJobs(client, budget, clock["time_s"])) as jobs,
            repeated(lambda: write_clock(run_dir, budget.spent_s, jobs.time_s(), budget.share_left())),
            open_scorer(task.scorer, ask_base_through(jobs, run_dir)) as scorer,
        ):
            tell_retries(client, trace, console, 60 * config.heartbeat_minutes)
            resumed = trace.last_seq > 0
            about = {"config": record["config"], "identity": record["identity"], "isolation": isolation()}
            trace.emit("run_resumed" if resumed else "run_started", **about)
            services = _services(config, task, jobs, tools, scorer, budget, trace, console)
            services.answer, services.begun = answer, begun_calls(events)
            with interruptible(run_dir, services.stop_requested, console):
                reason, error = _loop(run_dir, services, console)
                final = None
                if not reason.resumable:
                    reason, error, final = _open_final(services, reason)
            report = _report(run_dir, services, reason, error, final)
        shutil.rmtree(run_dir / "tmp", ignore_errors=True)
        return report


def prepare_worker(run_dir: Path, config: RunConfig, training_task: str, task: Task, closed: list[Path]) -> None:
    """Write worker.json, and the files beside the run that the worker may write to once they exist."""
    beside = [Path(task.scorer[key]) for key in ("file", "gold") if task.scorer.get(key)]
    settings = {
        "model_dir": str(resolve_model(config.model, Path(config.models_dir)).resolve()),
        "embedder_dir": str(resolve_embedder(Path(config.models_dir)).resolve()),
        "engine": config.engine,
        "dtype": config.dtype,
        "task": training_task,
        "system_prompt": config.system_prompt,
        "report_to": config.report_to,
        "readable": [str(path.resolve().parent) for path in beside],
        "closed": [str(path.resolve()) for path in closed],
    }
    if config.report_to:
        metrics_dir(run_dir).mkdir(exist_ok=True)
    measured = run_dir / "referee" / "identity.json"
    if measured.exists():  # "auto" is decided once: a second measurement could fall out differently
        settings["dtype"] = read_json(measured).get("dtype", config.dtype)
    write_json(run_dir / "worker.json", settings)
    lessons_file(run_dir).touch()
    lock_file(run_dir).touch()


def _services(
    config: RunConfig,
    task: Task,
    jobs: MeteredJobs,
    tools: ToolHost,
    scorer: Scoring,
    budget: Budget,
    trace: Trace,
    console: Console,
) -> Services:
    store = RunStore(jobs.client.run_dir)
    sizes = SplitSizes(config.search_items, config.gate_items, config.final_items)
    replay = read_json(store.run_dir / "run.json").get("replay_of")
    referee = Referee(
        store, jobs, task, scorer, sizes, lambda tokens: budget.affords(tokens, final_tokens(store), "evaluation"),
        Path(replay["dir"]) / "referee" if replay else None,
    )  # fmt: skip
    planner = make_planner(
        config.planner, config.seed, jobs, lambda: store.model_dir(store.champion()), situation_text(None)
    )
    return Services(config, store, jobs, referee, tools, planner, budget, trace, console, [])


def _loop(run_dir: Path, services: Services, console: Console) -> tuple[StopReason, str | None]:
    """Run baseline and graph; returns why it ended, and the error when it failed."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    try:
        take_baseline(services)
        connection = sqlite3.connect(run_dir / "state.sqlite", check_same_thread=False, timeout=30)
        graph = build_graph(SqliteSaver(connection))
        thread: Any = {
            "configurable": {"thread_id": run_dir.name},
            "recursion_limit": 6 * services.config.max_steps + 20,
        }
        saved = graph.get_state(thread)
        ended = saved.values.get("stop_reason")
        if ended and not saved.next and not StopReason(ended).resumable:
            return StopReason(ended), None  # only the final evaluation is left to do
        entry: Any = None if saved.next else {"stop_reason": None}
        reason = run_graph(graph, entry, thread, services)
        connection.close()
        return reason, None
    except KeyboardInterrupt:
        return StopReason.USER_STOPPED, None
    except FAILURES as error:
        return StopReason.FAILED, failure_text(error, run_dir)
    finally:
        console.end()


def _open_final(services: Services, reason: StopReason) -> tuple[StopReason, str | None, Json | None]:
    """Measure the final split; a failure here leaves the run resumable, with the loop already ended."""
    services.console.begin("final evaluation")
    try:
        final = services.referee.final()
    except KeyboardInterrupt:
        return StopReason.USER_STOPPED, None, None
    except FAILURES as error:
        return StopReason.FAILED, failure_text(error, services.store.run_dir), None
    finally:
        services.console.end()
    services.trace.emit("final", **final)
    return reason, None, final


def _report(run_dir: Path, services: Services, reason: StopReason, error: str | None, final: Json | None) -> Json:
    """Write report.json and the closing event."""
    verdicts = services.store.all_verdicts()
    wall_s = services.budget.spent_s
    time_s, overhead_share = time_table(services.jobs.time_s(), wall_s)
    facts = facts_of(run_dir)
    sentence = end_text(reason, read_events(run_dir))
    report = {
        "run": run_dir.name,
        "stop_reason": reason.value,
        "stop_sentence": sentence,
        "error": error,
        "wall_s": round(wall_s, 1),
        "tokens": services.budget.used.tokens,
        "spent": {unit: round(amount, 4) for unit, amount in services.budget.spent().items()},
        "overhead_share": round(overhead_share, 4),
        "time_s": {name: round(seconds, 1) for name, seconds in time_s.items()},
        "peak_rss_gib": round(peak_rss_gib([services.jobs.client.pid, services.tools.pid]), 2),
        "decided_by": dict(facts.decided_by),
        "steps": sum(facts.decided_by.values()),
        "resumes": facts.num_resumed,
        "scorer_errors": services.referee.scorer.errors.count + _num_unscored(services.store),
        "scorer_note": services.referee.scorer.note([], []),
        "accepted": sum(verdict["accepted"] for verdict in verdicts),
        "rejected": sum(not verdict["accepted"] for verdict in verdicts),
        "champion": services.store.champion(),
        "policy": services.store.champion_policy(),
        "looks": looks_of(read_json(run_dir / "run.json")),
        "question": services.question,
        "final": final,
    }
    write_json(run_dir / "report.json", report)
    services.trace.emit("run_stopped", reason=reason.value, sentence=sentence, error=error)
    services.console.final(report)
    if report["scorer_errors"]:
        first = services.referee.scorer.errors.first
        services.console.say(
            f"the scorer failed on {report['scorer_errors']} answers" + (f": {first}" if first else "")
        )
    if error:
        services.console.say(f"error: {error}")
    return report


def _num_unscored(store: RunStore) -> int:
    """Return on how many samples the scorer failed."""
    return sum(dataset.get("num_unscored", 0) for dataset in store.datasets("samples"))
