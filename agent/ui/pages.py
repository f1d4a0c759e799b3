"""The pages of `ui` and their addresses. What they show is made where the commands make it; here it is put together.

Handlers are plain functions, which the server runs in threads: reading a long trace holds up no other page.
"""

import itertools
import json
import math
import re
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from markupsafe import Markup
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from agent import follow, report, trace_diff, views
from agent.commands import printable
from agent.decision_text import sureness_text, why_text
from agent.final_pair import final_pair_text
from agent.progress import left_text
from agent.ui.access import Access
from agent.ui.live import changes, renewal
from agent.ui.started import Started
from agent.ui.stop import stop
from agent.ui.watched import Runs, StepRow, WatchedRun
from tools.contract import Json

HERE = Path(__file__).parent
PER_PAGE = 25
NEWEST = 3
"""Decisions on the page of a run; all of them have pages of their own."""
MOST_ROWS = 200
"""Lines of a comparison; `trace diff` gives all."""
SHOWN = {
    "all": "all",
    "failed": "refused or invalid",
    "accepted": "accepted a model",
    "rejected": "rejected a model",
}
"""Which decisions to show, and what that is called."""
ARGUMENT = "argument "
"""What the names of the fields for an action's arguments begin with."""
_ID = re.compile(r"\b((?:\d{4,}-\w+-)?[0-9a-f]{16}|general-chats(?:-\d+)?)\b")


