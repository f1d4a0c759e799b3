"""Two runs side by side: where they part and why, and how every step compares.

Runs are aligned by the number of the step. A step is an observed situation, a decision and what came back; where a
kill made a run repeat one, its last attempt counts. What only a clock can say (fields whose name ends in `_s`) is
left out of the comparison.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agent import views
from agent.decision_text import among_texts, chances, decides_text, sureness_text
from agent.final_pair import final_pair, final_pair_text
from agent.trace import Event, read_events
from agent.trace_search import HEAD, leaves
from agent.trace_select import menu_of, steps
from agent.trace_view import call_text
from tools.contract import Json

ABSENT = "-"
"""Shown where one of the two has no such field."""
MOST_FIELDS = 12
"""Differing fields that the text names where two runs part; --json names all."""
MOST_FIELDS_OF_A_ROW = 4
"""And of each step in the table."""
FIRST = ("accepted", "search_score", "gain_on_search", "num_fixed", "num_broken", "p_value")
"""Of a result that differs, what is named first: verdict and scores."""
LEGAL = "legal"
"""Shown of a tool on the menu without arguments, or of a version that recorded the tools' names alone."""
BUDGET_TELLS = ("budget_left_percent", "tokens_per_point", "last_action", "menu")
"""Of the situation: what depends on the time and on the planner's tokens, or says again what the outcome says. Not
compared of a run and its replay, which has no limits."""
OF_A_REPLAY = ("budget_", "prices", "planner", "approve", "max_steps", "dtype")
"""What the names of the settings begin with that a replay has of its own."""
PLACES = ("runs_dir", "models_dir")
"""Settings that say where files lie, not what a run does."""


class Step(NamedTuple):
    """What a step of a run came to; None where the run did not get that far."""

    situation: Json | None
    """What the planner was shown, with the menu."""
    decision: Event | None
    outcome: Json | None
    """The result with the referee's verdict, or the refusal."""


def diff(run_a: Path, run_b: Path) -> Json:
    """Return where two runs part and why, and a row for each step.

    {"a", "b", "related", "settings": fields that differ, "num_steps" (decided ones), "parted",
    "decided_differently", "not_compared", "counts", "rows", "ends", "final"}.
    "not_compared" is what only one of the runs recorded, being of another version; [] where both recorded the same.
    "related" says in words which of the two came from the other, None where neither did. "ends" holds of each run its
    verdicts, {"step"} with what the referee said, and "final", the scores on the final split (None = not opened), of
    which "final" beside it says whether they differ, see `final_pair`.
    "parted" is the first step with any difference and "decided_differently" the first with another call, both None
    when there is none; see `_place`. A row is {"step", "how", "a", "b", "differs"} with the calls in words and the
    fields that make the difference beside the call; how: "same", "different tool", "different arguments",
    "different result", "different situation", "no decision in A", "no result in A", "only in A", and the same of B.
    """
    rows: list[Json] = []
    parted: Json | None = None
    decided_differently: Json | None = None
    verdicts: dict[str, list[Json]] = {"a": [], "b": []}
    not_compared: set[str] = set()
    num_steps = {"a": 0, "b": 0}
    replays = _is_replay(run_a, run_b)
    for number, a, b in _decided_steps(run_a, run_b):
        if a and b:
            a, b, left_out = _comparable(a, b, BUDGET_TELLS if replays else ())
            not_compared |= left_out
        how = _compare(a, b)
        rows.append({"step": number, "how": how, "a": _call(a), "b": _call(b), "differs": _differs(how, a, b)})
        for name, step in (("a", a), ("b", b)):
            num_steps[name] += step is not None and step.decision is not None
            verdict = ((step and step.outcome) or {}).get("verdict")
            verdicts[name] += [{"step": number} | verdict] if verdict else []
        if parted is None and how != "same":
            parted = _place(number, how, a, b)
        if decided_differently is None and how in ("different tool", "different arguments"):
            decided_differently = _place(number, how, a, b)
    return {
        "a": run_a.name,
        "b": run_b.name,
        "related": _related(run_a, run_b),
        "settings": different(*(_settings(run, OF_A_REPLAY if replays else ()) for run in (run_a, run_b))),
        "num_steps": num_steps,
        "parted": parted,
        "decided_differently": decided_differently,
        "not_compared": sorted(not_compared),
        "counts": dict(Counter(row["how"] for row in rows)),
        "rows": rows,
        "ends": {name: _end(run_dir, verdicts[name]) for name, run_dir in (("a", run_a), ("b", run_b))},
        "final": final_pair(run_a, run_b),
    }


def _end(run_dir: Path, verdicts: list[Json]) -> Json:
    return {"verdicts": verdicts, "final": (views.read_report(run_dir) or {}).get("final")}


def _decided_steps(run_a: Path, run_b: Path) -> Iterator[tuple[int, Step | None, Step | None]]:
    for number, pair in enumerate(itertools.zip_longest(steps_of(run_a), steps_of(run_b)), 1):
        if any(step and step.decision for step in pair):
            yield number, *pair


