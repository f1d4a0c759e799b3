"""A trace as a trajectory: ATIF, the Agent Trajectory Interchange Format of Harbor and terminal-bench, version 1.4.

What the planner was shown is a step of the user, its decision with the call's result a step of the agent. See
https://harborframework.com/docs/trajectory-format. The call under way in a killed run has no observation.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent import views
from agent.span_names import AGENT
from agent.trace import Event, read_events
from agent.trace_search import HEAD
from agent.trace_select import menu_of
from agent.trace_view import call_text
from memory.records import canonical_json
from tools.contract import Json

VERSION = "ATIF-v1.4"
NOTES = (
    "Steps are numbered as ATIF asks for; extra.step is the run's own number. Of a planner's tokens only their sum is "
    "known: metrics.extra.tokens. Totals are those of the report, with baseline and final evaluation, which are no "
    "steps; of a run without a report they are the sums of the steps."
)
REPOSITORY = Path(__file__).resolve().parents[1]


def trajectory(run_dir: Path) -> Json:
    """Return the trajectory of a run as one JSON object. Raises ValueError for a folder that is no run."""
    record = views.open_run(run_dir)
    program = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config = record["config"]
    events = list(read_events(run_dir))
    turns = [{"source": "user", "message": f"Improve the model {config['model']} on the task {config['task']}."}]
    turns += _turns(events)
    report = views.read_report(run_dir)
    usages = [event["usage"] for event in events if "usage" in event]
    usd = report["spent"]["usd"] if report else sum(usage.get("cost_usd") or 0 for usage in usages)
    tokens = report["tokens"] if report else sum(usage.get("tokens") or 0 for usage in usages)
    ended = next((event for event in reversed(events) if event["kind"] == "run_stopped"), None)
    return {
        "schema_version": VERSION,
        "session_id": run_dir.name,
        "agent": {
            "name": AGENT,
            "version": program["version"],
            "model_name": config["model"],
            "extra": {"planner": config["planner"], "config": config},
        },
        "steps": [{"step_id": number} | turn for number, turn in enumerate(turns, 1)],
        "notes": NOTES,
        "final_metrics": {
            "total_cost_usd": float(usd),
            "total_steps": len(turns),
            "extra": {"total_tokens": tokens},
        },
        "extra": {name: ended[name] for name in ("reason", "sentence", "error")} if ended else {},
    }


def _turns(events: list[Event]) -> Iterator[Json]:
    """Yield the run's events as turns; what follows a decision is gathered into its turn."""
    turn: Json | None = None
    for event in events:
        match event["kind"]:
            case "observed":
                if turn:
                    yield turn
                extra = {"step": event["step"], "menu": menu_of(event)}
                yield _turn(event, "user", canonical_json(event["situation"]), extra)
                turn = None
            case "decided":
                if turn:
                    yield turn
                turn = _decision(event)
            case "tool_finished" | "tool_failed" | "judged" | "answered" if turn:
                turn.setdefault("observation", {"results": []})["results"].append(_result(event, turn))
    if turn:
        yield turn


def _turn(event: Event, source: str, message: str, extra: Json) -> Json:
    return {"timestamp": event["ts"], "source": source, "message": message, "extra": extra}


def _decision(event: Event) -> Json:
    action, usage = event["action"], event["usage"]
    extra = {name: event[name] for name in ("step", "decided_by", "alternatives", "problems")}
    call = {"tool_call_id": f"call-{event['seq']}", "function_name": action["tool"], "arguments": action["args"]}
    names = ("logprob", "argument_logprobs", "probabilities")
    measured = {"tokens": usage.get("tokens")} | {name: event[name] for name in names if name in event}
    turn = _turn(event, "agent", call_text(action), extra) | {"tool_calls": [call]}
    turn["metrics"] = {"cost_usd": float(usage.get("cost_usd") or 0), "extra": measured}
    return turn | ({"reasoning_content": event["reasoning"]} if event["reasoning"] else {})


def _result(event: Event, turn: Json) -> dict[str, Any]:
    """Return what came of a call, what the referee said of it or what a person answered, as an observation."""
    match event["kind"]:
        case "tool_finished":
            content = canonical_json(event["result"])
        case "tool_failed":
            content = f"refused: {event['error']}"
        case kind:
            content = canonical_json({kind: {name: value for name, value in event.items() if name not in HEAD}})
    ours = event["kind"] in ("tool_finished", "tool_failed")
    return {"source_call_id": turn["tool_calls"][0]["tool_call_id"] if ours else None, "content": content}
