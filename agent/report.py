"""One HTML page about a run: what came out, how it got there, every verdict, cost, dataset and decision.

Writes <run>/report.html, or the file of --out. Reads files only, so it works on a finished, a live and a killed run.
Here the files become plain values; report.html.jinja says how they look, with what it shares with the pages of `ui`:
parts.html.jinja and report.css. The page needs nothing but itself, and what a model wrote is escaped in it.
"""

import re
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

from agent import trace_view, views
from agent.clock import PARENT, earlier_clock, time_table
from agent.commands import Outcome, printable
from agent.decision_text import (
    among_texts,
    by_decider,
    chances,
    decider,
    decides_text,
    percent,
    sureness_text,
    why_text,
)
from agent.follow_rows import Rows
from agent.metering import WORK, spent_on
from agent.policies import policy_rows
from agent.sealing import looks_text
from agent.statistics import ALPHA
from agent.trace import Event, read_events
from agent.trace_facts import TraceFacts, facts_of
from agent.trace_select import menu_of
from memory.records import read_json, write_text
from memory.store import BASE, GREEDY, RunStore, opened_text
from tools.contract import Json

HERE = Path(__file__).parent
TEMPLATE = "report.html.jinja"
ARMS = {
    "base_zero_shot": "base, zero-shot", "base_few_shot": "base, few-shot",
    "champion_greedy": "champion, greedy and zero-shot", "champion": "champion",
}  # fmt: skip
UNITS = (("hours", 3600, 3), ("minutes", 60, 3), ("seconds", 1, 0))
"""Names of time units, their seconds, and of how many of them a run must last to be drawn in them."""
TICKS = 5
PICTURE = {"width": 600, "height": 340, "left": 58, "right": 22, "top": 44, "bottom": 56}
"""Size and margins of the learning curve, in units of its own; a screen scales it."""
_FOLDERS = re.compile(r"(?<![^:=])/(?:[^/?&=]+/)+")
"""What stands before a file's name in the spec of a task, a model or a planner."""
DODGE = 14
"""How far right of the base's score its few-shot score stands: both were measured at the same time."""


def report(args: Namespace) -> Outcome:
    """Write the page about a run and say where it is."""
    run_dir = views.find_run(Path(args.runs_dir), args.run)
    path = Path(args.out) if args.out else run_dir / "report.html"
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; give the name of a file in it")
    write_text(path, page(run_dir))
    return Outcome([f"wrote {path.resolve()}"], {"run": run_dir.name, "path": str(path.resolve())})


def page(run_dir: Path) -> str:
    """Return the page as HTML. Raises ValueError for a folder that is no run or is damaged."""
    return environment([HERE]).get_template(TEMPLATE).render(page_values(run_dir))