def _is_replay(run_a: Path, run_b: Path) -> bool:
    """Whether one of the two repeats the other."""
    pairs = ((run_a, run_b), (run_b, run_a))
    return any(views.open_run(one).get("replay_of", {}).get("run") == other.name for one, other in pairs)


def _related(run_a: Path, run_b: Path) -> str | None:
    if _is_replay(run_a, run_b):
        repeats = "B is a replay of A" if "replay_of" in views.open_run(run_b) else "A is a replay of B"
        why = "by design it has no limits, so budget, menu and what follows from them are not compared"
        return f"{repeats}; {why}"
    origins: list[Any] = [views.open_run(run).get("forked_from") for run in (run_a, run_b)]
    for name, other, origin, source in (("B", "A", origins[1], run_a), ("A", "B", origins[0], run_b)):
        if origin and origin["run"] == source.name:
            return f"{name} is a fork of {other} at step {origin['step']}"
    if origins[0] and origins[1] and origins[0]["run"] == origins[1]["run"]:
        where = " and ".join(f"{name} at step {origin['step']}" for name, origin in zip("AB", origins, strict=True))
        return f"both are forks of {origins[0]['run']}, {where}"
    return None


def _differs(how: str, a: Step | None, b: Step | None) -> list[Json]:
    """Return the fields that differ in a step of this kind; after different calls the results have no common ground."""
    if a is None or b is None or how not in ("different result", "different situation"):
        return []
    if how == "different situation":
        return different(a.situation, b.situation)
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    return sorted(different(a.outcome, b.outcome), key=lambda row: ranks.get(row["field"].split(".")[-1], len(FIRST)))


def _settings(run_dir: Path, left_out: tuple[str, ...]) -> Json:
    record = views.open_run(run_dir)
    config = {name: value for name, value in record["config"].items() if not name.startswith((*PLACES, *left_out))}
    return config | {"identity": record.get("identity")}


def steps_of(run_dir: Path) -> Iterator[Step]:
    """Yield the steps of a run, from the first."""
    for number, events in steps(read_events(run_dir)):
        if number:
            yield _step(events)


def _step(events: list[Event]) -> Step:
    situation: Json | None = None
    decision: Event | None = None
    outcome: Json | None = None
    for event in events:
        match event["kind"]:
            case "observed":
                situation = event["situation"] | {"menu": _menu(event)}
            case "decided":
                decision = event
            case "tool_finished":
                outcome = {"result": event["result"]}
            case "tool_failed":
                outcome = {"refused": event["error"]}
            case "judged":
                verdict = {name: value for name, value in event.items() if name not in HEAD}
                outcome = (outcome or {}) | {"verdict": verdict}
    return Step(situation, decision, outcome)


def _menu(event: Event) -> Json:
    """Return the menu by tools, each argument's values as one text: a value more is one difference, not a row of them.

    What a tool has brought is left out: verdicts say it too.
    """
    return {
        row["tool"]: {name: "|".join(map(str, values)) for name, values in row["arguments"].items()} or LEGAL
        for row in menu_of(event)
    }


def _comparable(a: Step, b: Step, without: tuple[str, ...]) -> tuple[Step, Step, set[str]]:
    """Return both steps with what both versions record of a situation, and the names of what is left out of it.

    without: fields that are not compared at all.
    """
    if a.situation is None or b.situation is None:
        return a, b, set()
    ours, theirs = _shared(a.situation, b.situation), _shared(b.situation, a.situation)
    left_out = set(a.situation.keys() ^ b.situation.keys())
    if (ours["menu"], theirs["menu"]) != (a.situation["menu"], b.situation["menu"]):
        left_out.add("values on the menu")
    for name in without:
        ours.pop(name, None)
        theirs.pop(name, None)
    return a._replace(situation=ours), b._replace(situation=theirs), left_out


def _shared(situation: Json, other: Json) -> Json:
    """Return the fields of a situation that the other has too; of tools that it names alone, the names alone."""
    names = [tool for tool, values in other["menu"].items() if values == LEGAL]
    menu = {tool: LEGAL if tool in names else values for tool, values in situation["menu"].items()}
    return {name: value for name, value in situation.items() if name in other} | {"menu": menu}


def _compare(a: Step | None, b: Step | None) -> str:
    """Return how a step differs, its decision first: what was called says more than what was seen."""
    if a is None or b is None:
        return "only in A" if b is None else "only in B"
    action_a, action_b = (step.decision and step.decision["action"] for step in (a, b))
    if action_a != action_b:
        if action_a is None or action_b is None:
            return f"no decision in {'A' if action_a is None else 'B'}"
        return "different arguments" if action_a["tool"] == action_b["tool"] else "different tool"
    if (a.outcome is None) is not (b.outcome is None):
        return f"no result in {'A' if a.outcome is None else 'B'}"
    if different(a.outcome, b.outcome):
        return "different result"
    return "different situation" if different(a.situation, b.situation) else "same"


