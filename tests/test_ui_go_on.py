"""Runs go on from their pages: a person's answers, the Resume button, and what is said when a run does not go on."""

import html
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from agent import views
from agent.state import StopReason
from agent.stopping import agent_file
from agent.ui.started import Started, log_file
from memory.records import read_json, write_json
from tests.test_approval import MENU, QUESTION, events_of, program
from tests.test_run import finish, write_task
from tests.test_ui import HOSTILE, Server, new_run, serving
from tests.test_views import end_run, held

Json = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ui") / "runs") as started:
        yield started


def wait(run_dir: Path, question: Json | None = QUESTION) -> Path:
    """Let a run that was written without a model wait for the answer to a question."""
    end_run(run_dir, StopReason.WAITING)
    write_json(run_dir / "report.json", read_json(run_dir / "report.json") | {"question": question})
    return run_dir


def page_of(client: httpx.Client, run_dir: Path) -> str:
    return client.get(f"/runs/{run_dir.name}/").text


def seen(text: str) -> str:
    """Return how much of the run a page shows, as its forms send it back."""
    found = re.search(r'name="seen" value="(\d+)"', text)
    assert found is not None, text
    return found[1]


def shown(text: str) -> dict[str, str]:
    """Return what each form of a page sends back unseen: how much of the run it shows, and the question."""
    question = re.search(r'name="question" value="(.*?)"', text)
    assert question is not None, text
    return {"seen": seen(text), "question": html.unescape(question[1])}


def send(client: httpx.Client, run_dir: Path, place: str, **form: str) -> httpx.Response:
    origin = str(client.base_url).rstrip("/")
    return client.post(f"/runs/{run_dir.name}/{place}", data=form, headers={"origin": origin})


