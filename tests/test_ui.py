"""The pages of `ui`: who may look, what they show, how a run is stopped. tests/test_ui_browser.py looks at them.

The server runs as a user starts it, in a process of its own.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from agent.trace import Trace
from agent.trace_facts import facts_of
from agent.ui.watched import WatchedRun
from memory.records import read_json, write_json
from tests.test_views import GOOD, RIGHT, TRAIN, USAGE, make_run

REPO = Path(__file__).resolve().parents[1]
PAGES = (
    "",
    "decisions",
    "step?n=1",
    "details",
    "follow",
    f"follow?id={GOOD}",
    f"follow?id={RIGHT}",
    f"follow?id={TRAIN}",
)
"""Below runs/<run>/."""
HOSTILE = "</pre><script>document.title='stolen'</script><img src=x onerror=alert(2)>"


class Server(NamedTuple):
    """A running `ui`."""

    address: str
    """With the token, as it was printed."""
    runs: Path

    @property
    def origin(self) -> str:
        return self.address.split("/?")[0]

    def client(self) -> httpx.Client:
        """Return a client that has come in by the printed address."""
        client = httpx.Client(base_url=self.origin, follow_redirects=True, timeout=30)
        assert client.get(self.address).status_code == 200
        return client


@contextmanager
def serving(runs: Path) -> Iterator[Server]:
    """Serve the pages of a folder with two finished runs."""
    make_run(runs)
    make_run(runs, "20260102-030406")
    command = [sys.executable, "run_agent.py", "ui", "--no-browser", "--json", "--runs-dir", str(runs)]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield Server(json.loads(line)["address"], runs)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130, "Ctrl-C ends it as it ends every command"


def new_run(server: Server) -> Path:
    """Write another run, killed in its second step."""
    return make_run(server.runs, f"20260301-0000{len(list(server.runs.iterdir())):02}", ended=None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ui") / "runs") as started:
        yield started


@pytest.fixture
def run(server: Server) -> Path:
    return new_run(server)


def decide(trace: Trace, step: int, tool: str, ending: str = "tool_finished") -> None:
    """Write a whole step."""
    situation: dict[str, Any] = {"champion": "base", "score": {"score": 0.5, "ci95": [0.4, 0.6], "n": 128}}
    situation |= {"budget_left_percent": 40, "unused_right_answers": 7}
    trace.emit("observed", step=step, situation=situation, menu=[tool, "finish_run"])
    action: dict[str, Any] = {"tool": tool, "args": {"size": step}}
    others = [{"tool": "finish_run", "logprob": -1.0}]
    rest: dict[str, Any] = {"decided_by": "model", "logprob": -1.0, "reasoning": HOSTILE, "usage": {}, "problems": []}
    trace.emit("decided", step=step, action=action, alternatives=others, **rest)
    trace.emit("tool_started", step=step, **action, job=f"{step:04d}")
    what = {"result": {"dataset": TRAIN}} if ending == "tool_finished" else {"error": "too few examples"}
    trace.emit(ending, step=step, **action, usage=USAGE, **what)


# --- who may look


def test_only_who_has_the_token_may_look(server: Server, run: Path) -> None:
    for path in ("/", f"/runs/{run.name}/", "/static/ui.js", "/nowhere", "/?token=wrong", "/?token="):
        refused = httpx.get(server.origin + path)
        assert refused.status_code == 403 and "address that `run_agent.py ui` printed" in refused.text, path
        assert run.name not in refused.text
    entered = httpx.get(server.address)
    assert entered.status_code == 303 and "token" not in entered.headers["location"]
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert run.name in server.client().get("/").text


def test_a_name_that_leads_here_from_elsewhere_is_refused(server: Server) -> None:
    client = server.client()
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(server.address, headers={"host": "evil.example"}).status_code == 403


def test_each_answer_forbids_what_the_pages_do_not_need(server: Server) -> None:
    client = server.client()
    for path in ("/", "/static/htmx.min.js", "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"


def test_only_this_machine_can_reach_it(server: Server) -> None:
    assert server.origin.startswith("http://127.0.0.1:")
    said = subprocess.run(
        [sys.executable, "run_agent.py", "ui", "--no-browser", "--port", server.origin.split(":")[2]],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 2 and "give another one, or 0" in said.stderr


# --- stopping


@pytest.fixture
def agent(run: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run's lock until it is asked to stop."""
    code = """
import fcntl, sys, time
from pathlib import Path
from agent.stopping import announce

run = Path(sys.argv[1])
lock = (run / "run.lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
announce(run)
print("held", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_live_run_is_stopped_from_its_page_alone(server: Server, run: Path, agent: subprocess.Popen[str]) -> None:
    client, place = server.client(), f"/runs/{run.name}/stop"
    assert httpx.post(server.origin + place, headers={"origin": server.origin}).status_code == 403
    assert client.post(place).status_code == 403, "no origin"
    assert client.post(place, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get(place).status_code in (404, 405)
    assert agent.poll() is None
    answer = client.post(place, headers={"origin": server.origin})
    assert answer.status_code == 200 and str(answer.url).endswith("?stopping=yes"), answer.text
    assert agent.wait(30) == -signal.SIGTERM
    again = client.post(place, headers={"origin": server.origin})
    assert again.status_code == 404 and "no process is found" in again.text


# --- what is shown


def test_all_pages_answer(server: Server, run: Path) -> None:
    client = server.client()
    for page in PAGES:
        answer = client.get(f"/runs/{run.name}/{page}")
        assert answer.status_code == 200, f"{page}: {answer.text}"
    listed = client.get("/").text
    assert run.name in listed and "killed" in listed and "finished" in listed and "22.0 %" in listed
    assert GOOD in client.get(f"/runs/{run.name}/").text


def test_a_wrong_address_says_what_is_wrong(server: Server, run: Path) -> None:
    client = server.client()
    for path, said in (
        ("/runs/nowhere/", "there is no run"),
        ("/runs/../", "Runs"),
        (f"/runs/{run.name}/step?n=77", "has no step 77"),
        (f"/runs/{run.name}/decisions?show=nothing", "choose from all, failed"),
        (f"/runs/{run.name}/decisions?page=x", "is not a number"),
        (f"/runs/{run.name}/follow?id={GOOD[:8]}", "did you mean"),
    ):
        assert said in client.get(path).text, path
    assert client.get("/runs/..%2f..%2fetc/").status_code == 404


def test_decisions_come_page_by_page_and_by_kind(server: Server, run: Path) -> None:
    trace, client = Trace(run), server.client()
    for step in range(3, 43):
        decide(trace, step, "curate_data", "tool_failed" if step % 10 == 0 else "tool_finished")

    def steps(query: str) -> list[int]:
        text = client.get(f"/runs/{run.name}/decisions?{query}").text
        return [int(number) for number in re.findall(r'<a id="to-step-\d+-\d+" href="step\?n=(\d+)"', text)]

    assert (
        steps("") == [1, *range(3, 27)] and steps("page=2") == [*range(27, 43)] and steps("page=99") == steps("page=2")
    )
    assert steps("show=failed") == [1, 10, 20, 30, 40], "step 1 had an invalid decision before"
    assert steps("show=accepted") == [1] and steps("show=rejected") == []
    assert steps("tool=evaluate_model") == [1]


def test_a_decision_shows_its_evidence(server: Server, run: Path) -> None:
    text = " ".join(re.sub(r"<[^>]*>", " ", server.client().get(f"/runs/{run.name}/step?n=1").text).split())
    for said in (
        "evaluate_model chosen 82 % finish_run 18 %",
        "Invalid before: tool &#39;dance&#39; is not legal now",
        "why not why not",
        "Cost: 12.5 s wall, 20.0 s cpu, 4200 tokens",
        "accepted : 76 fixed, 3 broken of n=400 gate items",
        "drift yes 0.2 1 52 nats from the base model",
        "What the planner was shown",
        "Legal actions: evaluate_model, finish_run",
    ):
        assert said in text


def test_two_runs_are_compared(server: Server, run: Path) -> None:
    decide(Trace(run), 2, "curate_data")
    text = server.client().get(f"/compare?a=20260102-030405&b={run.name}").text
    assert "They part: step 2" in text and "No decision in A" in text
    same = server.client().get("/compare?a=20260102-030405&b=20260102-030406").text
    assert "They do not part" in same and "Final split not compared item by item: " in same


def test_a_comparison_names_the_origin_and_what_differs_in_a_step(server: Server, run: Path) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | {"forked_from": {"run": "20260102-030405", "step": 1}})
    path = run / "events.jsonl"
    path.write_text(path.read_text().replace('"gain_on_search":0.22', '"gain_on_search":0.33'))
    text = server.client().get(f"/compare?a=20260102-030405&b={run.name}").text
    assert "<p>B is a fork of A at step 1.</p>" in text
    assert "<td><code>result.gain_on_search</code></td><td>0.22</td><td>0.33</td>" in text


def test_hostile_text_is_text(server: Server, run: Path) -> None:
    record = read_json(run / "run.json")
    record["config"] |= {"task": HOSTILE, "model": HOSTILE, "planner": HOSTILE}
    write_json(run / "run.json", record)
    trace = Trace(run)
    decide(trace, 3, HOSTILE)
    trace.emit("tool_failed", step=3, tool=HOSTILE, args={HOSTILE: HOSTILE}, error=HOSTILE, usage=USAGE)
    client = server.client()
    paths = ["/", f"/compare?a={run.name}&b={run.name}", *(f"/runs/{run.name}/{page}" for page in (*PAGES, "step?n=3"))]
    for path in paths:
        text = client.get(path).text
        assert "<script>document" not in text and "<img" not in text, path


def test_the_server_loads_no_model_library() -> None:
    code = "import sys, agent.ui.pages, agent.situation"
    code += "; print([name for name in ('torch', 'transformers', 'chromadb') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


# --- what is known of a run


def test_a_trace_is_read_once_and_then_only_what_was_appended(run: Path) -> None:
    watched = WatchedRun(run)
    watched.refresh()
    before = watched.read_to
    decide(Trace(run), 3, "curate_data")
    path = run / "events.jsonl"
    with path.open("r+b") as file:  # what was read already is not read again, even where it became nonsense
        file.write(b"x" * 10)
    with path.open("ab") as file:
        file.write(b'{"kind": "decided", "st')
    watched.refresh()
    assert watched.read_to == path.stat().st_size - 23 > before
    assert [row.number for row in watched.steps] == [1, 2, 3]
    assert [event["kind"] for event in watched.events(watched.steps[2:])][:2] == ["observed", "decided"]


def test_what_was_appended_adds_up_to_the_whole(run: Path) -> None:
    watched = WatchedRun(run)
    for step in (3, 4, 5):
        decide(Trace(run), step, "curate_data")
        watched.refresh()
    assert watched.facts == facts_of(run) and watched.facts.step == 5
    shorter = (run / "events.jsonl").read_bytes().splitlines(keepends=True)[:2]
    (run / "events.jsonl").write_bytes(b"".join(shorter))
    watched.refresh()
    assert watched.facts == facts_of(run) and watched.facts.num_events == 2, "another file took its place"
