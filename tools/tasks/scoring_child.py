"""The child of `tools.tasks.scoring`: `python -m tools.tasks.scoring_child`, JSON lines on stdin and stdout.

The first line is {"scorer", "memory_bytes", "time_limit_s"} and is answered by ["ready"]. Each further line is a list
of [item, answer] pairs and is answered by one line [score, kind, error message or null] per pair, in order.

The scorer can read python, its packages and its own file, and write, reach and start nothing outside of that: neither
the sealed items of a run nor the network. Time, memory, files and sockets are limited as well where the machine has no
sandbox; that stops faults, not malice, so scorers that run untrusted code are then refused unless they are allowed to.
"""

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tools.tasks.base import Item, Verdict
from tools.tasks.sandbox import UNSANDBOXED_CURE, SandboxError, python_paths, restrict, unsupported
from tools.tasks.scorers import UNTRUSTED, make_scorer
from tools.tasks.verdicts import Scorer

MOST_OPEN_FILES = 64
_REPO = Path(__file__).resolve().parents[2]
_GRACE_S = 5.0
"""How much later than the parent's limit the child ends itself, for the case that the parent was killed."""


class _NoSocket(socket.socket):
    """What `socket.socket` is in the child."""

    def __init__(self, *args: object, **kwargs: object) -> NoReturn:
        raise PermissionError("a scorer has no network")


def main() -> None:
    """Answer batches until stdin closes."""
    requests, replies = _take_over_pipes()
    setup = json.loads(requests.readline())
    _limit(setup["memory_bytes"])
    _shut_off(setup["scorer"])
    scorer = make_scorer(setup["scorer"])
    _reply(replies, ["ready"])
    for line in requests:
        for row, answer in json.loads(line):
            # No handler is installed: the signal ends the process even inside native code that never returns.
            signal.setitimer(signal.ITIMER_REAL, setup["time_limit_s"] + _GRACE_S)
            _reply(replies, _judge(scorer, Item.from_json(row), answer))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _take_over_pipes() -> tuple[TextIO, TextIO]:
    """Keep stdin and stdout for the protocol: the scorer's prints, native ones too, go to stderr; `input()` ends."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return requests, replies


def _limit(memory_bytes: int) -> None:
    for kind, amount in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (amount, amount))
    socket.socket = _NoSocket  # type: ignore[assignment, misc]


def _shut_off(scorer: dict[str, Any]) -> None:
    """Leave this process nothing but what the scorer needs."""
    problem = unsupported()
    if not problem:
        own = [_REPO / name for name in ("tools", "memory", "prompts")]
        file = [Path(scorer["file"])] if "file" in scorer else []
        restrict(read=[*python_paths(), *own, *file], write=[], network=False)
    elif scorer["name"] in UNTRUSTED and not scorer.get("unsandboxed"):
        raise SandboxError(f"{problem}; {UNSANDBOXED_CURE}")


def _judge(scorer: Scorer, item: Item, answer: str) -> list[Any]:
    try:
        return [*scorer(item, answer), None]
    except Exception as error:  # the one place where a scorer's failure is recorded: it becomes the verdict "error"
        return [*Verdict(0.0, "error"), f"{type(error).__name__}: {error}"[:500]]


def _reply(replies: TextIO, value: list[Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