def application(runs_dir: Path, token: str, cookie: str) -> Starlette:
    """Return the web application about the runs of a folder, for who holds the token.

    The runs are read meanwhile: a long one is known before somebody has clicked on it.
    """
    runs = Runs(runs_dir)
    threading.Thread(target=runs.all, daemon=True).start()
    pages = Pages(runs)
    routes = [
        Route("/", pages.runs_page),
        Route("/compare", pages.compare),
        Route("/runs/{run}/", pages.run),
        Route("/runs/{run}/decisions", pages.decisions),
        Route("/runs/{run}/step", pages.step),
        Route("/runs/{run}/steps.json", pages.steps),
        Route("/runs/{run}/details", pages.details),
        Route("/runs/{run}/follow", pages.follow),
        Route("/runs/{run}/live", pages.live),
        Route("/runs/{run}/stop", pages.stop, methods=["POST"]),
        Route("/runs/{run}/answer", pages.answer, methods=["POST"]),
        Route("/runs/{run}/resume", pages.resume, methods=["POST"]),
        Route("/static/report.css", lambda request: FileResponse(report.HERE / "report.css")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    mistakes: Any = {404: pages.mistake, ValueError: pages.mistake, KeyError: pages.mistake, TypeError: pages.mistake}
    middleware = [Middleware(Access, token=token, cookie=cookie)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=mistakes)


class Pages:
    """What is answered at each address."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.started = Started()
        self.templates = report.environment([HERE / "templates", report.HERE])
        self.templates.globals["link"] = lambda kind, name: f"follow?id={quote(name)}"
        self.templates.filters["linked"] = linked
        self.templates.filters["sure"] = sureness_text
        self.templates.filters["why"] = _why
        self.templates.filters["final_pair"] = final_pair_text
        self.templates.filters["limits"] = views.budget_text
        self.templates.filters["left"] = left_text
        self.templates.globals["ARGUMENT"] = ARGUMENT

    def html(self, name: str, status_code: int = 200, **values: Any) -> HTMLResponse:
        """Return a page from its template."""
        return HTMLResponse(self.templates.get_template(f"{name}.html.jinja").render(values, here=name), status_code)

    def mistake(self, request: Request, problem: Exception) -> Response:
        """Say what was wrong with an address or a run folder. A folder of another make is data, so it ends nothing."""
        asked_wrongly = isinstance(problem, ValueError)
        what = str(problem) if asked_wrongly else f"{type(problem).__name__}: {problem}"
        return self.html("mistake", getattr(problem, "status_code", 404 if asked_wrongly else 500), what=what)

    def runs_page(self, request: Request) -> Response:
        """All runs, newest first."""
        rows = self.runs.all()
        return self.html(
            "runs", rows=rows, folder=self.runs.runs_dir, live=any(row["state"] == "running" for row in rows)
        )

    def run(self, request: Request) -> Response:
        """What a run does now and what came out so far."""
        run = self._run(request)
        newest = _decided(run)[: -NEWEST - 1 : -1]
        rows = report.decisions(run.events(newest[::-1]))[::-1] if newest else []
        values: Json = {"asked_to_stop": "stopping" in request.query_params, "num_events": run.facts.num_events}
        values |= {"starting": self._is_starting(run), "refusal": self.started.refusal(run.run_dir)}
        values["resumable"] = views.RESUMABLE
        return self._about("run", run, decisions=rows, **values)

    def decisions(self, request: Request) -> Response:
        """A page of the decisions in order, all or the chosen ones."""
        run, asked = self._run(request), request.query_params
        shown, tool = asked.get("show", "all"), asked.get("tool", "")
        decided = _decided(run)
        chosen = [row for row in decided if _wanted(row, shown) and tool in ("", row.tool)]
        num_pages = max(1, math.ceil(len(chosen) / PER_PAGE))
        page = min(max(1, _number(asked.get("page", "1"))), num_pages)
        here = chosen[PER_PAGE * (page - 1) : PER_PAGE * page]
        values = {"shown": shown, "tool": tool, "page": page, "num_pages": num_pages, "num_chosen": len(chosen)}
        values |= {"kinds": SHOWN, "tools": sorted({row.tool for row in decided if row.tool})}
        rows = report.decisions(run.events(here)) if here else []
        return self._about("decisions", run, whole=False, decisions=rows, **values)

    def step(self, request: Request) -> Response:
        """One step with all its evidence, and its events as they were written."""
        run = self._run(request)
        number = _number(request.query_params.get("n", ""))
        places = [place for place, row in enumerate(run.steps) if row.number == number]
        if not places:
            raise ValueError(f"run {run.run_dir.name} has no step {number}")
        events = list(run.events([run.steps[place] for place in places]))
        around = {
            "before": run.steps[places[0] - 1].number if places[0] else None,
            "after": run.steps[places[-1] + 1].number if places[-1] + 1 < len(run.steps) else None,
        }
        texts = [event | {"text": json.dumps(event, indent=1, ensure_ascii=False)} for event in events]
        rows = report.decisions(events)
        return self._about("step", run, whole=False, number=number, decisions=rows, events=texts, **around)

    def steps(self, request: Request) -> Response:
        """The numbers of each step as columns, for the chart."""
        rows = [row for row in self._run(request).steps if row.score is not None]
        columns: list[list[Any]] = [[row.number for row in rows]]
        columns += [[round(100 * row.score[part], 2) for row in rows if row.score] for part in range(3)]
        return JSONResponse([*columns, [row.budget_left_percent for row in rows]])

    def details(self, request: Request) -> Response:
        """Costs, data, diagnosis."""
        run = self._run(request)
        values = report.details(run.run_dir, run.status(), run.store)
        return self._about("details", run, whole=False, **values)

    def follow(self, request: Request) -> Response:
        """Where an artifact came from and what it led to."""
        run, wanted = self._run(request), request.query_params.get("id", "").strip()
        node: Json | None = None
        problem = ""
        if wanted:
            try:
                node = follow.follow(run.run_dir, wanted)
            except ValueError as error:
                problem = str(error)
        known = {kind: run.store.all(kind) for kind in ("models", "data", "evals")}
        return self._about("follow", run, whole=False, wanted=wanted, node=node, problem=problem, known=known)

    def compare(self, request: Request) -> Response:
        """Two runs side by side: where they part and why."""
        names = [path.name for path in views.run_folders(self.runs.runs_dir)]
        wanted = [request.query_params.get(side, "") for side in ("a", "b")]
        values: Json = {"names": names, "wanted": wanted, "found": None}
        if all(wanted):
            a, b = (self.runs.get(name) for name in wanted)
            values["found"] = _diff(a.run_dir, b.run_dir, a.read_to, b.read_to)
            values["sides"] = [report.overview(run.run_dir, run.status(), run.facts, run.store) for run in (a, b)]
            values["most_fields"] = trace_diff.MOST_FIELDS_OF_A_ROW
            values["lines"], values["num_left_out"] = _lines(values["found"]["rows"])
        return self.html("compare", **values)

    async def live(self, request: Request) -> Response:
        """What happens to a run from now on, as server-sent events."""
        name, panel = request.path_params["run"], self.templates.get_template("job.html.jinja")
        if "starting" in request.query_params:
            return EventSourceResponse(renewal(lambda: self._is_starting(self.runs.get(name))))
        seen = _number(request.query_params.get("seen", "0"))
        return EventSourceResponse(changes(lambda: self.runs.get(name), panel.render, seen))

    def stop(self, request: Request) -> Response:
        """Ask the agent of a run to stop after its step."""
        run = self._run(request)
        stop(run.run_dir)
        return RedirectResponse(f"/runs/{quote(run.run_dir.name)}/?stopping=yes", 303)

    async def answer(self, request: Request) -> Response:
        """Answer the question that a run waits with, as `run_agent.py approve` does."""
        sent = dict(parse_qsl((await request.body()).decode("ascii"), keep_blank_values=True))
        return await run_in_threadpool(self._answer, request, sent)

    def _answer(self, request: Request, sent: dict[str, str]) -> Response:
        run = self._run(request)
        # What was approved is what the page showed, not what the run has come to ask since.
        if run.status()["question"] is None or sent.get("seen") != str(run.facts.num_events):
            raise ValueError(f"run {run.run_dir.name} went on since its page was loaded: load it again and see")
        # The command may find another question still: somebody can answer before it has begun.
        return self._go_on(run, "approve", f"--question={sent.get('question', '')}", *answer_options(sent))

    def resume(self, request: Request) -> Response:
        """Go on with a run, as `run_agent.py resume` does."""
        run = self._run(request)
        if (state := run.status()["state"]) not in views.RESUMABLE:
            raise ValueError(f"run {run.run_dir.name} is {state}: there is nothing to resume")
        return self._go_on(run, "resume", *(["--accept-changes"] if "accept" in request.query_params else []))

    def _go_on(self, run: WatchedRun, *command: str) -> Response:
        self.started.start(run.run_dir, *command)
        return RedirectResponse(f"/runs/{quote(run.run_dir.name)}/", 303)

    def _is_starting(self, run: WatchedRun) -> bool:
        """Whether a command was started on a run and does not work on it (yet, or any more)."""
        return self.started.is_at_work(run.run_dir) and views.run_state(run.run_dir, run.facts) != "running"

    def _run(self, request: Request) -> WatchedRun:
        return self.runs.get(request.path_params["run"])

    def _about(self, name: str, run: WatchedRun, whole: bool = True, **values: Any) -> HTMLResponse:
        """Return a page about a run; whole: with its results and learning curve."""
        status = run.status()
        shown = report.overview(run.run_dir, status, run.facts, run.store) if whole else {"status": status}
        root = f"/runs/{quote(run.run_dir.name)}/"
        return self.html(name, root=root, **shown | values)


def answer_options(sent: dict[str, str]) -> list[str]:
    """Return the options of `run_agent.py approve` for what a form sent; the command checks what they say."""
    match sent.get("answer"):
        case "yes":
            return []
        case "no":
            return [f"--reject={sent.get('reason', '')}"]
        case "edit":
            fields = {name: value for name, value in sent.items() if name.startswith(ARGUMENT)}
            args = {name.removeprefix(ARGUMENT): json.loads(value) for name, value in fields.items()}
            return [f"--edit={json.dumps({'tool': sent.get('tool'), 'arguments': args})}"]
    raise ValueError("an answer is yes, no or edit")


def linked(text: str) -> Markup:
    """Return a text in which each id of an artifact leads to where it came from and what it led to."""
    parts = _ID.split(printable(str(text)))
    link = Markup('<a href="follow?id={0}"><code>{0}</code></a>')
    return Markup("").join(link.format(part) if place % 2 else part for place, part in enumerate(parts))


def _why(said: Json) -> str:
    """Return what the reasoning of a compared decision or of a question is."""
    alone = not said["alternatives"] if "alternatives" in said else len(said["menu"]) == 1
    return why_text(said["decided_by"], alone)


def _decided(run: WatchedRun) -> list[StepRow]:
    return [row for row in run.steps if row.tool is not None]


def _wanted(row: StepRow, shown: str) -> bool:
    wanted = {"all": True, "failed": row.failed, "accepted": row.accepted is True, "rejected": row.accepted is False}
    if shown not in wanted:
        raise ValueError(f"show={shown} is unknown; choose from {', '.join(SHOWN)}")
    return wanted[shown]


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text!r} is not a number")
    return int(text)


@lru_cache(maxsize=4)
def _diff(run_a: Path, run_b: Path, num_bytes_a: int, num_bytes_b: int) -> Json:
    """Return the difference of two runs whose traces have these lengths: the same until one of them grows."""
    return trace_diff.diff(run_a, run_b)


def _lines(rows: Iterable[Json]) -> tuple[list[Json], int]:
    """Return {"first", "last", "how", "a", "b"}, equal steps in a row as one, and how many more there are."""
    lines: list[Json] = []
    for same, group in itertools.groupby(rows, key=lambda row: row["how"] == "same"):
        found = list(group)
        parts = [found] if same else [[row] for row in found]
        lines += [part[0] | {"first": part[0]["step"], "last": part[-1]["step"]} for part in parts]
    return lines[:MOST_ROWS], max(0, len(lines) - MOST_ROWS)