def different(a: Any, b: Any) -> list[Json]:
    """Return [{"field", "a", "b"}] of the plain values that differ between two JSON values; None = no fields."""
    ours, theirs = (dict(leaves(value)) if value else {} for value in (a, b))
    return [
        {"field": field, "a": ours.get(field, ABSENT), "b": theirs.get(field, ABSENT)}
        for field in [*ours, *(field for field in theirs if field not in ours)]
        if ours.get(field, ABSENT) != theirs.get(field, ABSENT) and not field.endswith("_s")
    ]


def _place(number: int, how: str, a: Step | None, b: Step | None) -> Json:
    """Return {"step", "how", "why", "situation", "outcome", "a", "b"}: differing fields, and both decisions."""
    situation = different(a.situation, b.situation) if a and b else []
    outcome = _differs(how, a, b) if how == "different result" else []
    shown = "the planner was shown something else"
    decided = shown if situation else "a different decision on the same situation"
    before = f", and before it {shown}" if situation else ""
    whys = {
        "different tool": decided,
        "different arguments": decided,
        "different result": f"the same call came to a different result{before}",
        "different situation": f"{shown} and decided the same",
    }
    return {
        "step": number,
        "how": how,
        "why": whys.get(how, "one of the two got no further"),
        "situation": situation,
        "outcome": outcome,
        "a": _decision(a),
        "b": _decision(b),
    }


def _decision(step: Step | None) -> Json | None:
    if step is None or step.decision is None:
        return None
    names = ("action", "decided_by", "logprob", "argument_logprobs", "alternatives", "reasoning")
    told = {name: step.decision[name] for name in names if name in step.decision}
    return told | {"probabilities": chances(step.decision)}


def _call(step: Step | None) -> str | None:
    return None if step is None or step.decision is None else call_text(step.decision["action"])


# --- in words


def diff_lines(found: Json) -> Iterator[str]:
    """Yield the text of `diff`: the two runs, where they part and why, a table of the steps, and how both ended."""
    for name in ("a", "b"):
        yield f"{name.upper()}  {found[name]}, {found['num_steps'][name]} steps"
    if found["related"]:
        yield found["related"]
    if found["settings"]:
        yield "settings that differ (A | B):"
        yield from _field_lines(found["settings"])
    if found["not_compared"]:
        yield f"recorded by another version, so not compared: {', '.join(found['not_compared'])}"
    parted, decided = found["parted"], found["decided_differently"]
    if parted is None:
        yield f"the runs do not part: {len(found['rows'])} steps are the same"
    else:
        yield from _place_lines("they part", parted)
        if decided is not None and decided["step"] != parted["step"]:
            yield from _place_lines("the first different decision", decided)
        yield ""
        yield from _table_lines(found["rows"])
    yield ""
    yield final_pair_text(found["final"])
    for name in ("a", "b"):
        yield from _end_lines(name.upper(), found["ends"][name])


def _place_lines(what: str, place: Json) -> Iterator[str]:
    yield f"{what} at step {place['step']}, {place['how']}: {place['why']}"
    for name in ("a", "b"):
        decision = place[name]
        if decision is None:
            yield f"  {name.upper()}  no decision"
            continue
        parts = [call_text(decision["action"]), sureness_text(decision), *among_texts(decision)]
        said = ", ".join(part for part in parts if part)
        yield f"  {name.upper()}  {decides_text(decision['decided_by'])}: {said}"
    for name, title in (("situation", "shown to the planner"), ("outcome", "came back")):
        if place[name]:
            yield f"  {title} (A | B):"
            yield from _field_lines(place[name])


def _field_lines(fields: list[Json], most: int = MOST_FIELDS, indent: str = "    ") -> Iterator[str]:
    for entry in fields[:most]:
        yield f"{indent}{entry['field']}: {entry['a']} | {entry['b']}"
    if len(fields) > most:
        yield f"{indent}and {len(fields) - most} more; --json names them"


def _table_lines(rows: Iterable[Json]) -> Iterator[str]:
    """Yield a line for each step, and one for all steps in a row that are the same."""
    yield f"{'step':>11}  how"
    for same, group in itertools.groupby(rows, key=lambda row: row["how"] == "same"):
        if same:
            numbers = [row["step"] for row in group]
            yield f"{_range(numbers[0], numbers[-1]):>11}  same"
            continue
        for row in group:
            calls = [row["a"] or ABSENT] if row["a"] == row["b"] else [row["a"] or ABSENT, row["b"] or ABSENT]
            yield f"{row['step']:>11}  {row['how']:<20} {' | '.join(calls)}"
            yield from _field_lines(row["differs"], MOST_FIELDS_OF_A_ROW, " " * 15)


def _end_lines(name: str, end: Json) -> Iterator[str]:
    """Yield the verdicts and the final scores of a run."""
    yield f"{name}  {'verdicts:' if end['verdicts'] else 'no verdict'}"
    for verdict in end["verdicts"]:
        yield f"     step {verdict['step']}: {views.verdict_text(verdict)}"
    yield f"   {'final split:' if end['final'] else 'final split not opened'}"
    for line in views.final_lines(end["final"]) if end["final"] else ():
        yield f"     {line}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