def environment(folders: list[Path]) -> Any:
    """Return the Jinja environment for templates in these folders: everything is escaped, nothing is left undefined.

    The global `link` says where the name of a model or dataset leads: here to its place on the page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # 50 ms that the other commands need not wait

    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["score"] = views.score_text
    made.filters["opened"] = opened_text
    made.filters["thousands"] = lambda number: None if number is None else f"{number:,.0f}"
    made.filters["percent"] = percent
    made.filters["decider"] = decider
    made.filters["moment"] = lambda ts: f"{ts[:19].replace('T', ' ')} UTC"
    made.filters["named"] = lambda spec: _FOLDERS.sub("", spec)
    made.filters["short"] = lambda number: f"{number:.2g}" if isinstance(number, float) else number
    made.globals["link"] = lambda kind, name: f"#{kind}-{name}"
    return made


def _shown(value: Any) -> Any:
    if type(value) is str:  # not Markup, which is the template's own
        return printable(value)
    return "–" if value is None else value  # noqa: RUF001 - a dash is what a table shows for nothing


def page_values(run_dir: Path) -> Json:
    """Return everything the page shows, as plain values; None where something does not exist (yet)."""
    facts, store = facts_of(run_dir), RunStore(run_dir)
    status = views.run_status(run_dir, facts, store)
    values = overview(run_dir, status, facts, store) | details(run_dir, status, store)
    return values | {"decisions": decisions(read_events(run_dir))}


def overview(run_dir: Path, status: Json, facts: TraceFacts, store: RunStore) -> Json:
    """Return what came out so far: result, learning curve, candidates with their verdicts, looks."""
    final, candidates = _final(run_dir, status), _candidates(run_dir, store)
    return {
        "status": status,
        "budget": views.budget_text(status["config"]),
        "identity": (store.score(BASE) or {}).get("identity", {}),
        "as_of": facts.last_ts or status["created"],
        "arms": ARMS,
        "final": final,
        "alpha": ALPHA,
        "candidates": candidates,
        "policies": policy_rows(run_dir, store),
        "looks": looks_text(status["looks"], status["resumes"]),
        "curve": _curve(store, facts, candidates, final),
        "decided_by": views.count_text(by_decider(status["decided_by"])),
    }


def details(run_dir: Path, status: Json, store: RunStore) -> Json:
    """Return what it took: costs, datasets, diagnosis. Reads every job and training row."""
    return {
        "costs": _costs(run_dir, status),
        "training_sets": _training_sets(store),
        "sample_sets": store.datasets("samples"),
        "diagnoses": [_final_diagnosis(_final(run_dir, status)), _search_diagnosis(store, status["champion"])],
        "scorer_errors": (views.read_report(run_dir) or {}).get("scorer_errors", 0),
    }


def _final(run_dir: Path, status: Json) -> Json | None:
    path = run_dir / "referee" / "final.json"  # written when the split is opened, before the run has ended
    final: Json | None = read_json(path) if path.exists() else status["final"]
    return final


def _candidates(run_dir: Path, store: RunStore) -> list[Json]:
    """Return every trained model, oldest first, with its verdict."""
    details = views.verdict_details(run_dir)
    verdicts = {verdict["model"]: verdict for verdict in store.verdicts()}
    rows, candidates = Rows(store), []
    for number, model in enumerate(store.all("models"), 1):
        verdict, detail = verdicts.get(model["id"]), details.get(model["id"])
        accepted = None if verdict is None else verdict["accepted"]
        champion = None if verdict is None else verdict["champion"]
        policy = (verdict or {}).get("policy", GREEDY)
        candidates.append(
            {
                "number": number,
                "id": model["id"],
                "accepted": accepted,
                "verdict": "not judged" if accepted is None else "accepted" if accepted else "rejected",
                "detail": detail,
                "failed_guards": [guard["name"] for guard in (detail or {}).get("guards", []) if not guard["ok"]],
                "guards": (detail or {}).get("guards", []),
                "champion": champion,
                "before": store.score(champion, policy=policy) if champion else None,
                "after": store.score(model["id"], policy=policy),
                "model": model,
                "sources": _sources(rows, model["id"]),
            }
        )
    return candidates


def _sources(rows: Rows, model: str) -> Json | None:
    """Return how many examples of a model come from where; None when a file of them is damaged (`doctor` names it)."""
    try:
        found: Json = rows.read_counts(model)["examples_by_source"]
    except ValueError:
        return None
    return found


def _curve(store: RunStore, facts: TraceFacts, candidates: list[Json], final: Json | None) -> Json | None:
    """Return the scores over time with their places in the picture, or None while nothing was measured.

    A model without an event of its verdict (killed in between) stands at the time of the last event.
    """
    latest_s = facts.spent_s
    begun_s = latest_s if facts.began_s is None else facts.began_s
    points: list[Json] = []
    for record in store.all("evals"):
        if (record["split"], record["model"], record.get("policy", GREEDY)) == ("search", BASE, GREEDY):
            point: Json = {"kind": "few-shot" if record["shots"] else "base", "name": _base_arm(record)}
            points.append(point | {"label": "", "at_s": begun_s, "record": record})
    for candidate in candidates:
        if candidate["after"] is not None:
            number, at_s = candidate["number"], facts.judged_s.get(candidate["id"], latest_s)
            point = {"kind": candidate["verdict"], "name": f"candidate {number}, {candidate['verdict']}"}
            points.append(point | {"label": str(number), "at_s": at_s, "record": candidate["after"]})
    if final is not None:
        point = {"kind": "final", "name": "champion, final split", "label": "", "at_s": latest_s}
        points.append(point | {"record": final["champion"] | {"n": final["n"]}})
    return _placed(points, latest_s) if points else None


def _base_arm(record: Json) -> str:
    return ARMS["base_few_shot" if record["shots"] else "base_zero_shot"]


def _placed(points: list[Json], latest_s: float) -> Json:
    """Return the picture: axes with ticks, and the points with x, y and the ends of their intervals."""
    unit, unit_s = next((name, seconds) for name, seconds, least in UNITS if latest_s >= least * seconds)
    times = _ticks(latest_s / unit_s or 1.0)
    shares = _ticks(100 * max(point["record"]["ci95"][1] for point in points))
    left, bottom = PICTURE["left"], PICTURE["height"] - PICTURE["bottom"]
    width, height = PICTURE["width"] - PICTURE["right"] - left, bottom - PICTURE["top"]

    def x(at_s: float) -> float:
        return round(left + width * at_s / unit_s / times[-1], 1)

    def y(share: float) -> float:
        return round(bottom - height * 100 * share / shares[-1], 1)

    for point in points:
        low, high = point["record"]["ci95"]
        point |= {"x": x(point["at_s"]), "y": y(point["record"]["score"]), "y_low": y(low), "y_high": y(high)}
        point["x"] += DODGE if point["kind"] == "few-shot" else 0
        point["at"] = f"{point['at_s'] / unit_s:.1f} {unit}"
    return PICTURE | {
        "unit": unit,
        "times": [(x(tick * unit_s), f"{tick:g}") for tick in times],
        "shares": [(y(tick / 100), f"{tick:g} %") for tick in shares],
        "points": points,
        "champions": [(point["x"], point["y"]) for point in points if point["kind"] in ("base", "accepted")],
    }


def _ticks(most: float) -> list[float]:
    """Return round numbers from 0 to the first that is not below most."""
    steps = (factor * 10.0**power for power in range(-3, 12) for factor in (1, 2, 5))
    step = next(step for step in steps if step * TICKS >= most)
    return [step * number for number in range(max(1, ceil(most / step)) + 1)]


def _costs(run_dir: Path, status: Json) -> Json:
    """Return time and tokens by kind of work: as in report.json, or while there is none by the run's clock."""
    work: dict[str, Json] = defaultdict(lambda: {"jobs": 0, "tokens": 0})
    for path in sorted((run_dir / "jobs").glob("*/spec.json")):
        kind = WORK.get(read_json(path)["function"], "other tools")
        row = work[PARENT if _is_the_parents(path.parent, status) else kind]
        row |= {"jobs": row["jobs"] + 1, "tokens": row["tokens"] + spent_on(path.parent)[0].tokens}
    report = views.read_report(run_dir) if status["state"] not in ("running", "killed") else None
    events = [] if (run_dir / "clock.json").exists() else list(read_events(run_dir))  # an earlier version kept no clock
    time_s, _ = time_table(earlier_clock(run_dir, events)["time_s"], status["spent_s"])
    so_far = {
        "wall_s": status["spent_s"],
        "tokens": sum(row["tokens"] for row in work.values()),
        "overhead_share": None,
        "time_s": time_s,
        "peak_rss_gib": None,
    }
    costs = so_far | {name: value for name, value in (report or {}).items() if name in so_far}
    total_s = sum(costs["time_s"].values()) or 1.0
    rows = [
        {"name": name, "seconds": seconds, "percent": 100 * seconds / total_s}
        | {key: work[name][key] if name in work else None for key in ("jobs", "tokens")}
        for name, seconds in sorted(costs["time_s"].items(), key=lambda pair: -pair[1])
    ]
    return costs | {"rows": rows}


