"""A run's events.jsonl as text: a tree of steps for `trace show`, one line per event for `trace tail`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.trace import Event, read_events
from agent.views import (
    Json,
    budget_text,
    final_lines,
    is_locked,
    open_run,
    score_text,
    verdict_text,
)

REASONING_LENGTH = 240
"""Characters of a reasoning that the whole tree shows; `--step N` shows all of it."""


def select_events(run_dir: Path, step: int | None) -> list[Event]:
    """Return the events of a run, or of one step (None = all). Raises ValueError for a step that there is not."""
    events = list(read_events(run_dir))
    if step is None:
        return events
    known = sorted({event["step"] for event in events if event["step"] is not None})
    if step not in known:
        steps = f"steps {known[0]} to {known[-1]}" if known else "no step yet"
        raise ValueError(f"run {run_dir.name} has no step {step}; it has {steps}")
    return [event for event in events if event["step"] == step]


def trace_text(run_dir: Path, step: int | None = None) -> str:
    """Return the tree of a run, or of one step with its reasoning in full."""
    events = select_events(run_dir, step)
    if step is not None:
        return "\n".join(_step_lines(step, events, None))
    blocks = [_header(run_dir, open_run(run_dir))]
    groups: dict[int, list[Event]] = {}
    current = 0
    for event in events:
        current = event["step"] or current
        if event["step"] is not None or event["kind"] in ("run_resumed", "run_stopped"):
            groups.setdefault(current, []).append(event)
    last_stop = events[-1] if events and events[-1]["kind"] == "run_stopped" else None
    for number, group in sorted(groups.items()):
        shown = [event for event in group if event is not last_stop]
        blocks += _step_lines(number, shown, REASONING_LENGTH) if shown else []
    return "\n".join(blocks + _end_lines(run_dir, events, last_stop))


def _header(run_dir: Path, record: Json) -> str:
    config = record["config"]
    limits = f"budget {budget_text(config)}, goal {config.get('goal') or 'none'}"
    return (
        f"run {run_dir.name}, begun {record.get('created')}\n"
        f"  task {config['task']}\n"
        f"  model {config['model']}, planner {config['planner']}, seed {config['seed']}, {limits}"
    )


def _step_lines(step: int, events: list[Event], reasoning_length: int | None) -> list[str]:
    """Return a step as a small tree; a step that was repeated after a kill shows both attempts."""
    lines: list[str] = []
    for event in events:
        lines += event_lines(event, reasoning_length)
    started = f" (at {events[0]['spent_s']:.0f} s)" if events else ""
    branches = [("└─ " if index == len(lines) - 1 else "├─ ") + line for index, line in enumerate(lines)]
    return [f"{f'step {step}' if step else 'before step 1'}{started}", *branches]


def event_lines(event: Event, reasoning_length: int | None) -> list[str]:
    """Return an event in words, one line or a few; reasoning_length None = in full. Unknown kinds say their name."""
    match event["kind"]:
        case "run_started":
            config = event["config"]
            return [f"started: task {config['task']}, model {config['model']}, planner {config['planner']}"]
        case "observed":
            return [f"sees: {_situation_text(event['situation'])}"]
        case "decided":
            return _decision_lines(event, reasoning_length)
        case "tool_started":
            return []
        case "tool_finished":
            return [f"result: {result_text(event['result'])}", cost_text(event["usage"])]
        case "tool_failed":
            return [f"refused: {event['error']}", cost_text(event["usage"])]
        case "judged":
            return [f"verdict: {verdict_text(event)}"]
        case "run_resumed":
            return [f"resumed {event['ts']}, {event['spent_s']:.0f} s spent"]
        case "run_stopped":
            return [f"stopped {event['ts']}: {event['reason']}: {event['sentence']}" + _error_text(event)]
        case "collapsed":
            return [f"collapse: {event['sign']}"]
        case "final":
            return ["final split, opened once", *final_lines(event)]
        case kind:
            return [str(kind)]


def _situation_text(situation: Json) -> str:
    parts = [
        f"champion {situation['champion']} {score_text(situation['score'])}",
        f"budget left {situation['budget_left_percent']} %",
        f"unused answers {situation['unused_right_answers']}",
    ]
    if situation.get("waiting_dataset"):
        parts.append(f"dataset of {situation['waiting_dataset']} waits")
    if situation.get("waiting_candidate"):
        parts.append("candidate waits")
    return " | ".join(parts)


def _decision_lines(event: Event, reasoning_length: int | None) -> list[str]:
    sure = "" if event["logprob"] is None else f", log-probability {event['logprob']:.2f}"
    lines = [f"{event['decided_by']} decides: {call_text(event['action'])}{sure}"]
    others = [
        other["tool"] if other.get("logprob") is None else f"{other['tool']} {other['logprob']:.2f}"
        for other in event["alternatives"]
    ]
    if others:
        lines.append(f"   instead of: {', '.join(others)}")
    lines += [f"   invalid before: {problem}" for problem in event.get("problems", [])]
    if reasoning := " ".join(event["reasoning"].split()):
        cut = reasoning_length is not None and len(reasoning) > reasoning_length
        lines.append(f"   because: {reasoning[:reasoning_length]}{'...' if cut else ''}")
    return lines


def call_text(action: Json) -> str:
    """Return a call as tool(name=value, ...)."""
    return f"{action['tool']}({', '.join(f'{name}={value}' for name, value in action['args'].items())})"


def result_text(result: Json) -> str:
    """Return a tool's result on one line; scores get their interval and n beside them."""
    parts = []
    for name, value in result.items():
        if name in ("ci95", "n"):
            continue
        if name == "search_score":
            parts.append(f"search {score_text({**result, 'score': value})}")
        elif name == "gain_on_search":
            parts.append(f"gain {100 * value:+.1f} points (n={result.get('n', '?')})")
        elif isinstance(value, dict) and {"score", "n"} <= set(value):
            rest = "".join(f" {entry}" for key, entry in value.items() if key not in ("score", "n", "ci95"))
            parts.append(f"{name}{rest} {score_text(value)}")
        else:
            parts.append(f"{name} {_plain_text(value)}")
    return ", ".join(parts) or "nothing"


