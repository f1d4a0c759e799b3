"""The page about a run: finished, live, killed and empty runs, hostile text, and that its numbers are the files'.

Not covered: how the page looks. Render it and look at it when you touch the template.
"""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agent.clock import REST, UNTOLD, write_clock
from agent.report import _ticks, environment, page
from agent.state import StopReason
from agent.trace import Trace
from memory.records import append_jsonl, read_json, write_json
from memory.store import RunStore
from run_agent import main
from tests.test_views import BAD, GOOD, SAMPLES, TRAIN, USAGE, held, make_run
from tools.engines.publish import model_card

VOID = {"meta", "br", "img", "input", "link", "hr", "col", "embed", "source"}
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m"


class Page(HTMLParser):
    """A parsed page: its tags with attributes, its text with single spaces; tags that do not pair up are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Return the attributes of such tags; class_ is class and a_b is a-b."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def read(run_dir: Path) -> Page:
    return Page(page(run_dir))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs")


def write_finished_job(run_dir: Path, key: str, function: str, tokens: int, wall_s: float) -> None:
    write_json(run_dir / "jobs" / key / "spec.json", {"function": function, "args": {}, "inputs": {}})
    usage = {"wall_s": wall_s, "cpu_s": 1.0, "tokens": tokens}
    write_json(run_dir / "jobs" / key / "result.json", {"value": {}, "usage": usage})


# --- the command


def test_the_command_writes_the_page_and_says_where(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs_dir = ["--runs-dir", str(run_dir.parent)]
    assert main(["report", *runs_dir]) == 0
    assert (run_dir / "report.html").read_text() == page(run_dir)
    assert capsys.readouterr().out == f"wrote {run_dir / 'report.html'}\n"
    other = run_dir.parent / "new" / "page.html"
    assert main(["report", run_dir.name, "--out", str(other), "--json", *runs_dir]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": run_dir.name, "path": str(other)}
    assert other.read_text() == page(run_dir)
    assert main(["report", "--out", str(other.parent), *runs_dir]) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err


# --- runs in every state


def test_a_finished_run(run_dir: Path) -> None:
    text = read(run_dir).text
    for said in (
        f"Run {run_dir.name}: finished",
        "smollm2-135m learns reasoning_gym:chain_sum",
        "planner rules, seed 0, budget 3.0 minutes",
        f"Ended: plateau. {StopReason.PLATEAU.sentence}",
        "base, zero-shot 0.0 % 95 % interval 0.0 to 0.0 %, n=400",
        "base, few-shot 5.0 % 95 % interval 2.5 to 10.0 %, n=400",
        "champion 25.0 % 95 % interval 12.5 to 50.0 %, n=400",
        "Measured with engine transformers, dtype bfloat16",
        "The final split was opened once",
        "Looks at the sealed splits: gate 0, final 0",
    ):
        assert said in text


def test_a_forks_final_split_is_no_first_look(run_dir: Path) -> None:
    report = read_json(run_dir / "report.json")
    report["final"]["looks_before"] = 3
    write_json(run_dir / "report.json", report)
    text = read(run_dir).text
    again = "opened again (its family had looked 3 times when this fork began)"
    assert text.count(again) == 2 and "opened once" not in text
    record = read_json(run_dir / "run.json") | {"forked_from": {"run": "mother", "step": 3}}
    card = model_card(record, RunStore(run_dir), GOOD, report["final"], False, "float32")
    assert (
        f"The final split was {again}, when the run had ended." in card and "a fork of run `mother` at step 3" in card
    )


def test_each_candidate_has_its_verdict_and_why(run_dir: Path) -> None:
    text = read(run_dir).text
    good, bad = text.split("1. " + GOOD)[1].split("2. " + BAD)
    for said in (
        ": accepted It fixed 76 and broke 3 of n=400 gate items (of 400): p is at most the level of this look",
        "p-value 1e-09",
        "level (alpha) of this candidate 0.0075",
        "alpha left after it 0.04 of 0.05",
        "looks for this verdict 1",
        "search score of the champion before 0.0 % [10.0, 40.0] n=128",
        "search score of the candidate 22.0 % [10.0, 40.0] n=128",
        "compared with base",
        "trained from base",
        f"datasets {TRAIN}",
        "settings method lora, learning_rate 0.001, epochs 1, seed 0",
    ):
        assert said in good
    assert ": rejected" in bad and f"trained from {GOOD}" in bad


def test_a_live_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=None)
    write_finished_job(run, "one", "tools.optimize.sft_worker:train", 1200, 3.5)
    write_finished_job(run, "two", "tools.optimize.sft_worker:train", 34, 1.0)
    write_clock(run, 60.0, {"training": 4.5})
    with held(run / "run.lock"):
        text = read(run).text
    assert ": running" in text and "Still running" in text
    assert "Final result: not opened yet." in text and "base 0.0 % [10.0, 40.0] n=128" in text
    assert "training 4.5 " in text and " 2 1,234 " in text, "clock and jobs stand in for the report"
    assert "overhead and peak memory are known at the end" in text


@pytest.mark.parametrize("torn", ["", '{"kind": "decided", "st'])
def test_a_killed_run(tmp_path: Path, torn: str) -> None:
    run = make_run(tmp_path, ended=None)
    RunStore(run).put("models", "wait" * 4, read_json(run / "models" / BAD / "model.json") | {"id": "wait" * 4})
    Trace(run).emit("run_resumed", config={}, identity={})
    with (run / "events.jsonl").open("a") as file:
        file.write(torn)
    text = read(run).text
    assert "Killed : no ending was written" in text and f"run_agent.py resume {run.name}" in text
    assert "Final result: not opened yet." in text and "was not opened" in text and "resumes: 1" in text
    assert "not judged The referee has not judged it." in text


def test_the_time_of_a_run_without_a_clock_is_not_called_idle(tmp_path: Path) -> None:
    trace = Trace(make_run(tmp_path, ended=None))
    trace.clock = lambda: 20.0
    trace.emit("run_resumed", config={}, identity={})
    text = read(trace.path.parent).text
    assert f"{UNTOLD} 20.0 100.0 %" in text and f"{REST} 0.0 0.0 %" in text


def test_a_run_in_which_nothing_was_measured(run_dir: Path, tmp_path: Path) -> None:
    empty = tmp_path / "runs" / "20260303-030303"
    write_json(empty / "run.json", read_json(run_dir / "run.json") | {"run": empty.name})
    read_page = read(empty)
    for said in (
        "Killed",
        "base not measured",
        "Nothing was measured yet.",
        "No candidate was trained yet.",
        "This run has no records of guards.",
        "Looks at the sealed splits: gate 0, final 0",
        "No training set was frozen yet.",
        "Not measured yet.",
        "Nothing was decided yet.",
        "0.0 s of wall time, 0 tokens",
    ):
        assert said in read_page.text
    assert not read_page.find("polyline")


# --- the parts


def test_the_curve_tells_accepted_from_rejected_without_colour(run_dir: Path) -> None:
    shown = read(run_dir)
    [line] = shown.find("polyline")
    assert len(line["points"].split()) == 2, "the line joins the base and the accepted candidate"
    marks = [attributes for name, attributes in shown.tags if name in ("circle", "path")]
    assert [mark["class"] for mark in shown.find("circle")] == ["full good"] * 2, "one mark and one in the key"
    assert len({mark["d"] for mark in marks if mark.get("class") == "hollow bad"}) == 1
    assert shown.find("svg", role="img", aria_labelledby="curve-title curve-text")
    assert shown.find("title", id="curve-title") and shown.find("desc", id="curve-text")
    for said in ("wall time, seconds", "right answers on the search split", "The same as a table", "rejected"):
        assert said in shown.text
    assert shown.text.count("candidate 1, accepted") == 3, "in the description, at the point and in the table"
    assert "candidate 1, accepted at 0.0 seconds: 22.0 % [10.0, 40.0] n=128" in shown.text


def test_places_in_the_curve_follow_the_scores(run_dir: Path) -> None:
    shown = read(run_dir)
    places = [tag["transform"] for tag in shown.find("g") if "transform" in tag]
    heights = [float(place.removeprefix("translate(").removesuffix(")").split()[1]) for place in places]
    base, few_shot, good, bad, final = heights
    assert base > few_shot > bad > good > final, "a higher score stands higher: 0, 5, 20, 22, 25 %"


@pytest.mark.parametrize("most", [1e-9, 0.4, 1.0, 9.5, 10.0, 41.0, 100.0, 7200.0])
def test_ticks_reach_from_zero_to_what_is_shown(most: float) -> None:
    ticks = _ticks(most)
    assert ticks[0] == 0 and ticks[-1] >= most * (1 - 1e-9) and 2 <= len(ticks) <= 6
    assert most < 1e-3 or ticks[-2] < most


def test_guards_are_shown_when_there_are_any(run_dir: Path) -> None:
    path = run_dir / "referee" / "verdicts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = {"name": "other skills", "value": 0.41, "limit": 0.35, "ok": True, "n": 120, "why": "within its bound"}
    fell = {"name": "diversity", "value": None, "limit": 0.5, "ok": False, "n": 77, "why": "<b>fewer</b> answers"}
    path.unlink()
    append_jsonl(path, [rows[0], rows[1] | {"guards": [kept, fell]}])
    text = read(run_dir).text
    assert "2 other skills yes 0.41 0.35 120 within its bound 2 diversity NO – 0.5 77 <b>fewer</b> answers" in text  # noqa: RUF001
    assert "guards failed: diversity" in text and "no records of guards" not in text


def test_costs_are_those_of_the_report(run_dir: Path) -> None:
    write_finished_job(run_dir, "one", "tools.acquire.generate_data:sample_items", 5000, 90.0)
    time_s = {"generation": 90.4, "bookkeeping and idle": 29.6}
    costs = {"wall_s": 120.0, "tokens": 98765, "overhead_share": 0.2467, "time_s": time_s, "peak_rss_gib": 5.09}
    write_json(run_dir / "report.json", read_json(run_dir / "report.json") | costs)
    shown = read(run_dir)
    assert "generation 90.4 75.3 % 1 5,000 bookkeeping and idle 29.6 24.7 % – –" in shown.text  # noqa: RUF001
    assert "120.0 s of wall time, 98,765 tokens" in shown.text and "overhead 24.7 %" in shown.text
    assert "peak memory 5.09 GiB" in shown.text
    assert [bar["width"] for bar in shown.find("rect", height="1") if "y" not in bar] == ["75.3", "24.7"]


def test_datasets_with_rejections_sources_and_quarantine(run_dir: Path) -> None:
    first, second = read(run_dir).text.split(f"training set {TRAIN}")[1].split("training set ")
    assert ": 1 examples quarantine in use settings rejected, by reason semantic_duplicate 1" in first
    assert f"examples by source 1 from {SAMPLES}" in first
    assert "quarantine quarantined settings rejected, by reason evaluation_overlap 1" in second
    assert f"{SAMPLES} base few-shot 0.7" in second


def test_diagnosis_of_base_and_champion(run_dir: Path) -> None:
    groups = [{"difficulty": "1 digit", "score": 0.1, "n": 150}, {"difficulty": "2 digits", "score": 0.02, "n": 250}]
    weak = {"by_difficulty": groups, "weakest": groups[1], "errors": {"wrong": 300, "never stopped": 80}}
    strong = weak | {"by_difficulty": [groups[0] | {"score": 0.9}], "errors": {"malformed": 7}}
    final = read_json(run_dir / "report.json")["final"]
    final["base_zero_shot"]["diagnosis"], final["champion"]["diagnosis"] = weak, strong
    write_json(run_dir / "referee" / "final.json", final)
    text = read(run_dir).text
    assert "difficulty base, zero-shot champion 1 digit 10.0 % [6.2, 15.8] n=150 90.0 % [84.2, 93.8] n=150" in text
    assert "2 digits 2.0 % [0.9, 4.6] n=250 not measured" in text
    assert "malformed 0 7 never stopped 80 0 wrong 300 0" in text
    assert "No diagnosis was recorded of: base, few-shot." in text


def test_decisions_with_reasons_refusals_and_repeats(run_dir: Path) -> None:
    trace = Trace(run_dir)
    action = {"tool": "curate_data", "args": {"size": 1024}}
    decided: dict[str, Any] = {"decided_by": "fallback", "logprob": None, "reasoning": "", "alternatives": []}
    trace.emit("decided", step=2, action=action, usage={"tokens": 730}, problems=["no such tool"], **decided)
    trace.emit("decided", step=2, action=action, usage={"tokens": 731}, problems=[], **decided)
    trace.emit("tool_failed", step=2, **action, error="only 3 examples pass", usage=USAGE)
    one, two, again = (part.split("Step ")[0] for part in read(run_dir).text.split(" s: ")[1:4])
    for said in (
        "evaluate_model(target=candidate) model decides, probability 82 % of the tool alone;",
        "instead of: finish_run (18 %)",
        "invalid before: tool 'dance' is not legal now",
        "why not why not",
        "Result: accepted True, gain +22.0 points (n=128), model " + GOOD + ", search 22.0 % [15.0, 30.0] n=128",
        "Verdict: ACCEPTED: 76 fixed, 3 broken of n=400 gate items",
        "cost: 12.5 s wall, 20.0 s cpu, 4200 tokens",
        "What the planner saw",
        "Legal: evaluate_model, finish_run",
    ):
        assert said in one
    assert "fallback decides; 730 tokens of planning invalid before: no such tool No result was written." in two
    assert "731 tokens" in again and "Refused: only 3 examples pass" in again


def test_the_situation_is_shown_in_the_planners_words(run_dir: Path) -> None:
    score = {"score": 0.07, "ci95": [0.0374, 0.1282], "n": 128}
    situation = {
        "champion": "base", "score": score, "few_shot_score": None, "weakest": None, "errors": None, "verdicts": [],
        "unused_right_answers": 178, "waiting_dataset": None, "waiting_candidate": False, "last_sampling": None,
        "last_change": None, "tokens_per_point": None, "error_example": None,
        "budget_left_percent": 93, "last_action": None, "lessons": ["keep it short"],
    }  # fmt: skip
    trace = Trace(run_dir)
    trace.emit("observed", step=3, situation=situation, menu=["curate_data"])
    action = {"tool": "curate_data", "args": {}}
    rest: dict[str, Any] = {"reasoning": "", "logprob": None, "alternatives": [], "usage": {}}
    trace.emit("decided", step=3, action=action, decided_by="rules", **rest)
    text = read(run_dir).text
    assert "- score of the champion: 7 % right (n=128)" in text and "- lesson: keep it short" in text
    assert "- unused_right_answers: 7" in text, "an older situation is shown as it was recorded"


# --- trust


def test_hostile_text_is_text(run_dir: Path) -> None:
    record = read_json(run_dir / "run.json")
    record["config"] |= {"task": HOSTILE, "model": HOSTILE, "planner": HOSTILE}
    write_json(run_dir / "run.json", record)
    path = run_dir / "models" / GOOD / "model.json"
    write_json(path, read_json(path) | {"settings": {HOSTILE: HOSTILE}, "datasets": ['x" onclick="alert(3)']})
    trace = Trace(run_dir)
    action = {"tool": HOSTILE, "args": {HOSTILE: HOSTILE}}
    rest: dict[str, Any] = {"logprob": None, "usage": {}, "problems": [HOSTILE]}
    others = [{"tool": HOSTILE, "logprob": None}]
    trace.emit("observed", step=3, situation={"champion": HOSTILE, "budget_left_percent": 1}, menu=[HOSTILE])
    trace.emit("decided", step=3, action=action, decided_by="model", reasoning=HOSTILE, alternatives=others, **rest)
    trace.emit("tool_finished", step=3, **action, result={HOSTILE: HOSTILE}, usage=USAGE)
    trace.emit("tool_failed", step=3, **action, error=HOSTILE, usage=USAGE)
    shown = read(run_dir)
    assert not {"script", "img", "iframe", "form", "base"} & {name for name, _ in shown.tags}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert shown.text.count("<script>alert(1)</script>") >= 10
    assert "\x1b" not in shown.html


def test_the_page_needs_nothing_but_itself(run_dir: Path) -> None:
    shown = read(run_dir)
    html = shown.html.lower()
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    assert not [name for name, attributes in shown.tags if {"src", "srcset", "xlink:href", "action"} & set(attributes)]
    assert not {"link", "script", "img", "iframe", "object"} & {name for name, _ in shown.tags}
    links = [attributes["href"] for _, attributes in shown.tags if "href" in attributes]
    targets = {"#" + attributes["id"] for _, attributes in shown.tags if "id" in attributes}
    assert links and set(links) <= targets, "a link leads to a place on the page"
    [policy] = shown.find("meta", http_equiv="Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert "@media (prefers-color-scheme: dark)" in html and shown.find("meta", name="viewport")


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("jsonl:/a b/c/d.jsonl?scorer=python:/a/s.py&x=/y/z", "jsonl:d.jsonl?scorer=python:s.py&x=z"),
        ("/models/tiny", "tiny"),
        ("scripted:/a/plan.jsonl", "scripted:plan.jsonl"),
        ("org/name", "org/name"),
        ("chat:openai:http://127.0.0.1:8000/v1", "chat:openai:http://127.0.0.1:8000/v1"),
    ],
)
def test_pages_name_files_without_their_folders(spec: str, shown: str) -> None:
    assert environment([]).filters["named"](spec) == shown