def _is_the_parents(folder: Path, status: Json) -> bool:
    """Whether a job of a fork was done before the fork began: its files are the parent's, with their times.

    The fork's own first job ends more than a second after its beginning: a worker starts up before.
    """
    ended = [folder / name for name in ("result.json", "status.json") if (folder / name).exists()]
    if not status["forked_from"] or not ended:
        return False
    return ended[0].stat().st_mtime < datetime.fromisoformat(status["created"]).timestamp() + 1


def _training_sets(store: RunStore) -> list[Json]:
    """Return the frozen datasets, and those that were refused for being too small, oldest first."""
    verdicts, quarantined = store.verdicts(), store.quarantined()
    accepted = {name for verdict in verdicts if verdict["accepted"] for name in store.trained_on(verdict["model"])}
    rows = []
    for dataset in store.all("data"):
        if dataset["kind"] not in ("train", "refused"):
            continue
        name = dataset["id"]
        state = "quarantined" if name in quarantined else "in use" if name in accepted else "waits for a verdict"
        rejected = Counter(row.get("reason", "unknown") for row in store.rows("data", name, "rejected.jsonl"))
        sources = Counter(row.get("generation", "unknown") for row in store.rows("data", name, "train.jsonl"))
        rows.append(
            {
                "id": name,
                "num_examples": dataset.get("num_examples", 0),
                "rejected": rejected.most_common(),
                "sources": sources.most_common(),
                "state": "refused: too few examples" if dataset["kind"] == "refused" else state,
                "settings": {key: dataset[key] for key in ("size", "keep", "choice") if key in dataset},
            }
        )
    return rows


