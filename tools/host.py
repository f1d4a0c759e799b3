"""The process in which tools run: `python -m tools.host`, JSON lines on stdin and stdout (see agent/tool_host.py).

It imports the tools, a user's files too, after it has locked itself out of everything of the run but the artifacts:
no tool can read what the referee holds, the trace or the agent's memory. It ends when stdin closes.

The first line is {"run_dir" (null = only describe), "tools", "seed", "task", "closed"}. Then come requests
{"do": "describe" | "offers" | "call" | "try_selector", ...}; an answer is {"state": "done", "value"} or
{"state": "tool_error" | "failed" | "bad_tools", "error"}. In between the host may ask
{"ask": "run" | "measure" | "judge" | "judge_policy" | "remove_overlaps", "args"}, and gets {"value"} or {"tool_error"};
and it tells whose code runs now, {"at": "--tools my_tool.py"}, so that who hangs or dies is known.
"""

import contextlib
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from memory.store import RunStore
from tools import contract, registry
from tools.contract import Json, Overlaps, Tool, ToolContext, ToolError
from tools.jobs import landlock
from tools.jobs.job import Usage
from tools.jobs.worker import lines_until_closed
from tools.mcp_servers import readable_places
from tools.registry import BadToolError, load_tools, named
from tools.sample_run import SAMPLE_SIZE, sample_pool
from tools.select.selector import SELECTORS, Selector, choose, offered

READABLE = ("models", "evals")
WRITABLE = ("data", "policies", "lessons", "tmp")
"""Folders of the run. Whoever could write into evals/ would hand out verdicts."""


