#!/usr/bin/env python3
"""The command line of Autodidact: `python run_agent.py --help`. Exit codes: see EXAMPLES.

Progress goes to stderr; stdout holds the answer, with --json one JSON value on its last line.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from agent import commands, doctor, inspection_server, report, run_commands, stopping, tool_commands, trace_commands, ui
from agent.config import unknown
from tools.jobs.client import JobFailedError

DESCRIPTION = "A language-model agent that improves the model it runs on, and measures whether it did."
EXAMPLES = """examples:
  run_agent.py start                          ten minutes with the built-in model and an arithmetic task
  run_agent.py start --planner rules --budget-minutes 3 --seed 1
  run_agent.py start --task "my.jsonl?scorer=numeric" --model org/name --json
  run_agent.py status                         the newest run on one screen, also while it works
  run_agent.py trace tail                     its events as they come; `trace show`: the whole story; `report`: a page
  run_agent.py trace diff RUN RUN             where two runs part, and why; `trace search RUN TEXT` finds words
  run_agent.py stop; run_agent.py resume      end after the step under way; go on (`approve` answers `--approve`)
  run_agent.py fork RUN --at 4 --planner rules    decide anew from step 4 of a run; `replay RUN` checks one
  run_agent.py try RUN "What is 12 + 30?"     base and improved model side by side
  run_agent.py follow RUN ID                  what an example, dataset, model, job (any id) came from and led to
  run_agent.py export RUN my-model            merged weights with a model card

exit codes: 0 finished, 1 failed or different, 2 bad input, 3 waits for approval, 130 interrupted (`resume`)"""


class Parser(argparse.ArgumentParser):
    """Raises ValueError instead of exiting, with the nearest known word."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        ours: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **ours | keywords)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message in our words."""
        if choice := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message):
            message = unknown("command", choice[1], re.findall(r"[\w-]+", choice[2]))
        raise ValueError(f"{message}; see `{self.prog} --help`")


def build_parser() -> Parser:
    """Return the parser. Each command sets `command`, a function of agent/commands.py, and `parser`, its own parser."""
    parser = Parser("run_agent.py", description=DESCRIPTION, epilog=EXAMPLES)
    top = parser.add_subparsers(metavar="COMMAND", required=True)

    def group(name: str, text: str) -> Any:
        return top.add_parser(name, help=text, description=text).add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: Callable[..., Any], text: str, run: str | None = None, under: Any = top) -> Parser:
        made: Parser = under.add_parser(name, help=text, description=text)
        made.set_defaults(command=function, parser=made)
        made.add_argument("--json", action="store_true", help="print one JSON value on stdout")
        if function is not commands.start:
            made.add_argument("--runs-dir", default="runs", help="folder of all runs (default: runs)")
        if run is not None:
            nargs, default = (None, "") if run == "needed" else ("?", f" (default: {run})")
            made.add_argument("run", metavar="RUN", nargs=nargs, help=f"name or folder of a run{default}")
        return made

    start = add("start", commands.start, "begin a run and work until it ends; an option is also a key of the TOML file")
    for flag, keywords in commands.config_options():
        start.add_argument(flag, **keywords)
    run_commands.add_commands(add)
    stop = add("stop", stopping.stop, "let the agent that works on a run finish its step and end", "the newest at work")
    stop.add_argument("--now", action="store_true", help="end at once; what is under way is resumed later")
    add("list", commands.list_runs, "all runs, newest first")
    add("status", commands.status, "one screen about a run", "the newest")
    trace_commands.add_commands(add, group("trace", "what happened, step by step"))
    page = add("report", report.report, "write one HTML page about a run, also while it works", "the newest")
    page.add_argument("--out", metavar="FILE", help="the page (default: report.html in the run's folder)")
    ui.add_command(add)
    inspection_server.add_command(add)
    tool_commands.add_commands(add, group("tools", "what the agent can do, and how to give it more"))
    add("list", commands.tasks_list, "forms and names of tasks", under=group("tasks", "what can be learned"))
    attempt = add("try", commands.try_prompt, "answer a prompt with base and champion side by side", "needed")
    attempt.add_argument("prompt", metavar="PROMPT")
    attempt.add_argument("--max-new-tokens", type=int, default=128, help="most tokens of an answer (default: 128)")
    follow = add("follow", commands.follow_artifact, "what an artifact came from and led to", "needed")
    follow.add_argument("id", metavar="ID", help="of an example, question, dataset, model, evaluation, job or call")
    export = add("export", commands.export, "write the champion and a model card into a new folder", "needed")
    export.add_argument("dir", metavar="DIR")
    export.add_argument("--adapter", action="store_true", help="the PEFT adapter alone (default: merged weights)")
    checked = add("doctor", doctor.doctor, "check the installation and a run's files", "the installation alone")
    checked.add_argument("--rebuild", action="store_true", help="make the run's vector memory again from its files")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        args, extra = build_parser().parse_known_args((sys.argv[1:] if argv is None else argv) or ["--help"])
        if extra:
            options = list(args.parser._option_string_actions) if extra[0].startswith("-") else []
            raise ValueError(unknown("option" if options else "argument", extra[0].split("=")[0], options))
        outcome = args.command(args)
        for line in [json.dumps(outcome.data)] if args.json and outcome.data is not None else outcome.lines:
            print(commands.printable(line), flush=True)
        return int(outcome.code)
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, JobFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    sys.exit(main())
