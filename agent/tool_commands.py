"""`tools new` writes the start of a user's tool, `tools check` tries one out before a run does."""

import json
import keyword
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agent import commands, views
from agent.commands import Check, Outcome
from agent.planners.base import Choice, menu_schema
from agent.tool_host import ToolHost, ToolHostError
from memory.records import write_text
from tools.contract import Json, ToolError
from tools.jobs.client import REPOSITORY
from tools.registry import module_of
from tools.sample_run import NoWorkerError, make_sample_run

STARTER = "answer_words"
"""The tool of tools/starter/ that a new one is a copy of."""
CHECK_LIMIT_S = 60.0
"""Wall seconds for the import, and again for the dry call."""
BAD_TOOL = 2
LOG_LINES = 12


def add_commands(add: Callable[..., Any], group: Any) -> None:
    """Add the subcommands of `tools` to the command line (see run_agent.py)."""
    shown = add("list", commands.tools_list, "tools and their arguments", under=group)
    shown.add_argument("name", nargs="?", metavar="TOOL", help="this tool only, with its whole description")
    shown.add_argument("--tools", action="append", metavar="FILE", help="file with tools of your own")
    new = add("new", tools_new, "write the start of a tool of your own, and a test of it", under=group)
    new.add_argument("name", metavar="NAME", help="name of the tool and of its file: small letters, digits and _")
    new.add_argument("--dir", default=".", help="folder to write into (default: the current one)")
    check = add("check", tools_check, "try out a file with tools of your own on a made-up run", under=group)
    check.add_argument("file", metavar="FILE")


def tools_new(args: Namespace) -> Outcome:
    """Write NAME.py and test_NAME.py; nothing that exists is overwritten."""
    name, folder = args.name, Path(args.dir)
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot name a function; use small letters, digits and _, for example count_words")
    with ToolHost(()) as host:
        if name in {tool["name"] for tool in host.describe()}:
            raise ValueError(
                f"there is a tool called {name!r} already (`run_agent.py tools list {name}`); take another"
            )
    starter = REPOSITORY / "tools" / "starter"
    files = {folder / f"{prefix}{name}.py": starter / f"{prefix}{STARTER}.py" for prefix in ("", "test_")}
    for path in files:
        if path.exists():
            raise ValueError(f"{path} exists and stays as it is; choose another name or --dir")
    for path, source in files.items():
        text = source.read_text(encoding="utf-8").replace(f"tools.starter.{STARTER}", name).replace(STARTER, name)
        write_text(path, text.replace("FILE", str(folder / f"{name}.py")))
    tool, test = map(str, files)
    text = f"wrote {tool} and {test}; change the function and its text, then\n"
    text += f"  python -m pytest {test}\n  python run_agent.py tools check {tool}\n"
    text += f"  python run_agent.py start --tools {tool}"
    return Outcome([text], {"tool": tool, "test": test})


def tools_check(args: Namespace) -> Outcome:
    """Import a file's tools where a run does and call each once; exit code 2 when something must be mended."""
    with TemporaryDirectory(prefix="tools-check-") as folder:
        run_dir = Path(folder).resolve() / "run"
        make_sample_run(run_dir)
        found = list(_check_file(Path(args.file), run_dir, views.run_folders(Path(args.runs_dir))))
    text = "\n".join(f"{check.level:<8}{check.what:<11}{check.said}" for check in found)
    bad = any(check.level == "PROBLEM" for check in found)
    return Outcome([text], [check._asdict() for check in found], BAD_TOOL if bad else 0)


