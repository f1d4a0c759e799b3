"""What a page hears while a run works, as server-sent events: how its job goes, and that something happened.

Events: `job` holds the panel about the job under way, `said` the newest event in words (for screen readers), `changed`
that the results should be fetched anew, `ended` that no process works on the run any more.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from markupsafe import escape
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from agent.commands import printable
from agent.trace_view import REASONING_LENGTH, event_lines
from agent.ui.watched import WatchedRun
from tools.contract import Json

POLL_S = 1.0


async def changes(
    look: Callable[[], WatchedRun], panel: Callable[..., str], seen: int
) -> AsyncIterator[ServerSentEvent]:
    """Yield what happens to a run until no process works on it. seen: how many events the page knows."""
    shown = ""
    while True:
        try:
            run, status = await run_in_threadpool(_state, look)
        except ValueError as problem:  # the run's folder was damaged or taken away
            yield ServerSentEvent(str(problem), event="ended")
            return
        if (job := panel(status=status)) != shown:
            yield ServerSentEvent(job, event="job")
            shown = job
        if status["state"] != "running":
            yield ServerSentEvent(status["state"], event="ended")
            return
        if run.facts.num_events != seen:
            seen = run.facts.num_events
            yield ServerSentEvent(_words(run), event="said")
            yield ServerSentEvent(str(seen), event="changed")
        await asyncio.sleep(POLL_S)


async def renewal(is_starting: Callable[[], bool]) -> AsyncIterator[ServerSentEvent]:
    """Yield `ended` once what was started works on the run or has ended: the page is loaded anew then."""
    while await run_in_threadpool(is_starting):
        await asyncio.sleep(POLL_S)
    yield ServerSentEvent("started", event="ended")


def _state(look: Callable[[], WatchedRun]) -> tuple[WatchedRun, Json]:
    run = look()
    return run, run.status()


def _words(run: WatchedRun) -> str:
    event: Any = run.last
    if event is None:
        return ""
    place = "" if event["step"] is None else f"step {event['step']}, "
    return str(escape(printable(place + event_lines(event, REASONING_LENGTH)[0])))  # it is put into the page as HTML
