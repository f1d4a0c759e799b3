"""A run's events.jsonl as text: a tree of steps for `trace show`, one line per event for `trace tail`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.decision_text import among_texts, decides_text, sureness_text, why_text
from agent.disk import freed_text
from agent.trace import Event
from agent.trace_select import Filter, menu_of, select_steps
from agent.views import (
    Json,
    budget_text,
    final_lines,
    is_locked,
    open_run,
    read_report,
    run_state,
    score_text,
    verdict_text,
)
from memory.store import opened_text

REASONING_LENGTH = 240
"""Characters of a reasoning that the whole tree shows; `--step N` shows all of it."""
EVERYTHING = Filter()
TOLD_ALREADY = ("run_started", "final")
"""Events that head and end of the whole tree tell; all others stand with their step or the one before them."""


def tree_lines(run_dir: Path, wanted: Filter = EVERYTHING) -> Iterator[str]:
    """Yield the tree of a run, or of the wanted steps and events; a single step is told in full."""
    whole = wanted == EVERYTHING
    reasoning_length = REASONING_LENGTH if wanted.step is None else None
    if whole:
        yield _header(run_dir, open_run(run_dir))
    last: Event | None = None
    final: Event | None = None
    undecided = "" if wanted.kinds or wanted.since else _undecided_text(run_dir)
    for step, events in select_steps(run_dir, wanted):
        last = events[-1]
        final = next((event for event in events if event["kind"] == "final"), final)
        if whole:  # what ended the run comes behind the tree; a stop that was resumed has `run_resumed` behind it
            events = events[:-1] if last["kind"] == "run_stopped" else events
            events = [event for event in events if event["kind"] not in TOLD_ALREADY]
        if "tool_started" not in wanted.kinds:  # the decision before it says the same
            events = [event for event in events if event["kind"] != "tool_started"]
        if events:
            at_end = step and not any(event["kind"] == "decided" for event in events)
            yield from _step_lines(step, events, reasoning_length, [undecided] if undecided and at_end else [])
    if whole:
        yield from _end_lines(run_dir, last, final)
    elif last is None:
        yield f"nothing in run {run_dir.name} matches"


def _header(run_dir: Path, record: Json) -> str:
    config = record["config"]
    limits = f"budget {budget_text(config)}, goal {config.get('goal') or 'none'}"
    return (
        f"run {run_dir.name}, begun {record.get('created')}\n"
        f"  task {config['task']}\n"
        f"  model {config['model']}, planner {config['planner']}, seed {config['seed']}, {limits}"
    )


def _undecided_text(run_dir: Path) -> str:
    """Return what is said of a last step on which nothing was decided; "" while something may still be."""
    report = read_report(run_dir)
    ended = report is not None and run_state(run_dir) == "finished"
    return f"no decision: {report['stop_sentence']}" if report and ended else ""


def _step_lines(step: int, events: list[Event], reasoning_length: int | None, more: list[str]) -> list[str]:
    """Return a step as a small tree, more at its end; a step that was repeated after a kill shows both attempts."""
    lines: list[str] = []
    for event in events:
        lines += event_lines(event, reasoning_length)
    lines += more
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
            details = [] if reasoning_length is not None else _evidence_lines(event)
            return [f"sees: {_situation_text(event['situation'])}", *details]
        case "decided":
            return _decision_lines(event, reasoning_length)
        case "tool_started":
            return [f"starts: {call_text(event)}"]
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
        case "answered":
            return [answer_text(event)]
        case "forked":
            return [f"forked from run {event['from_run']} at step {event['from_step']}, planner {event['planner']}"]
        case "collapsed":
            return [f"collapse: {event['sign']}"]
        case "plateau":
            return [f"plateau: {event['sign']}"]
        case "retried":
            return [f"tried again: {event['function'].rpartition(':')[2]}: {event['why']}"]
        case "mended":
            return [f"damaged, set aside and made again: {', '.join(event['files'])}"]
        case "freed":
            return [freed_text(event)]
        case "judge_checked":
            return [f"judge checked: {event['note']}"]
        case "changes_accepted":
            return ["a person accepted changes:", *(f"   {line}" for line in event["changes"])]
        case "final":
            return [f"final split, {opened_text(event)}", *final_lines(event)]
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


def _evidence_lines(event: Event) -> list[str]:
    """Return all that the planner was shown, in the words it read, and what it could choose from."""
    situation = [f"   {line}" for line in situation_words(event["situation"]).splitlines()]
    return [*situation, "   may choose:", *(f"      {legal_text(row)}" for row in menu_of(event))]


def situation_words(situation: Json) -> str:
    """Return a situation in the words that a planner reads, a line for each part."""
    from agent.situation import situation_text  # with it come all planners

    try:
        return situation_text(situation)
    except KeyError:  # recorded by a version whose situation held other values
        return "\n".join(f"- {name}: {_plain_text(value)}" for name, value in situation.items() if value is not None)


def _decision_lines(event: Event, reasoning_length: int | None) -> list[str]:
    sure = sureness_text(event)
    lines = [f"{decides_text(event['decided_by'])}: {call_text(event['action'])}{sure and f', {sure}'}"]
    lines += [f"   {text}" for text in among_texts(event)]
    lines += [f"   invalid before: {problem}" for problem in event.get("problems", [])]
    reasoning = " ".join(event["reasoning"].split())
    if reasoning and event["decided_by"] != "only_choice":  # whose name says why
        cut = reasoning_length is not None and len(reasoning) > reasoning_length
        why = why_text(event["decided_by"], not event["alternatives"])
        lines.append(f"   {why}: {reasoning[:reasoning_length]}{'...' if cut else ''}")
    if event["usage"].get("tokens"):
        dollars = f", {event['usage']['cost_usd']:.4f} USD" if event["usage"].get("cost_usd") else ""
        lines.append(f"   cost of deciding: {event['usage']['tokens']:.0f} tokens{dollars}")
    return lines


def answer_text(answered: Json) -> str:
    """Return what a person said to a question, with the reason."""
    edited = f": {call_text(answered['edited'])}" if answered["edited"] else ""
    reason = f" ({answered['reason']})" if answered["reason"] else ""
    return f"{answered['who']} answers {answered['answer']}{edited}{reason}"


def call_text(action: Json) -> str:
    """Return a call as tool(name=value, ...)."""
    return f"{action['tool']}({', '.join(f'{name}={value}' for name, value in action['args'].items())})"


def legal_text(row: Json) -> str:
    """Return a row of the menu as tool(name value|value; ...), with what the tool has brought behind it."""
    grids = (f"{name} {'|'.join(map(str, values))}" for name, values in row["arguments"].items())
    outcome = f", so far: {row['outcome']}" if row.get("outcome") else ""
    arguments = f"({'; '.join(grids)})" if row["arguments"] else ""
    return f"{row['tool']}{arguments}{outcome}"


def result_text(result: Json) -> str:
    """Return a tool's result on one line; scores get their interval and n beside them, None is left out."""
    parts = []
    for name, value in result.items():
        if name in ("ci95", "n") or value is None:
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
    """Return what a call or a job cost: seconds and tokens, and what else it took of GPUs, money and disk."""
    parts = [f"{usage['wall_s']:.1f} s wall, {usage['cpu_s']:.1f} s cpu, {usage['tokens']} tokens"]
    more = {"gpu_seconds": "{:.1f} s gpu", "gpu_s": "{:.1f} s gpu", "usd": "{:.4f} USD", "gib": "{:.3f} GiB of disk"}
    parts += [words.format(usage[unit]) for unit, words in more.items() if usage.get(unit)]
    return f"cost: {', '.join(parts)}"