def _check_file(file: Path, run_dir: Path, closed: list[Path]) -> Iterator[Check]:
    closed_paths = [*closed, REPOSITORY / "runs"]
    with ToolHost([str(file.resolve())], run_dir, closed=closed_paths, limit_s=CHECK_LIMIT_S) as host:
        try:
            tools = [tool for tool in host.describe() if tool["module"] == module_of(file)]
            yield Check("ok", "import", f"{file} holds {', '.join(tool['name'] for tool in tools)}")
        except ValueError as problem:
            yield Check("PROBLEM", "import", _said(problem, run_dir))
            return
        try:
            offers = {offer["tool"]: offer for offer in host.offers()}
        except ToolHostError as problem:
            yield Check("PROBLEM", "when", _said(problem, run_dir))
            return
        for tool in tools:
            yield Check("ok", "name", f"{tool['name']} [{tool['stage']}]: no other tool is called so")
            yield Check("ok", "docstring", tool["summary"])
            yield from _check_arguments(tool)
            offer = offers.get(tool["name"])
            if offer is None:
                said = "`when` says not legal on the made-up run, so it was not called; its test has to do that"
                yield Check("note", "dry call", said)
            else:
                yield from _check_offer(tool, offer)
                yield _dry_call(host, tool, offer, run_dir)


def _check_arguments(tool: Json) -> Iterator[Check]:
    for name, values in tool["grid"].items():
        default = f" (default {tool['defaults'][name]!r})" if name in tool["defaults"] else ""
        yield Check("ok", "argument", f"{name}: {', '.join(map(repr, values)) or 'what `when` gives'}{default}")
        if default and values and tool["defaults"][name] not in values:
            yield Check("PROBLEM", "argument", f"the default of {name} is none of its values; make it one")


def _check_offer(tool: Json, offer: Json) -> Iterator[Check]:
    """Check what the planner would get: the values that are legal now, their schema and their cost."""
    grid = offer["grid"]
    for name in sorted(set(grid) - set(tool["grid"])):
        yield Check("PROBLEM", "when", f"`when` gives values for {name!r}, which is no argument; remove it")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            cure = "give a list of ids in `when`, return None while there are none, or make it a Literal"
            yield Check("PROBLEM", "when", f"{name} has no legal value, so the tool is never on the menu; {cure}")
            return
    import llguidance

    matcher = llguidance.LLMatcher
    schema = menu_schema([Choice(tool=offer["tool"], description=offer["summary"], arguments=grid)])
    problem = matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(schema)))
    if problem:
        cure = "use short texts, whole numbers and booleans as values"
        yield Check("PROBLEM", "schema", f"the planner's grammar refuses the arguments ({problem}); {cure}")
    else:
        yield Check("ok", "schema", f"{len(offer['tokens'])} legal calls, compiled for the planner")
    low, high = min(offer["tokens"]), max(offer["tokens"])
    if low < 0:
        yield Check("PROBLEM", "estimate", f"{low} tokens; `estimate_tokens` must return what a call costs, 0 or more")
    else:
        yield Check("ok", "estimate", f"{low} tokens" if low == high else f"{low} to {high} tokens")


def _dry_call(host: ToolHost, tool: Json, offer: Json, run_dir: Path) -> Check:
    """Call it once, with its defaults where they are legal."""
    args = {}
    for name, values in offer["grid"].items():
        if not values:
            return Check("note", "dry call", f"not called: {name} has no value")
        default = tool["defaults"].get(name)
        args[name] = default if default in values else values[0]
    shown = f"{tool['name']}({', '.join(f'{name}={value!r}' for name, value in args.items())})"
    context = make_sample_run(run_dir)
    try:
        result = host.call(tool["name"], args, context.jobs, context.referee)
    except ToolError as told:
        return Check("note", "dry call", f"{shown} told the planner: {told}")
    except NoWorkerError as asked:
        return Check("note", "dry call", f"{shown}: {asked}")
    except ToolHostError as problem:
        return Check("PROBLEM", "dry call", f"{shown}: {_said(problem, run_dir)}")
    if "accepted" in result:
        said = 'it returns "accepted", which is for verdicts of the referee; call it something else'
        return Check("PROBLEM", "dry call", f"{shown}: {said}")
    return Check("ok", "dry call", f"{shown} -> {json.dumps(result)}")


def _said(problem: Exception, run_dir: Path) -> str:
    """Return what happened, with the end of what the tool printed: the folder with the rest is about to go."""
    log = run_dir / "tools.log"
    printed = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    text = str(problem).replace(f"; what it printed is in {log}", "")
    return "\n  ".join([text, *printed[-LOG_LINES:]])
