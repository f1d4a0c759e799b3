"""A run in MLflow: settings as parameters, scores and losses over steps, files as artifacts, steps as a trace.

After the fact, from the run's files: a run does not know of it. A run that was exported before is replaced.
"""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from agent import report, span_names, views
from agent.trace import Event, read_events
from agent.trace_spans import ERROR, OK, span_rows
from memory.store import RunStore
from tools.contract import Json

EXPERIMENT = "autodidact"
TAG = "autodidact.run"
FILES = ("run.json", "events.jsonl", "report.json")
MOST_BATCH = 1000
"""Metrics in one request, which is what servers take."""
MOST_PARAMETER = 6000
"""Characters."""
STATES = {OK: "OK", ERROR: "ERROR"}
FINAL = ("base_zero_shot", "base_few_shot", "champion")


class Point(NamedTuple):
    """A value of a metric."""

    name: str
    value: float
    step: int
    ts: str
    """When, as events write it."""


def log_run(run_dir: Path, uri: str) -> str:
    """Write a run to a tracking server or store; returns the id that MLflow gave it.

    uri: an address, or a folder, which MLflow calls a file store. Raises ValueError for a run without events.
    """
    import mlflow
    from mlflow.entities import Metric, Param

    if "://" not in uri or uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for that since it prefers databases
    record = views.open_run(run_dir)
    mlflow.set_tracking_uri(uri if "://" in uri else Path(uri).resolve().as_uri())
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    for old in client.search_runs([experiment], f"tags.`{TAG}` = '{run_dir.name}'"):
        client.delete_run(old.info.run_id)
    events = list(read_events(run_dir))
    if not events:
        raise ValueError(f"run {run_dir.name} has no events yet")
    began, ended = events[0]["ts"], events[-1]["ts"]
    run = client.create_run(experiment, _milliseconds(began), {TAG: run_dir.name}, run_dir.name).info.run_id
    params = [Param(name, str(value)[:MOST_PARAMETER]) for name, value in record["config"].items()]
    client.log_batch(run, params=params)
    points = [*_points(events), *_losses(RunStore(run_dir), ended)]
    metrics = [Metric(point.name, point.value, _milliseconds(point.ts), point.step) for point in points]
    for start in range(0, len(metrics), MOST_BATCH):
        client.log_batch(run, metrics=metrics[start : start + MOST_BATCH])
    for name in FILES:
        if (run_dir / name).exists():
            client.log_artifact(run, str(run_dir / name))
    client.log_text(run, report.page(run_dir), "report.html")
    _replace_trace(client, run_dir, experiment, run)
    states = {"running": "RUNNING", "killed": "KILLED", "failed": "FAILED"}
    client.set_terminated(run, states.get(views.run_state(run_dir), "FINISHED"), _milliseconds(ended))
    return str(run)


def _points(events: list[Event]) -> Iterator[Point]:
    """Yield what the events measured: scores, tokens, seconds, and the numbers in the tools' results."""
    tokens = 0.0
    for event in events:
        step, ts = event["step"] or 0, event["ts"]
        tokens += event.get("usage", {}).get("tokens") or 0
        match event["kind"]:
            case "observed":
                score = event["situation"].get("score")
                if score is not None:
                    yield Point("champion_search_score", score["score"], step, ts)
                yield Point("budget_left_percent", event["situation"].get("budget_left_percent") or 0, step, ts)
            case "tool_finished":
                yield Point("tokens", tokens, step, ts)
                yield Point("spent_s", event["spent_s"], step, ts)
                for name, value in event["result"].items():
                    if isinstance(value, int | float):
                        yield Point(f"{event['tool']}/{name}", float(value), step, ts)
            case "judged":
                yield Point("accepted", float(event["accepted"]), step, ts)
            case "final":
                yield from (Point(f"final/{arm}", event[arm]["score"], 0, ts) for arm in FINAL if arm in event)


def _losses(store: RunStore, ts: str) -> Iterator[Point]:
    """Yield the training curves."""
    for model in store.all("models"):
        for step, loss in enumerate(model.get("losses", ()), 1):
            yield Point(f"loss/{model['id']}", loss, step, ts)


def _replace_trace(client: Any, run_dir: Path, experiment: str, run: str) -> None:
    """Write the run, its steps, decisions, calls and verdicts as one trace that belongs to the MLflow run."""
    import mlflow

    filter_string = f"tags.`{TAG}` = '{run_dir.name}'"
    while old := client.search_traces(locations=[experiment], filter_string=filter_string, include_spans=False):
        client.delete_traces(experiment, trace_ids=[trace.info.trace_id for trace in old])
    rows = [span for row in span_rows(run_dir) for span in row["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    begun: dict[str, Any] = {}
    for row in [rows[-1], *rows[:-1]]:  # the run's own comes last
        said = _attributes(row)
        begun[row["spanId"]] = mlflow.start_span_no_context(
            row["name"],
            said.pop(span_names.KIND),
            begun.get(row["parentSpanId"]),
            inputs=said.pop(f"{span_names.INPUT}.value", None),
            attributes=said,
            tags={TAG: run_dir.name} if not begun else None,
            metadata={"mlflow.sourceRun": run} if not begun else None,
            experiment_id=experiment if not begun else None,
            start_time_ns=int(row["startTimeUnixNano"]),
        )
    for row in rows:
        output = _attributes(row).get(f"{span_names.OUTPUT}.value")
        status = STATES.get(row["status"].get("code"), "UNSET")
        begun[row["spanId"]].end(output, status=status, end_time_ns=int(row["endTimeUnixNano"]))
    mlflow.flush_trace_async_logging()
    if not client.search_traces(locations=[experiment], filter_string=filter_string, include_spans=False):
        raise ValueError("the run was written, but MLflow kept no trace of it; its warning above says why")


def _attributes(row: Json) -> Json:
    """Return a span's attributes by name, JSON texts of inputs and outputs read."""
    said = {entry["key"]: next(iter(entry["value"].values())) for entry in row["attributes"]}
    for side in (span_names.INPUT, span_names.OUTPUT):
        if said.pop(f"{side}.mime_type", "") == "application/json":
            said[f"{side}.value"] = json.loads(said[f"{side}.value"])
    return said


def _milliseconds(ts: str) -> int:
    return round(1000 * datetime.fromisoformat(ts).timestamp())
