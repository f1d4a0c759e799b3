"""What a run folder says to a person: which state it is in, one screen of status, the table of runs.

Reads files only and prints nothing, so that it is quick and works beside a live run and after a kill.
"""

import difflib
import fcntl
import heapq
import itertools
import os
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.clock import read_clock
from agent.config import FORMAT_VERSION, GIVEN_AGAIN
from agent.decision_text import by_decider
from agent.progress import left_text, steps_text
from agent.sealing import looks_of, looks_text
from agent.state import StopReason
from agent.statistics import TYPICAL_CHANGE, provable_gain, wilson_interval
from agent.trace_facts import TraceFacts, facts_of
from memory.records import read_json, read_jsonl
from memory.store import BASE, FINAL_ARMS, GREEDY, RunStore

Json = dict[str, Any]
FIGURE = ("score", "ci95", "n", "scorer_note")
"""What a shown score consists of; "scorer_note" is there where a judge gave it."""
NEWEST_JOBS = 20
"""Job folders written to last, in which the one under way is looked for: a long run has tens of thousands."""
RESUMABLE = ("killed", "stopped", "failed", "waiting")
"""States (see `run_state`) from which `resume` goes on."""


def run_folders(runs_dir: Path) -> list[Path]:
    """Return the runs of a folder, newest first."""
    if not runs_dir.is_dir():
        return []
    runs = [path for path in runs_dir.iterdir() if (path / "run.json").is_file()]
    # The numbers in the names (date, time, counter) in numeric order: 20260101-120000-10 is newer than ...-9.
    return sorted(runs, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], reverse=True)


