"""The agent's side of the tools: they run in one child process (tools/host.py), which the kernel locks out of the rest.

What a tool asks for in between (a job, the referee) is checked and done here; only plain JSON crosses.
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memory.records import is_secret
from memory.store import BASE, GREEDY, RunStore
from tools.contract import Jobs, Json, Judge, ToolError
from tools.jobs.client import REPOSITORY

MAX_DEATHS = 2
"""How often one request may take the host down before the run stops (resumable)."""
MOST_RESULT = 20_000
"""Characters of a result: it goes into the trace and before the planner; bulk belongs into a file."""
MOST_UNREAD = 100
"""Lines of the host that wait to be read: a tool cannot fill the agent's memory with more."""
_JOB = re.compile(r"(tools|memory)(\.\w+)+:[a-z]\w*")
"""Functions that tools may run in the worker: those of this program. A tool's own code runs in the host."""

_ASKED: dict[str, tuple[Any, ...]] = {
    "run": (str, dict, dict | None),
    "measure": (str, str, int, str | None),
    "judge": (str,),
    "judge_policy": (str,),
    "remove_overlaps": (list,),
}
"""What a tool may ask for, and the kinds of its arguments."""
_OFFERED = {"tool": str, "stage": str, "summary": str, "grid": dict, "tokens": list}


class ToolHostError(RuntimeError):
    """A tool failed in a way that its caller cannot mend; the run stops and can be resumed."""


class _Died(Exception):
    """The host's process ended in the middle of a request."""


class _Late(Exception):
    """The host's process did not answer in time."""