def _final_diagnosis(final: Json | None) -> Json:
    arms = {name: final[key].get("diagnosis") for key, name in ARMS.items() if key in final} if final else {}
    if final and arms["champion"] is None and "champion_by_difficulty" in final:  # all that runs once recorded
        arms["champion"] = {"by_difficulty": final["champion_by_difficulty"], "errors": None}
    return _diagnosis("final split", arms, final["n"] if final else 0)


def _search_diagnosis(store: RunStore, champion: str) -> Json:
    records = [record for record in store.all("evals") if record["split"] == "search"]
    greedy = [row for row in records if row.get("policy", GREEDY) == GREEDY]
    found = {_base_arm(row): row for row in greedy if row["model"] == BASE}
    policy = store.champion_policy()
    if (champion, policy) != (BASE, GREEDY) and (record := store.score(champion, policy=policy)) is not None:
        found[ARMS["champion"]] = record
    arms = {name: row.get("diagnosis") for name, row in found.items()}
    return _diagnosis("search split", arms, max((row["n"] for row in records), default=0))


def _diagnosis(split: str, arms: dict[str, Json | None], num_items: int) -> Json:
    """Return two tables, a column an arm: scores by difficulty, and how many answers failed in which way."""
    known = {name: diagnosis for name, diagnosis in arms.items() if diagnosis is not None}
    groups = {name: {row["difficulty"]: row for row in diagnosis["by_difficulty"]} for name, diagnosis in known.items()}
    errors = {name: diagnosis["errors"] for name, diagnosis in known.items() if diagnosis["errors"] is not None}
    difficulties = sorted({difficulty for group in groups.values() for difficulty in group})
    kinds = sorted({kind for counts in errors.values() for kind in counts})
    return {
        "split": split,
        "n": num_items,
        "missing": [name for name in arms if name not in known],
        "score_arms": list(groups),
        "scores": [(label, [group.get(label) for group in groups.values()]) for label in difficulties],
        "error_arms": list(errors),
        "errors": [(kind, [counts.get(kind, 0) for counts in errors.values()]) for kind in kinds],
    }


def decisions(events: Iterable[Event]) -> list[Json]:
    """Return the decisions in order, each with what came of it; one repeated after a kill stands there twice."""
    rows: list[Json] = []
    seen: Event | None = None
    for event in events:
        match event["kind"]:
            case "observed":
                seen = event
            case "decided":
                rows.append(_decision(event, seen))
            case "tool_finished" if rows:
                result = {"result": trace_view.result_text(event["result"]), "refused": None}
                rows[-1] |= result | {"cost": trace_view.cost_text(event["usage"])}
            case "tool_failed" if rows:
                rows[-1] |= {"refused": event["error"], "cost": trace_view.cost_text(event["usage"])}
            case "judged" if rows:
                rows[-1] |= {"verdict": views.verdict_text(event), "judged": event}
    return rows


def _decision(event: Event, seen: Event | None) -> Json:
    return {
        "step": event["step"],
        "at_s": event["spent_s"],
        "by": event["decided_by"],
        "decides": decides_text(event["decided_by"]),
        "sure": sureness_text(event),
        "chances": chances(event),
        "among": among_texts(event),
        "why": why_text(event["decided_by"], not event["alternatives"]),
        "call": trace_view.call_text(event["action"]),
        "problems": event.get("problems", []),
        "reasoning": event["reasoning"].strip(),
        "planner_tokens": event["usage"].get("tokens"),
        "situation": trace_view.situation_words(seen["situation"]) if seen else None,
        "menu": list(map(trace_view.legal_text, menu_of(seen))) if seen else None,
        "result": None,
        "refused": None,
        "verdict": None,
        "judged": None,
        "cost": None,
    }