def find_run(runs_dir: Path, name: str | None) -> Path:
    """Return the folder of a run, given by name or path; None = the newest. Raises ValueError with the nearest name."""
    runs = run_folders(runs_dir)
    if name is None:
        if not runs:
            raise ValueError(f"{runs_dir} holds no run; begin one with `run_agent.py start`, or give --runs-dir")
        return runs[0]
    for path in (runs_dir / name, Path(name)):
        if path.is_dir():
            open_run(path)
            return path.resolve()
    near = difflib.get_close_matches(name, [path.name for path in runs], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no run {name!r} in {runs_dir}; {hint}`run_agent.py list` shows the runs")


def open_run(run_dir: Path) -> Json:
    """Read run.json. Raises ValueError for a folder that is no run, is damaged or was written by a newer version."""
    if not (run_dir / "run.json").is_file():
        raise ValueError(f"{run_dir} is no run (it has no run.json); `run_agent.py list` shows the runs")
    try:
        record: Any = read_json(run_dir / "run.json")
    except ValueError as error:
        raise ValueError(f"{str(error).partition(';')[0]}; restore it from a copy: nothing makes it again") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ValueError(f"{run_dir / 'run.json'} is not what a run begins with; restore it from a copy")
    if record.get("format", 0) > FORMAT_VERSION:
        raise ValueError(
            f"run {run_dir.name} was written by a newer version (format {record['format']}, this one reads "
            f"{FORMAT_VERSION}); update this program"
        )
    return record


def is_locked(run_dir: Path, name: str = "run.lock") -> bool:
    """Whether a process works on this run now. The probe holds a shared lock for an instant and writes nothing."""
    try:
        lock = (run_dir / name).open("rb")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def run_state(run_dir: Path, facts: TraceFacts | None = None) -> str:
    """Return "running", "finished", "stopped" (by the user), "waiting" (for a person's approval), "failed" or "killed".

    Killed is a run without a process and without an ending. facts: of the run's trace, None = read them when needed.
    """
    locked = is_locked(run_dir)  # first: a run that ends between the two looks has a report
    report = read_report(run_dir)
    if report is not None and not _resumable(report):
        return "finished"
    if locked:
        return "running"
    if report is None or _resumed_since(facts or facts_of(run_dir)):
        return "killed"
    states = {StopReason.USER_STOPPED.value: "stopped", StopReason.WAITING.value: "waiting"}
    return states.get(report["stop_reason"], "failed")


def read_report(run_dir: Path) -> Json | None:
    """Return report.json, None while there is none."""
    path = run_dir / "report.json"
    return read_json(path) if path.exists() else None


def _resumable(report: Json) -> bool:
    return report["stop_reason"] in {reason.value for reason in StopReason if reason.resumable}


def score_text(score: Json | None, n: int | None = None) -> str:
    """Return "17.0 % [13.6, 21.0] n=400"; n where the score does not hold it. An interval that is missing is made.

    A judge's score has a note behind it, which says what its opinion is worth.
    """
    if score is None:
        return "not measured"
    num_items: int = score["n"] if n is None else n
    low, high = score.get("ci95") or wilson_interval(round(score["score"] * num_items), num_items)
    note = f" ({score['scorer_note']})" if score.get("scorer_note") else ""
    return f"{100 * score['score']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] n={num_items}{note}"


def final_lines(final: Json) -> list[str]:
    """Return a line for each arm of the final evaluation: name, score with interval and n."""
    arms = [name for name in FINAL_ARMS if name in final]
    lines = [f"{name.replace('_', ' '):<15} {score_text(final[name], final['n'])}" for name in arms]
    if final.get("policy", GREEDY) != GREEDY:
        costs = [final[name]["tokens_per_question"] for name in ("champion", "base_zero_shot")]
        lines[-1] += f", policy {final['policy']} at {costs_text(*costs)}"
    return lines


def costs_text(tokens: float, of_greedy: float) -> str:
    """Return what an answer costs against another one, both in tokens a question."""
    return f"{tokens:.1f} tokens a question, {tokens / of_greedy:.1f} times the {of_greedy:.1f} it is compared with"


def budget_text(config: Json) -> str:
    """Return the limits of a run in words."""
    names = [name for name in GIVEN_AGAIN if name.startswith("budget_") and config.get(name)]
    limits = [f"{config[name]:,} {name.removeprefix('budget_').replace('_', ' ')}" for name in names]
    return " and ".join(limits) if names not in ([], ["budget_gib"]) else " and ".join(["10 minutes", *limits])


def count_text(counts: dict[str, int]) -> str:
    """Return "rules 3, model 2", most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common()) or "none"


def verdict_details(run_dir: Path) -> dict[str, Json]:
    """Return the referee's verdicts by candidate, each with fixed, broken, p-value and level."""
    return {row["candidate"]: row for row in read_jsonl(run_dir / "referee" / "verdicts.jsonl")}


def provable_text(gate_items: int) -> str:
    """Return in words what a gate of so many items can prove."""
    gain = provable_gain(gate_items)
    points = "no gain at all" if gain is None else f"a true gain of {100 * gain:.1f} points in 8 of 10 cases"
    return (
        f"{gate_items} gate items prove {points} (first candidate, {100 * TYPICAL_CHANGE:.0f} % of the answers "
        "changed); smaller gains need more --gate-items"
    )


def verdict_text(detail: Json) -> str:
    """Return a verdict with the numbers behind it."""
    found = detail.get("guards", [])
    guards = [f"{guard['name']} {guard['value']:.2g}{'' if guard['ok'] else ' REFUSES'}" for guard in found]
    refusals = [f"{guard['value']:.3g} {guard['why']}" for guard in found if not guard["ok"]]
    head = (
        f"{'ACCEPTED' if detail['accepted'] else 'rejected'}: {detail['num_fixed']} fixed, {detail['num_broken']} "
        f"broken of n={detail['num_items']} gate items"
    )
    if "looks" not in detail:  # a run from before verdicts were given in steps
        return f"{head}, p={detail['p_value']:.2g} (level {detail['alpha']:.2g})"
    return (
        f"{head} (of {detail['gate_items']}, look {len(detail['looks'])}), p={detail['p_value']:.2g} "
        f"(level {detail['level']:.2g}; {detail['alpha_left']:.2g} left for later candidates)"
        + ("; the budget did not pay for the next look" if detail.get("budget_ended") else "")
        + (f"; guards: {', '.join(guards)}" if guards else "")
        + "".join(f"; {refusal}" for refusal in refusals)
        + (f"; {_policy_cost(detail)}" if detail.get("tries_policy") else "")
        + (f" ({detail['scorer_note']})" if detail.get("scorer_note") else "")
    )


def _policy_cost(detail: Json) -> str:
    spent = detail["tokens_per_question"]
    return f"policy {detail['policy']}: {costs_text(spent['candidate'], spent['champion'])}"


def run_status(run_dir: Path, facts: TraceFacts | None = None, store: RunStore | None = None) -> Json:
    """Return what `status` shows; None where something does not exist (yet).

    "step": the highest, which may have ended in no decision; "steps": how many were decided, of which the last may be
    "under_way": it has neither result nor refusal. "resumes": how often the run was resumed.
    facts and store: of this run, where the caller has read them already.
    """
    record, state = open_run(run_dir), run_state(run_dir, facts)
    facts, store, report = facts or facts_of(run_dir), store or RunStore(run_dir), read_report(run_dir)
    clock = read_clock(run_dir)
    left = facts.budget_left_percent if "share_left" not in clock else round(100 * clock["share_left"])
    champion, policy = store.champion(), store.policy(store.champion_policy())
    verdicts = [verdict["accepted"] for verdict in store.all_verdicts()]
    return {
        "run": run_dir.name,
        "state": state,
        "created": record.get("created"),
        "forked_from": record.get("forked_from"),
        "replay_of": record.get("replay_of", {}).get("run"),
        "config": record["config"],
        "step": facts.step,
        "steps": sum(facts.decided_by.values()),
        "under_way": facts.under_way,
        "resumes": facts.num_resumed,
        "tool": facts.tool if state in ("running", "killed") else None,
        "job": job_under_way(run_dir) if state in ("running", "killed") else None,
        "champion": champion,
        "policy": {name: policy[name] for name in ("id", "kind")},
        "search": _plain(store.champion_score()),
        "base_search": _plain(store.score(BASE)),
        "few_shot_search": next((_plain(row) for row in store.all("evals") if _is_few_shot(row)), None),
        "verdicts": {"accepted": sum(verdicts), "rejected": len(verdicts) - sum(verdicts)},
        "looks": looks_of(record),
        "decided_by": dict(facts.decided_by),
        "budget_left_percent": left,
        "spent_s": round(max(facts.spent_s, clock["spent_s"]), 1),
        "stop_reason": report["stop_reason"] if report and state not in ("running", "killed") else None,
        "stop_sentence": report["stop_sentence"] if report and state not in ("running", "killed") else None,
        "question": report.get("question") if report and state == "waiting" else None,
        "error": report["error"] if report and state == "failed" else None,
        "final": report["final"] if report and state == "finished" else None,
    }


def _plain(record: Json | None) -> Json | None:
    return None if record is None else {key: record[key] for key in FIGURE if key in record}


def _is_few_shot(record: Json) -> bool:
    return bool(record["model"] == BASE and record["split"] == "search" and record["shots"] > 0)


def _resumed_since(facts: TraceFacts) -> bool:
    return facts.num_resumed > 0 and not facts.ended


def job_under_way(run_dir: Path) -> Json | None:
    """Return {"function", "done", "total", "metrics"} of the newest job that was begun and has no result, or None."""
    folders = [Path(entry.path) for entry in _newest(run_dir / "jobs", NEWEST_JOBS)]
    begun = [path for path in folders if (path / "status.json").exists() and not (path / "result.json").exists()]
    folder = next((path for path in begun if read_json(path / "status.json")["state"] == "running"), None)
    if folder is None:
        return None
    function = read_json(folder / "spec.json")["function"].rpartition(":")[2]
    nothing = {"done": 0, "total": 0, "metrics": {}}
    path = folder / "progress.json"
    return {"function": function} | (read_json(path) if path.exists() else nothing)


def _newest(folder: Path, count: int) -> list[os.DirEntry[str]]:
    """Return the entries that were written to last, the newest first."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    return heapq.nlargest(count, entries, key=lambda entry: entry.stat().st_mtime_ns)


def status_text(status: Json) -> str:
    """Return the one screen of `status`."""
    config = status["config"]
    lines = {
        "run": f"{status['run']}, begun {status['created']}{_origin_text(status)}",
        "state": _state_text(status),
        "task": config["task"],
        "model": f"{config['model']}, planner {config['planner']}, seed {config['seed']}",
        "budget": f"{budget_text(config)}: {status['spent_s']:.0f} s spent{left_text(status)}",
        "step": steps_text(status),
        "champion": f"{status['champion']}: search {score_text(status['search'])}{_policy_text(status['policy'])}",
        "base": f"search {score_text(status['base_search'])}, with examples {score_text(status['few_shot_search'])}",
        "verdicts": f"{status['verdicts']['accepted']} accepted, {status['verdicts']['rejected']} rejected",
        "looks": looks_text(status["looks"], status["resumes"]),
        "decided by": count_text(by_decider(status["decided_by"])),
        "final": "\n           ".join(final_lines(status["final"])) if status["final"] else "not opened",
        "next": _next_text(status),
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _policy_text(policy: Json) -> str:
    return "" if policy["id"] == GREEDY else f", asked by policy {policy['id']} ({policy['kind']})"


def _origin_text(status: Json) -> str:
    if status["replay_of"]:
        return f", a replay of {status['replay_of']}"
    origin = status["forked_from"]
    return "" if origin is None else f", forked from {origin['run']} at step {origin['step']}"


def _state_text(status: Json) -> str:
    if status["state"] == "killed":
        return "killed: no process works on it and no ending was written"
    text = f"{status['state']}: {status['stop_sentence']}" if status["stop_sentence"] else status["state"]
    return f"{text} ({status['error']})" if status["error"] else text


def _next_text(status: Json) -> str:
    run = status["run"]
    if status["state"] == "running":
        return f"run_agent.py trace tail {run}"
    if status["question"]:
        return f"run_agent.py approve {run}: {status['question']['call']}"
    if status["state"] in RESUMABLE:
        return f"run_agent.py resume {run}"
    nothing_new = status["champion"] == BASE and status["policy"]["id"] == GREEDY
    return f"run_agent.py trace show {run}" if nothing_new else f"run_agent.py export {run} DIR"


def list_runs(runs_dir: Path, status_of: Callable[[Path], Json] = run_status) -> list[Json]:
    """Return the status of each run, newest first; a run that cannot be read has state "damaged" and an error."""
    rows = []
    for path in run_folders(runs_dir):
        try:
            rows.append(status_of(path))
        except (ValueError, KeyError, TypeError) as error:  # one damaged folder does not hide the others
            rows.append({"run": path.name, "state": "damaged", "error": f"{type(error).__name__}: {error}"})
    return rows


def list_text(rows: list[Json]) -> str:
    """Return the table of `list`."""
    if not rows:
        return "no runs yet; begin one with `run_agent.py start`"
    table = [["run", "state", "model", "planner", "steps", "+/-", "champion on search", "final", "task"]]
    table += [_list_row(row) for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)


def _list_row(row: Json) -> list[str]:
    if row["state"] == "damaged":
        return [row["run"], "damaged", "", "", "", "", "", "", row["error"]]
    config, verdicts = row["config"], row["verdicts"]
    final = score_text(row["final"]["champion"], row["final"]["n"]) if row["final"] else "not opened"
    task = config["task"] if len(config["task"]) <= 60 else config["task"][:57] + "..."
    counts = f"{verdicts['accepted']}/{verdicts['rejected']}"
    if origin := row["forked_from"]:
        task += f" (fork of {origin['run']} at {origin['step']})"
    elif row["replay_of"]:
        task += f" (replay of {row['replay_of']})"
    return [
        row["run"], row["state"], Path(config["model"]).name, config["planner"], str(row["steps"]), counts,
        score_text(row["search"]), final, task,
    ]  # fmt: skip


def side_by_side(answers: list[Json]) -> str:
    """Return the answers of models to one prompt as columns, as wide as the terminal."""
    width = max(20, (shutil.get_terminal_size((100, 24)).columns - 3) // len(answers))
    columns = []
    for answer in answers:
        cut = "" if answer["finish"] == "stop" else " (cut off)"
        name = BASE if answer["model"] == BASE else f"champion {answer['model']}"
        name += "" if answer.get("policy", GREEDY) == GREEDY else f" by {answer['kind']}"
        title = f"{name}, {answer['num_tokens']} tokens{cut}"
        lines = [part for line in answer["text"].splitlines() for part in textwrap.wrap(line, width) or [""]]
        columns.append([title[:width], "-" * min(width, len(title)), *lines])
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(" | ".join(f"{cell:<{width}}" for cell in row).rstrip() for row in rows)
