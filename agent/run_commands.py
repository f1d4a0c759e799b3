"""The commands that go on from a run that is there: resume, approve, fork, replay. Their options and what each does."""

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent import commands, views
from agent.commands import Outcome
from agent.config import GIVEN_AGAIN, PLANNERS, check_planner_name
from agent.state import StopReason
from tools.contract import Json

MOST_DIFFERENCES = 30
"""Differences that the text of `replay` names; --json names all."""


def add_commands(add: Callable[..., Any]) -> None:
    """Add the commands; `add` makes the parser of one, as in `run_agent.py`."""
    on = add("resume", commands.resume, "go on with a run that was stopped or killed", "the newest that can be resumed")
    on.add_argument("--approve", action=BooleanOptionalAction, help="ask a person before each action from now on")
    accept = "go on although settings, files, code or libraries changed (shown without it; no score may depend on them)"
    on.add_argument("--accept-changes", action="store_true", help=accept)
    moved = "a file or folder that the run needs (model, task, tools) lies elsewhere now, on another machine, say"
    on.add_argument("--moved", action="append", default=[], metavar="OLD=NEW", help=f"{moved} (several times)")
    for flag, keywords in commands.config_options(GIVEN_AGAIN):
        on.add_argument(flag, **keywords)
    answer = add("approve", approve, "say yes to the action that a run waits with, and go on", "needed")
    meant = 'what is answered, as "step N: tool(name=value, ...)"; nothing is done when something else is asked by then'
    answer.add_argument("--question", metavar="TEXT", help=meant)
    instead = answer.add_mutually_exclusive_group()
    instead.add_argument("--edit", metavar="JSON", help='do this instead: {"tool": ..., "arguments": {...}}')
    instead.add_argument("--reject", metavar="WHY", help="let the planner decide again, and tell it why")
    branch = add("fork", fork, "a new run that shares a run's steps before one and decides anew from there", "needed")
    branch.add_argument("--at", type=int, required=True, metavar="STEP", help="the first step to decide anew")
    branch.add_argument("--planner", metavar="TEXT", help=f"who decides from there: {', '.join(PLANNERS)}")
    branch.add_argument("--max-steps", type=int, metavar="STEP", help="its last step (default: as in the run)")
    branch.add_argument("--force", metavar="TOOL", help="the first action, whatever the planner would do")
    values = "its arguments; those with one legal value may be left out"
    branch.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help=values)
    again = add("replay", replay, "repeat a run's decisions and compare what comes out", "needed")
    again.add_argument("--recompute", action="store_true", help="compute its jobs again instead of using their results")


def _run(args: Namespace) -> Path:
    return views.find_run(Path(args.runs_dir), args.run)


def approve(args: Namespace) -> Outcome:
    """Answer the question that a run waits with, and go on."""
    run_dir = _run(args)
    question = (views.read_report(run_dir) or {}).get("question")
    if question is None or (state := views.run_state(run_dir)) != "waiting":
        said = views.run_state(run_dir) if question is None else state
        raise ValueError(f"run {run_dir.name} waits for no approval: it is {said}")
    from agent.approval import check_asked, make_answer, question_text
    from agent.console import Console
    from agent.run import resume

    to = question_text(question) if args.question is None else args.question
    check_asked(to, question, run_dir.name)
    return commands.ended(resume(run_dir, Console(), answer=make_answer(question, args.edit, args.reject) | {"to": to}))


def fork(args: Namespace) -> Outcome:
    """Begin a fork and work until it ends."""
    run_dir = _run(args)
    if args.arg and args.force is None:
        raise ValueError("--arg belongs to an action; name its tool with --force TOOL")
    pairs = [text.partition("=") for text in args.arg]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ValueError(f"--arg {wrong[0]} has no value; write --arg {wrong[0]}=VALUE")
    if args.planner is not None:
        check_planner_name(args.planner)
    from agent.console import Console
    from agent.fork import Forced
    from agent.fork import fork as fork_run

    forced = None if args.force is None else Forced(args.force, {name: value for name, _, value in pairs})
    return commands.ended(fork_run(run_dir, args.at, Console(), args.planner, forced, args.max_steps))


def replay(args: Namespace) -> Outcome:
    """Repeat a run and compare; exit code 1 when something differs."""
    run_dir = _run(args)
    from agent.console import Console
    from agent.replay import replay as replay_run

    found = replay_run(run_dir, Console(), args.recompute)
    if found["report"]["stop_reason"] == StopReason.USER_STOPPED.value:
        return commands.ended(found["report"])
    return Outcome(list(_replay_lines(found)), found, 0 if found["equal"] else 1)


def _replay_lines(found: Json) -> Iterator[str]:
    if found["changed"]:
        yield f"changed since run {found['replay_of']} began: {', '.join(found['changed'])}"
    if found["equal"]:
        yield f"run {found['run']} came to the same as run {found['replay_of']} in {found['num_steps']} steps"
        return
    yield f"run {found['run']} differs from run {found['replay_of']} (the run | its replay):"
    for row in found["differences"][:MOST_DIFFERENCES]:
        place = "ending" if row["step"] is None else f"step {row['step']}"
        yield f"  {place}: {row['field']}: {row['a']} | {row['b']}"
    if len(found["differences"]) > MOST_DIFFERENCES:
        yield f"  and {len(found['differences']) - MOST_DIFFERENCES} more; --json names them"
