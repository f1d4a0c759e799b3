"""`tools new` writes the start of a user's tool, `tools check` tries one out before a run does."""

import json
import keyword
import os
import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agent import commands, views
from agent.commands import Outcome
from agent.doctor import Check
from agent.tool_host import ToolHost, ToolHostError
from memory.records import write_text
from tools.contract import Json, ToolContext, ToolError
from tools.jobs.client import REPOSITORY
from tools.registry import module_of
from tools.sample_run import NoWorkerError, make_sample_run
from tools.select.selector import SECTION as SELECTOR_SECTION

STARTER = "answer_words"
"""The tool of tools/starter/ that a new one is a copy of."""
CHECK_LIMIT_S = 60.0
"""Wall seconds for the import, and again for the dry call."""
BAD_TOOL = 2
LOG_LINES = 12
"""How much of what a failing tool printed is shown."""


def add_commands(add: Callable[..., Any], tools: Any) -> None:
    """Add the commands below `tools`; `add` makes the parser of one, as in `run_agent.py`."""
    shown = add("list", commands.tools_list, "tools and their arguments", under=tools)
    shown.add_argument("name", nargs="?", metavar="TOOL", help="this tool only, with its whole description")
    shown.add_argument("--tools", action="append", metavar="FILE", help="file with tools of your own")
    shown.add_argument("--table", action="store_true", help="a Markdown table by process, as in the README")
    new = add("new", tools_new, "write the start of a tool of your own, and a test of it", under=tools)
    new.add_argument("name", metavar="NAME", help="name of the tool and of its file: small letters, digits and _")
    new.add_argument("--dir", default=".", help="folder to write into (default: the current one)")
    check = add("check", tools_check, "try out a file with tools of your own on a made-up run", under=tools)
    check.add_argument("file", metavar="FILE")


def tools_new(args: Namespace) -> Outcome:
    """Write NAME.py and test_NAME.py; nothing that exists is overwritten."""
    name, folder = args.name, Path(args.dir)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot name a function; use small letters, digits and _, for example count_words")
    starter = REPOSITORY / "tools" / "starter"
    files = {folder / f"{prefix}{name}.py": starter / f"{prefix}{STARTER}.py" for prefix in ("", "test_")}
    for path in files:
        if path.exists():
            raise ValueError(f"{path} exists and stays as it is; choose another name or --dir")
    with ToolHost(()) as host:
        taken = name in {tool["name"] for tool in host.describe() if tool["section"] != SELECTOR_SECTION}
    if taken or find_spec(name) is not None:  # a file named like a module would hide it from all that import it
        raise ValueError(
            f"there is a {'tool' if taken else 'Python module'} called {name!r} already; take another name"
        )
    tool, test = map(str, files)
    program = os.path.relpath(REPOSITORY / "run_agent.py")
    steps = [
        ["python", "-m", "pytest", "-c", os.path.relpath(REPOSITORY / "pyproject.toml"), test],
        ["python", program, "tools", "check", tool],
        ["python", program, "start", "--tools", tool],
    ]
    for path, source in files.items():
        text = source.read_text(encoding="utf-8").replace(f"tools.starter.{STARTER}", name).replace(STARTER, name)
        write_text(path, text.replace("run_agent.py", program).replace("FILE", tool))
    lines = [f"wrote {tool} and {test}; change the function and its text, then", *map(shlex.join, steps)]
    return Outcome(["\n  ".join(lines)], {"tool": tool, "test": test})


def tools_check(args: Namespace) -> Outcome:
    """Import a file's tools where a run does and call each once; exit code 2 when something must be mended."""
    with TemporaryDirectory(prefix="tools-check-") as folder:
        context = make_sample_run(Path(folder).resolve() / "run")
        closed = [*views.run_folders(Path(args.runs_dir)), REPOSITORY / "runs"]
        with ToolHost([args.file], context.store.run_dir, closed=closed, limit_s=CHECK_LIMIT_S) as host:
            found = list(_check_file(Path(args.file), host, context))
    text = "\n".join(f"{check.level:<8}{check.what:<11}{check.said}" for check in found)
    bad = any(check.level == "PROBLEM" for check in found)
    return Outcome([text], [check._asdict() for check in found], BAD_TOOL if bad else 0)


