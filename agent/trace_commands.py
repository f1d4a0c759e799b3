"""The commands of `run_agent.py trace`: their options, and what each returns. They read files and print nothing."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import trace_export, trace_view, views
from agent.commands import Outcome
from agent.trace import read_events
from agent.trace_diff import diff, diff_lines
from agent.trace_search import first, search, search_lines, search_rows
from agent.trace_select import KINDS, Filter, parse_since, select_events
from memory.store import RunStore


def add_commands(add: Callable[..., Any], trace: Any) -> None:
    """Add the commands below `trace`; `add` makes the parser of one, as in `run_agent.py`."""
    told = add("show", show, "the trace as a tree; --json: its events", "the newest", trace)
    _add_filters(told, "this step only, with all that the planner was shown and wrote", "steps")
    tail = add("tail", tail_events, "one line per event as it comes, until the run ends", "the newest", trace)
    _add_filters(tail, "events of this step", "events")
    words = add("search", find, "where a text stands: step, kind, field; rows of data", "needed", trace)
    words.add_argument(
        "text",
        metavar="TEXT",
        help="looked for in all fields and all rows, whatever its case",
    )
    two = add("diff", compare, "where two runs part and why, then step by step", under=trace)
    two.add_argument("a", metavar="A", help="name or folder of a run")
    two.add_argument("b", metavar="B", help="name or folder of another run")
    copy = add("export", trace_export.export, "write or send the trace for other programs", "needed", trace)
    trace_export.add_options(copy)


def _add_filters(parser: ArgumentParser, of_step: str, what: str) -> None:
    """Add the options of `Filter`; what: whether tool and failed choose "steps" or "events"."""
    failed = "with a refused call, an invalid decision, an error or a repair; a rejected candidate is none"
    parser.add_argument("--step", type=int, metavar="N", help=of_step)
    parser.add_argument("--tool", metavar="NAME", help=f"{what} that decided for this tool or called it")
    parser.add_argument("--failed", action="store_true", help=f"{what} {failed}")
    kinds = f"events of this kind; may be given again: {', '.join(KINDS)}"
    parser.add_argument("--kind", action="append", choices=KINDS, metavar="KIND", help=kinds)
    parser.add_argument("--since", metavar="WHEN", help="events from then on: 10m, 2h, 1d (ago) or a time (UTC)")


def _run(args: Namespace, name: str | None) -> Path:
    return views.find_run(Path(args.runs_dir), name)


def _filter(args: Namespace) -> Filter:
    since = parse_since(args.since) if args.since else ""
    return Filter(args.step, args.tool, args.failed, tuple(args.kind or ()), since)


def show(args: Namespace) -> Outcome:
    """Return the tree of a run's trace, or of the wanted steps and events."""
    run_dir = _run(args, args.run)
    wanted = _filter(args)
    if args.json:
        return Outcome((), list(select_events(run_dir, wanted)))
    return Outcome(trace_view.tree_lines(run_dir, wanted), None)


def tail_events(args: Namespace) -> Outcome:
    """Return one line per event, as they come."""
    return Outcome(trace_view.tail_lines(_run(args, args.run), args.json, wanted=_filter(args)), None)


def find(args: Namespace) -> Outcome:
    """Return the events and the rows of data that hold a text."""
    run_dir = _run(args, args.run)
    places, rows = search(read_events(run_dir), args.text), search_rows(RunStore(run_dir), args.text)
    if args.json:
        found, num_more = first(rows)
        return Outcome((), {"events": list(places), "rows": found, "num_more_rows": num_more})
    return Outcome(search_lines(places, rows, run_dir.name), None)


def compare(args: Namespace) -> Outcome:
    """Return where two runs part and why."""
    found = diff(_run(args, args.a), _run(args, args.b))
    return Outcome(diff_lines(found), found)