def _plain_text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {entry}" for key, entry in value.items()) + "}"
    return str(value)


def cost_text(usage: Json) -> str:
    """Return what a call cost: seconds and tokens."""
    return f"cost: {usage['wall_s']:.1f} s wall, {usage['cpu_s']:.1f} s cpu, {usage['tokens']} tokens"


def _error_text(event: Event) -> str:
    return f" ({event['error']})" if event.get("error") else ""


def _end_lines(run_dir: Path, events: list[Event], last_stop: Event | None) -> list[str]:
    if last_stop is None:
        if is_locked(run_dir):
            return [f"still running; watch it with `run_agent.py trace tail {run_dir.name}`"]
        return [f"killed: no ending was written; go on with `run_agent.py resume {run_dir.name}`"]
    why = f"{last_stop['reason']}: {last_stop['sentence']}{_error_text(last_stop)}"
    lines = [f"end (at {last_stop['spent_s']:.0f} s): {why}"]
    final = next((event for event in reversed(events) if event["kind"] == "final"), None)
    if final is not None:
        lines += ["final split, opened once:", *(f"  {line}" for line in final_lines(final))]
    return lines


def tail_lines(run_dir: Path, as_json: bool = False, poll_s: float = 0.3) -> Iterator[str]:
    """Yield one line per event, from the first, as they come; ends when no process works on the run."""
    last: Event = {}
    for event in _arriving_events(run_dir, poll_s):
        last = event
        if as_json:
            yield json.dumps(event)
            continue
        texts = event_lines(event, REASONING_LENGTH)
        if event["kind"] == "tool_started":
            texts = [f"starts: {call_text(event)}"]
        place = "run" if event["step"] is None else f"step {event['step']}"
        yield f"{event['ts'][11:19]} {event['spent_s']:7.1f} s  {place:<8} {'; '.join(text.strip() for text in texts)}"
    if not as_json and last.get("kind") != "run_stopped":
        yield f"killed: no process works on this run; go on with `run_agent.py resume {run_dir.name}`"


def _arriving_events(run_dir: Path, poll_s: float) -> Iterator[Event]:
    """Yield events as whole lines arrive. Only new bytes are read, so that watching a long run costs nothing."""
    path, offset, number = run_dir / "events.jsonl", 0, 0
    while True:
        live = is_locked(run_dir)  # before reading: what a run wrote last is still shown
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn by a kill or being written; a resumed run cuts it off at this very offset
                    offset, number = offset + len(line), number + 1
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{path} line {number} is damaged ({error})") from error
        if not live:
            return
        time.sleep(poll_s)