def _check_file(file: Path, host: ToolHost, context: ToolContext) -> Iterator[Check]:
    step = "import"
    try:
        tools = [tool for tool in host.describe() if tool["module"] == module_of(file)]
        yield Check("ok", step, f"{file} holds {', '.join(tool['name'] for tool in tools)}")
        step = "when"
        offers = {offer["tool"]: offer for offer in host.offers()}
        for tool in tools:
            step = "dry call"
            if tool["section"] == SELECTOR_SECTION:
                chosen = host.try_selector(tool["name"])
                yield Check("ok", step, f"the selector {tool['name']} chose the places {chosen} of a made-up pool")
                continue
            yield from _check_tool(host, tool, offers.get(tool["name"]), context)
    except (ValueError, ToolHostError) as problem:
        yield Check("PROBLEM", step, _with_log(str(problem), context.store.run_dir / "tools.log"))


def _check_tool(host: ToolHost, tool: Json, offer: Json | None, context: ToolContext) -> Iterator[Check]:
    yield Check("ok", "name", f"{tool['name']} [{tool['stage']}]: no other tool is called so")
    yield Check("ok", "docstring", tool["summary"])
    for name, values in tool["grid"].items():
        default = f" (default {tool['defaults'][name]!r})" if name in tool["defaults"] else ""
        yield Check("ok", "argument", f"{name}: {', '.join(map(repr, values)) or 'what `when` gives'}{default}")
    if offer is None:
        said = "`when` says not legal on the made-up run, so it was not called; its test has to do that"
        yield Check("note", "dry call", said)
    elif not offer["tokens"]:
        empty = ", ".join(name for name, values in offer["grid"].items() if not values)
        cure = "give their ids in `when`, return None while there are none, or make them a Literal"
        yield Check("PROBLEM", "when", f"no value is legal for {empty}, so the tool is never on the menu; {cure}")
    else:
        yield _check_schema(offer)
        yield _dry_call(host, tool, offer["grid"], context)


def _check_schema(offer: Json) -> Check:
    """Compile what the planner would get into the grammar that its decision is bound to."""
    import llguidance

    from agent.planners.base import Choice, menu_schema

    matcher = llguidance.LLMatcher
    choice = Choice(tool=offer["tool"], description=offer["summary"], arguments=offer["grid"])
    if problem := matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(menu_schema([choice])))):
        return Check("PROBLEM", "schema", f"the planner's grammar refuses it ({problem}); use short texts as values")
    cost = " to ".join(map(str, sorted({min(offer["tokens"]), max(offer["tokens"])})))
    return Check("ok", "schema", f"compiled for the planner; legal calls: {len(offer['tokens'])}, tokens: {cost}")


def _dry_call(host: ToolHost, tool: Json, grid: Json, context: ToolContext) -> Check:
    """Call it once, with its defaults where they are legal."""
    wished = {name: tool["defaults"].get(name) for name in grid}
    args = {name: wished[name] if wished[name] in values else values[0] for name, values in grid.items()}
    shown = f"{tool['name']}({', '.join(f'{name}={value!r}' for name, value in args.items())})"
    try:
        result = host.call(tool["name"], args, context.jobs, context.referee)
    except ToolError as told:
        return Check("note", "dry call", f"{shown} told the planner: {told}")
    except NoWorkerError as asked:
        return Check("note", "dry call", f"{shown}: {asked}")
    if "accepted" in result:
        said = 'it returns "accepted", which is for verdicts of the referee; call it something else'
        return Check("PROBLEM", "dry call", f"{shown}: {said}")
    return Check("ok", "dry call", f"{shown} -> {json.dumps(result)}")


def _with_log(text: str, log: Path) -> str:
    """Return what happened, with the end of what the tool printed: the folder with the rest is about to go."""
    printed = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n  ".join([text.replace(f"; what it printed is in {log}", ""), *printed[-LOG_LINES:]])