class ToolHost:
    """Describes, offers and calls the tools of a run. Use as a context manager: leaving it ends the process."""

    def __init__(
        self,
        files: Iterable[str],
        run_dir: Path | None = None,
        seed: int = 0,
        task: str = "",
        closed: Iterable[Path] = (),
        limit_s: float = 120.0,
    ) -> None:
        """Take the user's tool files; run_dir None = the tools can only be described.

        closed: what tools may not read, see `agent.sealing.closed_places`.
        limit_s: wall seconds that tools may take to be imported, and for one call; what one asks for is not counted.
        """
        self.run_dir = run_dir
        self.limit_s = limit_s
        closed_paths = [str(path) for path in closed]
        # The process works in another folder. What has no suffix is the name of an optional tool.
        paths = [str(Path(file).resolve()) if Path(file).suffix else file for file in files]
        run = None if run_dir is None else str(run_dir)
        self._setup = {"run_dir": run, "tools": paths, "seed": seed, "task": task, "closed": closed_paths}
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        """What the host wrote; None when its end of the pipe is closed."""
        self._at = ""
        """Whose code runs, as the host told last."""

    def __enter__(self) -> "ToolHost":
        """Start the process at once, so that its imports overlap with the agent's."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process and what its tools started."""
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the host, None when it does not run."""
        return None if self._process is None else self._process.pid

    def describe(self) -> list[Json]:
        """Return what `tools.host.describe` tells of each tool.

        Raises ValueError when a tool file is missing, broken, hangs, clashes or holds no tool.
        """
        try:
            return list(self._request({"do": "describe"}))
        except ToolHostError as problem:  # nothing has begun that could be resumed
            raise ValueError(str(problem)) from problem

    def offers(self) -> list[Json]:
        """Return the tools that are legal now (see `tools.host.offers`)."""
        offers = self._request({"do": "offers"})
        for offer in offers if isinstance(offers, list) else [None]:
            fits = isinstance(offer, dict) and all(isinstance(offer.get(key), kind) for key, kind in _OFFERED.items())
            if not fits:
                raise ToolHostError("the process in which tools run offers nothing that can be read; mend the tools")
        return offers

    def try_selector(self, selector: str) -> list[int]:
        """Return the places that a selector chooses of a made-up pool. Raises ToolHostError when it fails."""
        return list(self._request({"do": "try_selector", "selector": selector})["chosen"])

    def call(self, tool: str, args: Json, jobs: Jobs, referee: Judge) -> Json:
        """Run a tool. Raises ToolError when the planner can mend it, ToolHostError otherwise."""
        try:
            result = self._request({"do": "call", "tool": tool, "args": args}, jobs, referee)
        finally:
            self._set_aside_unreadable(tool)
        length = len(json.dumps(result))
        if not isinstance(result, dict) or length > MOST_RESULT:
            raise ToolHostError(
                f"the tool {tool} returned {type(result).__name__} ({length} characters), not a dictionary of at most "
                f"{MOST_RESULT} characters; mend the tool: what is long goes into a file under data/"
            )
        return result

    def _set_aside_unreadable(self, tool: str) -> None:
        """Raise ToolHostError for a manifest that no later step could read; it no longer counts as one then."""
        assert self.run_dir is not None, "tools are called in a run"
        for path, missing in RunStore(self.run_dir).unreadable().items():
            path.rename(path.with_name("unreadable.json"))
            raise ToolHostError(
                f"the tool {tool} left {path} without {missing}, which other steps read; it was renamed to "
                "unreadable.json: mend the tool (`memory.store.FIELDS` says what is read)"
            )

    def stop(self) -> None:
        """End the process that this object started, with everything that its tools left running."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was not sent yet
            process.stdin.close()

    def _request(self, request: Json, jobs: Jobs | None = None, referee: Judge | None = None) -> Any:
        for _ in range(MAX_DEATHS):
            try:
                return self._converse(request, jobs, referee)
            except _Died:
                self.stop()
            except _Late:
                self.stop()
                raise ToolHostError(
                    f"{self._what(request)} was ended after {self.limit_s:g} s of its own (jobs are not counted)"
                    f"{self._log()}; mend what it waits for, or start with more --tool-minutes"
                ) from None
        what = self._what(request)
        raise ToolHostError(
            f"the process in which tools run ended {MAX_DEATHS} times in {what}{self._log()}; mend the tool"
        )

    def _what(self, request: Json) -> str:
        return f"the tool {request['tool']}" if "tool" in request else self._at or "loading the tools"

    def _log(self) -> str:
        if self.run_dir is None:
            return "; `run_agent.py tools check FILE` shows what it printed"
        return f"; what it printed is in {self.run_dir / 'tools.log'}"

    def _converse(self, request: Json, jobs: Jobs | None, referee: Judge | None) -> Any:
        """Send a request and do what the host asks until it answers."""
        self._send(request)
        left_s = self.limit_s
        while True:
            began = time.monotonic()
            message = self._receive(left_s)
            left_s -= time.monotonic() - began
            if "at" in message:
                self._at = str(message["at"])
                continue
            if "ask" in message:
                try:
                    reply = self._do(message, jobs, referee)
                except BaseException:
                    self.stop()  # it waits for a reply that will not come
                    raise
                self._send(reply)
                continue
            state, error = message.get("state"), message.get("error")
            if state == "done":
                return message.get("value")
            if state == "tool_error":
                raise ToolError(str(error))
            if state == "bad_tools":
                raise ValueError(str(error))
            if "tool" not in request:
                raise ToolHostError(str(error))
            raise ToolHostError(f"the tool {request['tool']} failed: {error}{self._log()}; mend the tool")

    def _do(self, message: Json, jobs: Jobs | None, referee: Judge | None) -> Json:
        """Do what a tool asked for. Of errors only a ToolError goes back to it; any other ends the run."""
        if jobs is None or referee is None:
            raise ToolHostError("a tool asked for a job or the referee while it was not called; mend its `when`")
        what, args = str(message["ask"]), message.get("args")
        kinds = _ASKED.get(what)
        if kinds is None or not isinstance(args, list) or len(args) != len(kinds):
            raise ToolHostError(f"a tool asked for {what!r} in a way that there is not; mend the tool")
        try:
            for value, kind in zip(args, kinds, strict=True):
                if not isinstance(value, kind):
                    raise ToolError(f"{what} cannot take {value!r:.80}")
            match what:
                case "run":
                    if not _JOB.fullmatch(args[0]):
                        raise ToolError(f"jobs run functions of this program (tools.module:function), not {args[0]!r}")
                    return {"value": jobs.run(*args)}
                case "measure":
                    return {
                        "value": referee.measure(
                            self._known_model(args[0]), args[1], args[2], self._known_policy(args[3])
                        )
                    }
                case "judge":
                    return {"value": referee.judge(self._known_model(args[0]))}
                case "judge_policy":
                    return {"value": referee.judge_policy(self._known_policy(args[0]) or GREEDY)}
                case _:
                    return {"value": referee.remove_overlaps(_with_prompts(args[0]))}
        except ToolError as problem:
            return {"tool_error": str(problem)}

    def _known_model(self, model_id: str) -> str:
        assert self.run_dir is not None
        if model_id not in {BASE} | {model["id"] for model in RunStore(self.run_dir).all("models")}:
            raise ToolError(f"there is no model {model_id!r}; train one first")
        return model_id

    def _known_policy(self, policy: str | None) -> str | None:
        assert self.run_dir is not None
        if policy not in {None, GREEDY} | {known["id"] for known in RunStore(self.run_dir).all("policies")}:
            raise ToolError(f"there is no policy {policy!r}; write one with tools.refine.proposal first")
        return policy

    def _send(self, message: Json) -> None:
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise _Died from None

    def _receive(self, left_s: float) -> Json:
        try:
            line = self._lines.get(timeout=max(left_s, 0.0))
        except queue.Empty:
            raise _Late from None
        if line is None or not line.endswith("\n"):  # half a line: the host was killed while it wrote
            raise _Died
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            message = None
        if not isinstance(message, dict):
            raise ToolHostError("a tool wrote into the pipe between its process and the agent; mend the tool")
        return message

    def _start(self) -> "subprocess.Popen[str]":
        if self._process is not None:
            return self._process
        # Keys for models are the agent's and the worker's: what a tool prints or returns is kept on disk.
        environment = {name: value for name, value in os.environ.items() if not is_secret(name)}
        environment |= {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "0"}
        log: Any = subprocess.DEVNULL
        with contextlib.ExitStack() as stack:
            if self.run_dir is not None:
                for name in ("data", "policies", "lessons", "models", "evals", "tmp"):
                    (self.run_dir / name).mkdir(exist_ok=True)
                environment["TMPDIR"] = str(self.run_dir / "tmp")
                log = stack.enter_context((self.run_dir / "tools.log").open("a"))
            # A session of its own: Ctrl-C in the terminal reaches the agent, which ends the host in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.host"], cwd=REPOSITORY, env=environment, text=True, errors="replace",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._lines = queue.Queue(MOST_UNREAD)
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        self._send(self._setup)
        return self._process


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    """Pass on what the host writes. A thread of its own: what a tool left running may hold the pipe open for ever."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _with_prompts(rows: list[Any]) -> list[Json]:
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ToolError('remove_overlaps takes rows with a text under "prompt"')
    return rows
