"""`run_agent.py mcp`: what the command line shows of runs, as an MCP server on stdio, for assistants and editors.

It reads files only: nothing can be started, stopped or approved through it. In a client's mcp.json:

    {"mcpServers": {"autodidact": {"command": "/PROGRAM/.venv/bin/python", "args": ["/PROGRAM/run_agent.py", "mcp"]}}}
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from agent import commands, trace_commands
from agent.commands import Outcome, printable

MOST_TEXT = 40_000
"""Characters of an answer: it goes into the context of a model."""
INSTRUCTIONS = (
    "Runs of Autodidact, in which a language model improves itself. Begin with list_runs and status; trace_show tells "
    "what was decided and why, follow where a model or an example came from. `run` is a name from list_runs."
)


def add_command(add: Callable[..., Any]) -> None:
    """Add `mcp`; `add` makes the parser of a command, as in `run_agent.py`."""
    add("mcp", mcp, "serve list, status, trace, follow and tools as an MCP server on stdio")


def mcp(args: Namespace) -> Outcome:
    """Serve until stdin closes. Raises ValueError without the package mcp."""
    if find_spec("mcp") is None:
        raise ValueError("the MCP server needs the package mcp: `pip install -c constraints.txt -e '.[mcp]'`")
    return Outcome(_serve(args.runs_dir), None)


def _serve(runs_dir: str) -> Iterator[str]:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("autodidact", instructions=INSTRUCTIONS, log_level="WARNING")
    for function in inspections(runs_dir):
        server.tool(structured_output=False)(function)
    server.run("stdio")
    yield from ()


def inspections(runs_dir: str) -> list[Callable[..., str]]:
    """Return the served functions; each returns what the command of the same name prints."""

    def list_runs() -> str:
        """List all runs, newest first: state, task, planner, score of base and champion."""
        return _said(commands.list_runs)

    def status(run: str | None = None) -> str:
        """Tell on one screen how a run stands: step, budget, scores, verdicts. Without a name: the newest run."""
        return _said(commands.status, run=run)

    def trace_show(run: str, step: int | None = None, tool: str | None = None, failed: bool = False) -> str:
        """Tell a run's story as a tree: decisions, reasons, calls, results, verdicts.

        With a step: that step with evidence and reasoning in full. tool: steps that decided for this tool. failed:
        steps with a refused call, an invalid decision or an error.
        """
        wanted = {"step": step, "tool": tool, "failed": failed, "kind": None, "since": None}
        return _said(trace_commands.show, run=run, **wanted)

    def trace_search(run: str, text: str) -> str:
        """Find where a text stands in a run: step, kind of event, field; rows of its data with their ids."""
        return _said(trace_commands.find, run=run, text=text)

    def follow(run: str, id: str) -> str:
        """Tell what any id came from and what it led to.

        An id of an example (a row or one of its samples), question, dataset, model, policy, evaluation, job or call.
        """
        return _said(commands.follow_artifact, run=run, id=id)

    def tools_list(name: str | None = None) -> str:
        """List what the agent can do; with a name: that tool in full."""
        return _said(commands.tools_list, name=name, tools=None, table=False)

    def _said(command: Callable[[Namespace], Outcome], **options: Any) -> str:
        from mcp.server.mcpserver.exceptions import ToolError

        try:
            lines = command(Namespace(runs_dir=runs_dir, json=False, **options)).lines
            text = printable("\n".join(lines))
        except (ValueError, OSError) as problem:
            raise ToolError(str(problem)) from problem
        cut = f"\n... cut after {MOST_TEXT} characters; ask for a step or a tool"
        return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + cut

    return [list_runs, status, trace_show, trace_search, follow, tools_list]