def until(condition: Callable[[], bool], run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        said = log_file(run_dir).read_text() if log_file(run_dir).exists() else "nothing"
        assert time.monotonic() < deadline, f"it did not happen; the run said: {said}"
        time.sleep(0.1)


def answers_of(run_dir: Path) -> list[str]:
    return [event["answer"] for event in events_of(run_dir, "answered")]


# --- what is shown


def test_a_waiting_run_shows_its_question_and_only_legal_answers(server: Server) -> None:
    choices = [MENU[0] | {"outcome": "2 of 3 kept, 12k tokens a round"}, *MENU[1:]]
    question = QUESTION | {
        "menu": choices,
        "reasoning": f"more data {HOSTILE}",
        "args": {"rate": 0.2, "method": "lora"},
    }
    text = page_of(server.client(), wait(new_run(server), question))
    assert "May step 2 be done?" in text and "model proposes <code>train(rate=0.1, method=lora)</code>" in text
    assert "more data &lt;/pre&gt;" in text and "<script>document" not in text
    assert "12k tokens a round" in text and 'name="tool" value="finish"' in text
    assert re.findall(r"<option value='(.*?)'( selected)?>", text) == [
        ("0.1", ""), ("0.2", " selected"), ('"lora"', " selected")
    ]  # fmt: skip
    assert all(f'name="answer" value="{answer}"' in text for answer in ("yes", "no", "edit"))
    assert '<input name="reason" required' in text
    assert text.count("<select") == text.count("<label>rate <select") + text.count("<label>method <select"), "named"


def test_the_only_legal_action_can_only_be_approved(server: Server) -> None:
    only = {"tool": "train", "description": "Train.", "arguments": {"rate": [0.1], "method": ["lora"]}}
    text = page_of(server.client(), wait(new_run(server), QUESTION | {"menu": [only]}))
    assert "the only legal action" in text and 'value="yes"' in text
    assert 'value="no"' not in text and 'value="edit"' not in text


def test_an_answer_counts_for_the_question_that_was_shown(server: Server) -> None:
    client, run_dir = server.client(), wait(new_run(server))
    shown = seen(page_of(client, run_dir))
    foreign = client.post(f"/runs/{run_dir.name}/answer", data={"seen": shown, "answer": "yes"})
    assert foreign.status_code == 403, "no origin"
    assert client.get(f"/runs/{run_dir.name}/answer").status_code in (404, 405)
    for form, said in (
        ({"seen": "3", "answer": "yes"}, "went on since its page was loaded"),
        ({"answer": "yes"}, "went on since its page was loaded"),
        ({"seen": shown, "answer": "perhaps"}, "an answer is yes, no or edit"),
    ):
        assert said in send(client, run_dir, "answer", **form).text
    wait(run_dir)  # it was answered elsewhere, went on and asks again
    assert "went on since" in send(client, run_dir, "answer", seen=shown, answer="yes").text
    assert not log_file(run_dir).exists(), "nothing was started"


def test_only_what_can_go_on_is_resumed(server: Server) -> None:
    client, finished = server.client(), server.runs / "20260102-030405"
    assert ">Resume<" not in page_of(client, finished)
    assert "is finished: there is nothing to resume" in send(client, finished, "resume").text
    for reason in (None, StopReason.USER_STOPPED, StopReason.FAILED):
        run_dir = new_run(server)
        if reason is not None:
            end_run(run_dir, reason)
        assert ">Resume<" in page_of(client, run_dir), reason
    assert client.post(f"/runs/{run_dir.name}/resume").status_code == 403, "no origin"


def test_what_a_run_said_when_it_did_not_go_on_is_shown(server: Server) -> None:
    client, run_dir = server.client(), new_run(server)
    answer = send(client, run_dir, "resume")
    assert answer.status_code == 200 and "was started" in answer.text and ">Resume<" not in answer.text
    with client.stream("GET", f"/runs/{run_dir.name}/live?starting=yes") as stream:
        assert "event: ended" in "\n".join(stream.iter_lines()), "the page is told to load anew"
    text = page_of(client, run_dir)
    assert "It did not go on" in text and "error: " in text and ">Resume<" in text
    assert "Accept these changes" not in text, "no such change was told"
    end_run(run_dir, StopReason.USER_STOPPED)
    assert "It did not go on" not in page_of(client, run_dir), "it went on since"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"budget_usd": 2.5}, "2.5 usd"),
        ({"budget_cpu_minutes": 30.0}, "30.0 cpu minutes"),
        ({"budget_minutes": 3.0, "budget_tokens": 5000}, "3.0 minutes and 5,000 tokens"),
        ({}, "10 minutes"),
    ],
)
def test_a_live_run_shows_every_limit_that_it_has(server: Server, limits: Json, told: str) -> None:
    run_dir = new_run(server)
    record = read_json(run_dir / "run.json")
    write_json(run_dir / "run.json", record | {"config": record["config"] | {"budget_minutes": None} | limits})
    with held(run_dir / "run.lock"):
        text = page_of(server.client(), run_dir)
    panel = re.sub(r"<[^>]*>", " ", text[text.index('id="budget-name"') : text.index("</dl>")])
    assert f" {told}: " in panel and "s spent; 92 % left" in panel, panel
    assert "of 10 minutes" not in panel


def test_a_fork_says_where_it_comes_from(server: Server) -> None:
    client, run_dir = server.client(), new_run(server)
    assert "fork of" not in page_of(client, run_dir)
    origin = {"forked_from": {"run": "20260102-030405", "step": 4}}
    write_json(run_dir / "run.json", read_json(run_dir / "run.json") | origin)
    told = 'fork of <a href="/runs/20260102-030405/">20260102-030405</a> at step 4'
    for path in ("/", f"/runs/{run_dir.name}/", f"/runs/{run_dir.name}/details"):
        assert told in client.get(path).text, path


def test_a_command_that_cannot_be_started_is_told(server: Server) -> None:
    client, run_dir = server.client(), wait(new_run(server))
    form = {"seen": seen(page_of(client, run_dir)), "answer": "no", "reason": "w" * 200_000}  # too long
    answer = send(client, run_dir, "answer", **form)
    assert answer.status_code == 404 and "could not be started" in answer.text and "nothing was done" in answer.text
    assert "May step 2 be done?" in page_of(client, run_dir)