def _error_text(event: Event) -> str:
    return f" ({event['error']})" if event.get("error") else ""


def _end_lines(run_dir: Path, last: Event | None, final: Event | None) -> list[str]:
    if last is None or last["kind"] != "run_stopped":
        if is_locked(run_dir):
            return [f"still running; watch it with `run_agent.py trace tail {run_dir.name}`"]
        return [f"killed: no ending was written; go on with `run_agent.py resume {run_dir.name}`"]
    why = f"{last['reason']}: {last['sentence']}{_error_text(last)}"
    lines = [f"end (at {last['spent_s']:.0f} s): {why}"]
    if final is not None:
        lines += [f"final split, {opened_text(final)}:", *(f"  {line}" for line in final_lines(final))]
    return lines


def tail_lines(run_dir: Path, as_json: bool = False, poll_s: float = 0.3, wanted: Filter = EVERYTHING) -> Iterator[str]:
    """Yield one line per wanted event, as they come; ends when no process works on the run."""
    last: Event = {}
    for event in arriving_events(run_dir, poll_s):
        last = event
        if not wanted.takes_alone(event):
            continue
        if as_json:
            yield json.dumps(event)
            continue
        texts = event_lines(event, REASONING_LENGTH)
        place = "run" if event["step"] is None else f"step {event['step']}"
        yield f"{event['ts'][11:19]} {event['spent_s']:7.1f} s  {place:<8} {'; '.join(text.strip() for text in texts)}"
    if not as_json and last.get("kind") != "run_stopped":
        yield f"killed: no process works on this run; go on with `run_agent.py resume {run_dir.name}`"


def arriving_events(run_dir: Path, poll_s: float) -> Iterator[Event]:
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