class Agent:
    """The agent at the other end of the pipes: the worker (`Jobs`) and the referee's door (`Judge`) for tools."""

    def __init__(self, requests: Any, answers: Any) -> None:
        self._requests = requests
        self._answers = answers
        self._lock = threading.Lock()

    def send(self, message: Json) -> None:
        """Write one line."""
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Tell whose code runs from here on, and name it when it raises."""
        self.send({"at": what})
        with named(what):
            yield

    def _ask(self, what: str, *args: Any) -> Any:
        with self._lock:
            self.send({"ask": what, "args": args})
            reply = json.loads(next(self._requests))
        if "tool_error" in reply:
            raise ToolError(reply["tool_error"])
        return reply["value"]

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Usage]:
        """Run a job in the worker (see `tools.contract.Jobs`)."""
        value, usage = self._ask("run", function, args, inputs)
        return value, Usage(*usage)

    def measure(self, model_id: str, split: Literal["search"], shots: int = 0, policy: str | None = None) -> Json:
        """Return the record of a model on the search split."""
        return dict(self._ask("measure", model_id, split, shots, policy))

    def judge(self, candidate: str) -> Json:
        """Return {"accepted", "n"}."""
        return dict(self._ask("judge", candidate))

    def judge_policy(self, policy: str) -> Json:
        """Return {"accepted", "n"} of a policy."""
        return dict(self._ask("judge_policy", policy))

    def remove_overlaps(self, rows: list[Json]) -> Overlaps:
        """Split training rows into those kept and those that overlap with an evaluation item."""
        return Overlaps(*self._ask("remove_overlaps", rows))


def describe(tools: dict[str, Tool], context: ToolContext) -> list[Json]:
    """Return what people read of all tools, in the menu's order, then of the selectors; "offered": for this run.

    "left_out": why a tool of an MCP server cannot be on a menu, None for all others.
    """
    keys = ("name", "stage", "section", "module", "description", "summary", "grid", "defaults", "optional")
    names = [*tools, *offered(context)]
    shown: list[Tool | Selector] = [*contract.REGISTRY.values(), *SELECTORS.values()]
    told = [
        {key: getattr(made, key) for key in keys} | {"offered": made.name in names, "papers": _papers(made)}
        for made in shown
    ]
    blank: Json = dict.fromkeys(keys, "") | {"stage": "evaluate", "grid": {}, "defaults": {}, "optional": False}
    blank |= {"papers": []}
    gone = [blank | {"name": name, "offered": False, "left_out": why} for name, why in registry.LEFT_OUT.items()]
    return [tool | {"left_out": None} for tool in told] + gone


def _papers(made: Tool | Selector) -> list[str]:
    """Return the arXiv ids in the docstrings of a tool or selector and of its module."""
    module = sys.modules.get(made.module)  # a tool of an MCP server has none
    text = f"{module.__doc__ if module else ''} {made.description}"
    return list(dict.fromkeys(re.findall(r"arXiv[ :](\d{4}\.\d{4,5})", text)))


def offers(
    tools: dict[str, Tool], context: ToolContext, within: Callable[[str], AbstractContextManager[None]] = named
) -> list[Json]:
    """Return the tools that are legal now: {"tool", "stage", "summary", "grid", "tokens"}.

    A tool may come twice: its second grid is for when the budget affords nothing of the first.
    tokens: the estimate for each combination of the grid's values, in the order of itertools.product.
    """
    legal = []
    for tool in tools.values():
        with within(f"`when` or `estimate_tokens` of the tool {tool.name}"):
            for grid in tool.grids(context):
                calls = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
                tokens = [int(tool.estimate_tokens(context, **call)) for call in calls]
                if min(tokens, default=0) < 0:
                    raise ValueError(f"the estimate is {min(tokens)} tokens; return what a call costs, 0 or more")
                offer = {"tool": tool.name, "stage": tool.stage, "summary": tool.summary}
                legal.append(offer | {"grid": grid, "tokens": tokens})
                json.dumps(legal[-1], allow_nan=False)  # raises here, where it is told as this tool's failure
    return legal


def main() -> None:
    """Serve requests until stdin closes."""
    lines, answers = os.fdopen(os.dup(sys.stdin.fileno())), os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What a tool prints goes into the log, and when it asks for input there is none: the pipes are the agent's.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    setup = json.loads(lines.readline())
    _confine(setup)
    requests = lines_until_closed(lines)
    agent = Agent(requests, answers)
    store, asked = RunStore(Path(setup["run_dir"] or os.devnull)), tuple(setup["tools"])
    context = ToolContext(store, agent, agent, setup["seed"], setup["task"], asked)
    loaded = _attempt("bad_tools", lambda: load_tools(asked, agent.told))
    for request in requests:
        if loaded["state"] == "done":
            tools: dict[str, Tool] = loaded["value"]
            work = partial(_do, json.loads(request), tools, context, agent)
            agent.send(_attempt("failed", work))
        else:
            agent.send(loaded)


def _do(request: Json, tools: dict[str, Tool], context: ToolContext, agent: Agent) -> Any:
    if request["do"] == "describe":
        return describe(tools, context)
    if request["do"] == "try_selector":
        return {"chosen": choose(sample_pool(context), request["selector"], SAMPLE_SIZE)}
    if request["do"] == "offers":
        return offers(tools, context, agent.told)
    if registry.LEFT_OUT and request["tool"] not in tools:  # decided on before its MCP server failed
        raise ToolError(f"the tool {request['tool']} cannot be had any more; choose another one")
    result = tools[request["tool"]](context, **request["args"])
    json.dumps(result, allow_nan=False)  # raises here, where it is told as this tool's failure
    return result


def _attempt(failed: str, work: Callable[[], Any]) -> Json:
    # The one broad except of this process: what a tool raises is told to the agent, which decides what it means.
    try:
        return {"state": "done", "value": work()}
    except ToolError as problem:
        return {"state": "tool_error", "error": str(problem)}
    except BaseException as error:
        _print_of_the_author(error)
        told = str(error) if isinstance(error, BadToolError) else f"{type(error).__name__}: {error}"
        return {"state": failed, "error": told}


def _print_of_the_author(error: BaseException) -> None:
    """Print the traceback without the frames of what calls the author's code."""
    error = error.__cause__ if isinstance(error, BadToolError) and error.__cause__ else error
    ours = (__file__, registry.__file__, contract.__file__, contextlib.__file__, "<frozen")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    if frames or isinstance(error, SyntaxError):
        sys.stderr.write("".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]))
        sys.stderr.flush()


def _confine(setup: Json) -> None:
    folders = [Path(name).resolve().parent for name in setup["tools"]]
    folders += [place for name in setup["tools"] if name.endswith(".json") for place in readable_places(Path(name))]
    places = [Path.home() / ".cache" / "huggingface" / name for name in ("token", "stored_tokens")]
    keys = [path for path in places if path.exists()]
    read = landlock.outside([*landlock.program_paths(), *folders], [*map(Path, setup["closed"]), *keys])
    write = landlock.devices()
    if setup["run_dir"] is not None:
        run_dir = Path(setup["run_dir"])
        read += [run_dir / name for name in READABLE]
        write += [run_dir / name for name in WRITABLE]
    landlock.confine(read, write)


if __name__ == "__main__":
    main()