def test_what_a_page_started_leaves_no_zombie(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, started = new_run(server), Started()
    monkeypatch.setattr("agent.ui.started.sys.executable", shutil.which("true"))
    before = {child.pid for child in psutil.Process().children()}
    started.start(run_dir, "resume")
    until(lambda: {child.pid for child in psutil.Process().children()} <= before, run_dir)


def test_a_page_answers_the_question_that_it_shows(server: Server) -> None:
    """Somebody answers elsewhere between the page's own check and the start of the command."""
    client, run_dir = server.client(), wait(new_run(server))
    shown = seen(page_of(client, run_dir))
    send(client, run_dir, "answer", seen=shown, answer="yes", question="step 1: train(rate=0.1, method=lora)")
    until(lambda: "nothing was answered: the answer is to" in page_of(client, run_dir), run_dir)
    assert "May step 2 be done?" in page_of(client, run_dir)


# --- a run of the tiny model


@pytest.fixture
def waiting_run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run of the tiny model that waits with its first action."""
    runs = tmp_path / "runs"
    task = write_task(tmp_path / "copy.jsonl", lambda text: f"Say this word again: {text}")
    sizes = ["--search-items", "20", "--gate-items", "20", "--final-items", "20", "--budget-tokens", "3000000"]
    where = ["--runs-dir", str(runs), "--model", str(tiny_model), "--dtype", "float32"]
    code, report, said = finish(
        program("start", "--task", task, "--planner", "rules", *sizes, *where, "--approve", "--json")
    )
    assert code == 3, said
    return runs / str(report["run"])


def test_a_run_goes_on_by_answers_from_its_page(waiting_run: Path) -> None:
    run_dir = waiting_run

    def asks(num_answers: int) -> bool:
        return len(answers_of(run_dir)) == num_answers and views.run_state(run_dir) == "waiting"

    with serving(run_dir.parent) as begun:
        client = begun.client()
        text = page_of(client, run_dir)
        send(client, run_dir, "answer", **shown(text), answer="no", reason="too many items")
        until(agent_file(run_dir).exists, run_dir)
        agent = read_json(agent_file(run_dir))["pid"]
        assert os.getsid(agent) == agent, "the Ctrl-C that ends the server does not reach it"
        until(lambda: asks(1), run_dir)
        assert events_of(run_dir, "answered")[0]["reason"] == "too many items"

        record = read_json(run_dir / "run.json")
        record["surroundings"]["libraries"]["rich"] = "1.0"
        write_json(run_dir / "run.json", record)
        until(lambda: "was started" not in page_of(client, run_dir), run_dir)
        send(client, run_dir, "answer", **shown(page_of(client, run_dir)), answer="yes")
        until(lambda: "library rich: 1.0" in page_of(client, run_dir), run_dir)
        assert "Accept these changes" in page_of(client, run_dir) and asks(1)
        send(client, run_dir, "resume?accept=changes")
        until(lambda: bool(events_of(run_dir, "changes_accepted")) and asks(1), run_dir)
        until(lambda: "May step 1 be done?" in page_of(client, run_dir), run_dir)

        text = page_of(client, run_dir)
        assert "It did not go on" not in text
        tool = read_json(run_dir / "report.json")["question"]["tool"]
        form = next(
            form for form in re.findall(r"<form.*?</form>", text, re.S) if f'name="tool" value="{tool}"' in form
        )
        fields = re.findall(r'<select name="(.*?)">(.*?)</select>', form, re.S)
        last = {name: re.findall(r"<option value='(.*?)'", values)[-1] for name, values in fields}
        send(client, run_dir, "answer", **shown(text), answer="edit", tool=tool, **last)
    # The server has ended, and the run goes on.
    until(lambda: asks(2), run_dir)
    edited = events_of(run_dir, "answered")[1]
    assert edited["answer"] == "edit" and edited["who"] == "person"
    wanted = {name.removeprefix("argument "): json.loads(value) for name, value in last.items()}
    assert edited["edited"] == {"tool": tool, "args": wanted}
    (call,) = (read_json(path) for path in (run_dir / "calls").glob("*.json"))
    assert call["args"] == wanted
