"""`trace show` with filters, `search`, `diff` and `export`, through the command line, on small traces written here."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.budget import Budget
from agent.decision_text import among_texts, chances, percent, sureness_text
from agent.situation import build_situation
from agent.trace import Trace
from agent.trace_search import search
from agent.trace_select import KINDS, Filter, parse_since, select_events, steps
from agent.trace_view import cost_text
from memory.records import read_jsonl, write_json
from memory.store import RunStore
from run_agent import main
from tests.test_views import make_run

Json = dict[str, Any]
REPO = Path(__file__).resolve().parents[1]
USAGE = {"wall_s": 2.0, "cpu_s": 3.0, "tokens": 40}
LEGAL: list[Json] = [
    {"tool": "generate_data", "arguments": {"num_items": [256, 512], "temperature": [0.7]}, "outcome": "1 of 1 kept"},
    {"tool": "note_lesson", "arguments": {}, "outcome": ""},
]
GENERATE, NOTE = {"tool": "generate_data", "args": {"num_items": 512}}, {"tool": "note_lesson", "args": {}}


def begin(runs_dir: Path, name: str, **config: Any) -> Trace:
    settings = {"task": "sums", "model": "small", "planner": "self", "seed": 0} | config
    write_json(runs_dir / name / "run.json", {"format": 1, "created": "2026-01-02", "config": settings})
    trace = Trace(runs_dir / name)
    trace.emit("run_started", config=settings, identity={})
    return trace


def step(
    trace: Trace,
    number: int,
    action: Json = GENERATE,
    result: Json | None = None,
    error: str | None = None,
    budget: int = 90,
    **decided: Any,
) -> None:
    """Write a step; neither result nor error = killed while the tool worked."""
    situation = {"champion": "base", "score": None, "budget_left_percent": budget, "unused_right_answers": 7}
    trace.emit("observed", step=number, situation=situation, menu=LEGAL)
    other = "note_lesson" if action is GENERATE else "generate_data"
    rest: Json = {"decided_by": "model", "logprob": -0.25, "alternatives": [{"tool": other, "logprob": -1.5}]}
    rest |= {"reasoning": "Samples are needed.", "problems": [], "usage": {"tokens": 700, "cost_usd": 0.0}}
    trace.emit("decided", step=number, action=action, **rest | decided)
    trace.emit("tool_started", step=number, **action, job="1")
    if error is not None:
        trace.emit("tool_failed", step=number, **action, error=error, usage=USAGE)
    elif result is not None:
        trace.emit("tool_finished", step=number, **action, job="1", result=result, usage=USAGE)


def stop(trace: Trace) -> None:
    trace.emit("run_stopped", reason="plateau", sentence="no more gain", error=None)


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """A finished run `one` of four steps: plain, refused, a verdict after an invalid answer, plain."""
    trace = begin(tmp_path / "runs", "one")
    step(trace, 1, result={"dataset": "d1", "num_right": 3, "train_s": 1.5})
    step(trace, 2, NOTE, error="there is nothing to note; sample first")
    step(trace, 3, result={"model": "m1", "accepted": False}, problems=["tool 'dance' is not legal now"])
    trace.emit("judged", step=3, accepted=False, candidate="m1", num_fixed=2, num_broken=3, num_items=90, gate_items=90,
               looks=[{}], p_value=0.5, level=0.05, alpha_left=0.04, guards=[])  # fmt: skip
    step(trace, 4, result={"dataset": "d4", "note": 'Größe\nwie "gesagt"'})
    stop(trace)
    return tmp_path / "runs"


class Cli:
    """Runs `trace` commands on the runs of a test."""

    def __init__(self, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.runs_dir, self.capsys = runs_dir, capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = main(["trace", *argv, "--runs-dir", str(self.runs_dir)])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def json(self, *argv: str) -> Any:
        code, out, err = self(*argv, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def cli(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(runs_dir, capsys)


def rows_of(lines: str) -> list[Json]:
    return [json.loads(line) for line in lines.splitlines()]


def steps_and_kinds(events: list[Json]) -> set[tuple[int | None, str]]:
    return {(event["step"], event["kind"]) for event in events}


# --- show and tail


def test_the_whole_trace_is_all_events(cli: Cli) -> None:
    assert [event["seq"] for event in cli.json("show")] == list(range(1, 20))


def test_tool_and_failed_choose_whole_steps(cli: Cli) -> None:
    assert {event["step"] for event in cli.json("show", "--tool", "note_lesson")} == {2}
    assert {event["step"] for event in cli.json("show", "--tool", "generate_data")} == {1, 3, 4, None}
    assert {event["step"] for event in cli.json("show", "--failed")} == {2, 3}
    text = cli("show", "--failed")[1]
    assert "refused: there is nothing to note" in text and "invalid before: tool 'dance'" in text
    assert "sees: champion base" in text and "step 4" not in text and "end (" not in text


def test_kind_and_since_choose_events(cli: Cli, runs_dir: Path) -> None:
    kinds = steps_and_kinds(cli.json("show", "--kind", "judged", "--kind", "tool_failed"))
    assert kinds == {(2, "tool_failed"), (3, "judged")}
    assert steps_and_kinds(cli.json("show", "--step", "3", "--kind", "judged")) == {(3, "judged")}
    assert "starts: generate_data(num_items=512)" in cli("show", "--kind", "tool_started")[1]
    assert len(cli.json("show", "--since", "1h")) == 19
    assert cli.json("show", "--since", "2999-01-01T00:00") == []
    assert cli("show", "--since", "2999-01-01")[1] == "nothing in run one matches\n"
    lines = cli("tail", "--kind", "decided")[1].splitlines()
    assert len(lines) == 4 and all("model decides" in line for line in lines)
    assert cli("tail", "--since", "2999-01-01")[1] == ""


def test_one_step_is_told_with_all_that_the_planner_was_shown(cli: Cli) -> None:
    text = cli("show", "--step", "1")[1]
    legal = "generate_data(num_items 256|512; temperature 0.7), so far: 1 of 1 kept"
    for part in ("budget_left_percent: 90", f"{legal}\n├─       note_lesson\n", "cost of deciding: 700 tokens"):
        assert part in text
    assert "score" not in text, "what is not known is left out"
    assert "budget_left_percent" not in cli("show")[1]


def test_a_situation_is_told_in_the_words_that_the_planner_read(runs_dir: Path, cli: Cli, tmp_path: Path) -> None:
    situation = build_situation(RunStore(tmp_path / "empty"), Budget(None, 1000), None, [])
    begin(runs_dir, "words").emit("observed", step=1, situation=situation, menu=["generate_data", "note_lesson"])
    text = cli("show", "words", "--step", "1")[1]
    assert "- tokens per point gained: no gain yet\n" in text and "None" not in text
    assert "generate_data\n" in text, "runs of earlier versions recorded the names of the tools alone"


def test_a_probability_says_what_it_covers(runs_dir: Path, cli: Cli) -> None:
    assert "generate_data(num_items=512), probability 78 % of the tool alone" in cli("show", "--step", "1")[1]
    step(begin(runs_dir, "sure"), 1, result={}, argument_logprobs={"num_items": -0.51})
    text = cli("show", "sure", "--step", "1")[1]
    assert "generate_data(num_items=512), probability 47 % (tool 78 %, num_items 60 %)" in text
    assert "instead of: note_lesson (22 %)" in text and "it wrote before choosing: Samples are needed." in text


def test_every_value_that_was_legal_is_told_with_its_probability() -> None:
    action = {"tool": "train", "args": {"rate": 0.1, "method": "lora"}}
    decided: Json = {
        "action": action,
        "logprob": 0.0,
        "alternatives": [],
        "argument_logprobs": {"rate": -0.5, "method": 0.0},
    }
    assert sureness_text(decided) == "probability 61 % (rate 61 %, method 100 %; tool: only one was legal)"
    assert among_texts(decided) == [], "an event of an earlier version does not name the other values"
    told = decided | {"probabilities": chances(decided, {"rate": [0.1, 0.2, 0.4], "method": ["lora"]})}
    assert among_texts(told) == ["rate: 0.1 (61 %), one of 0.2, 0.4 (39 % together)"]
    assert chances(told) == chances(told, {}) == told["probabilities"]
    unsure = {"action": action, "logprob": None, "alternatives": [{"tool": "finish_run", "logprob": None}]}
    assert (sureness_text(unsure), among_texts(unsure)) == ("", ["instead of: finish_run"])
    assert [percent(share) for share in (0, 0.004, 0.01, 0.9951, 1)] == ["0 %", "0.4 %", "1 %", "99.51 %", "100 %"]


def test_what_happened_to_the_run_is_told(runs_dir: Path, cli: Cli) -> None:
    trace = begin(runs_dir, "troubled")
    trace.emit("judge_checked", note="the judge agrees with 9 of 10")
    step(trace, 1, result={})
    trace.emit("retried", function="tools.x:train", why="its worker died")
    trace.emit("mended", files=["data/d1"])
    trace.emit("changes_accepted", changes=["code: a.py"], revision=None)
    step(trace, 2, result={})
    stop(trace)
    text = cli("show", "troubled")[1]
    told = (
        "judge checked: the judge agrees",
        "tried again: train: its worker died",
        "made again: data/d1",
        "code: a.py",
    )
    assert all(part in text for part in told) and "started: task" not in text
    failed = cli("show", "troubled", "--failed")[1]
    assert all(part in failed for part in told[1:3]) and "step 1" in failed and "step 2" not in failed
    lines = cli("tail", "troubled", "--failed")[1].splitlines()
    assert [line.split("run", 1)[1].split()[0] for line in lines] == ["tried", "damaged,"]


def test_tail_chooses_events_by_step_and_tool(cli: Cli) -> None:
    assert steps_and_kinds(rows_of(cli("tail", "--tool", "note_lesson", "--json")[1])) == {
        (2, "decided"), (2, "tool_started"), (2, "tool_failed"),
    }  # fmt: skip
    assert {event["step"] for event in rows_of(cli("tail", "--step", "3", "--json")[1])} == {3}


def test_a_cost_names_money_and_gpus_where_there_are_any() -> None:
    assert cost_text(USAGE | {"gpu_seconds": 0.0, "usd": 0.0, "gib": 0.0}) == "cost: 2.0 s wall, 3.0 s cpu, 40 tokens"
    told = cost_text(USAGE | {"gpu_seconds": 1.5, "usd": 0.002})
    assert told == "cost: 2.0 s wall, 3.0 s cpu, 40 tokens, 1.5 s gpu, 0.0020 USD"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "--step", "9"], "has no step 9; it has steps 1 to 4"),
        (["show", "--step", "0"], "has no step 0; it has steps 1 to 4"),
        (["show", "--tool", "generat_data"], "did you mean 'generate_data'?"),
        (["show", "--kind", "decide"], "invalid choice: 'decide'"),
        (["show", "--since", "soon"], "give 90s, 10m, 2h, 1d or a time"),
        (["show", "--since", "99999999999d"], "before the year 1 or after 9999"),
        (["tail", "--since", "0001-01-01T00:00+14:00"], "before the year 1 or after 9999"),
        (["search", "one", " "], "the text to search for is empty"),
        (["diff", "one", "tow"], "there is no run 'tow'"),
        (["export", "one", "--out", "."], "is a folder"),
    ],
)
def test_bad_input_exits_with_2(cli: Cli, argv: list[str], said: str) -> None:
    code, _, err = cli(*argv)
    assert code == 2 and said in err


def test_since_is_written_as_events_write_their_time() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
    assert parse_since("90s", now) == "2026-01-02T03:02:35.678+00:00"
    assert parse_since("2d", now) == "2025-12-31T03:04:05.678+00:00"
    assert parse_since("2026-01-02T03:04") == parse_since("2026-01-02T05:04+02:00") == "2026-01-02T03:04:00.000+00:00"


def test_every_kind_of_event_can_be_chosen() -> None:
    text = "".join(path.read_text() for path in (REPO / "agent").glob("*.py"))
    emitted = set(re.findall(r'\.emit\(\s*"(\w+)"', text)) | set(re.findall(r'\.emit\("\w+" if \w+ else "(\w+)"', text))
    assert {"observed", "run_started"} <= emitted <= set(KINDS)


def test_a_killed_run_is_read_and_a_torn_line_left_out(runs_dir: Path, cli: Cli) -> None:
    trace = begin(runs_dir, "killed")
    step(trace, 1)
    with trace.path.open("a") as file:
        file.write('{"kind": "tool_fin')
    assert {event["step"] for event in cli.json("show", "killed", "--tool", "generate_data")} == {1}
    assert cli.json("search", "killed", "samples")["events"][0]["field"] == "reasoning"
    found = cli.json("diff", "one", "killed")
    assert (found["parted"]["step"], found["parted"]["how"]) == (1, "no result in B")
    assert [row["how"] for row in found["rows"]] == ["no result in B", "only in A", "only in A", "only in A"]


def test_steps_keep_a_resumed_run_in_order(tmp_path: Path) -> None:
    trace = begin(tmp_path, "run")
    step(trace, 1)
    trace.emit("run_resumed", config={}, identity={})
    step(trace, 1, result={"n": 1})
    step(trace, 2, result={"n": 2})
    stop(trace)
    blocks = list(steps(read_jsonl(trace.path)))
    assert [number for number, _ in blocks] == [0, 1, 2]
    assert [event["kind"] for event in blocks[1][1]].count("observed") == 2
    kinds = [[event["kind"] for event in select_events(tmp_path / "run", Filter(step=number))] for number in (1, 2)]
    assert "run_resumed" in kinds[0] and "run_resumed" not in kinds[1], (
        "a stop and a resume belong to the step they cut"
    )


# --- search


def test_search_names_the_place_and_cuts_a_snippet(cli: Cli) -> None:
    (place,) = cli.json("search", "one", "NOTHING TO note")["events"]
    assert place == {
        "seq": 9,
        "step": 2,
        "kind": "tool_failed",
        "field": "error",
        "snippet": "error: there is nothing to note; sample first",
    }
    text = cli("search", "one", "Dance")[1]
    assert "step 3" in text and "decided" in text and "problems[0]" in text
    assert cli("search", "one", "no such words")[1] == "no event and no row of data holds this text\n"


def test_search_finds_names_numbers_and_text_over_line_ends(cli: Cli) -> None:
    assert {place["field"] for place in cli.json("search", "one", "num_items: 512")["events"]} >= {
        "action.args.num_items",
        "args.num_items",
    }
    (place,) = cli.json("search", "one", 'wie "gesagt"')["events"]
    assert place["step"] == 4 and place["snippet"] == 'note: Größe wie "gesagt"'
    assert {place["step"] for place in cli.json("search", "one", "sums")["events"]} == {None}


def test_a_long_text_is_cut_around_what_was_found() -> None:
    event = {"seq": 1, "step": 1, "kind": "decided", "reasoning": "a" * 500 + " needle " + "b" * 500}
    (place,) = search([event], "needle")
    assert " needle " in place["snippet"] and len(place["snippet"]) < 150
    assert place["snippet"].startswith("...") and place["snippet"].endswith("...")


def test_search_finds_the_rows_of_data_and_says_how_to_follow_them(runs_dir: Path, cli: Cli) -> None:
    rows = [{"id": f"r{number}", "prompt": f"What is {number} + 1?", "completion": "Seven"} for number in range(30)]
    samples = [
        {"example_id": "e1", "prompt": "What is 3 + 4?", "completion": text} for text in ("seven", "Seven!", "8")
    ]
    RunStore(runs_dir / "one").put("data", "d7", {"kind": "train"}, {"train.jsonl": rows, "samples.jsonl": samples})
    found = cli.json("search", "one", "29 + 1? -> SEVEN")
    place = {"id": "r29", "dataset": "d7", "file": "train.jsonl", "snippet": "What is 29 + 1? -> Seven"}
    assert found == {"events": [], "rows": [place], "num_more_rows": 0}
    assert [row["id"] for row in cli.json("search", "one", "3 + 4?")["rows"]] == ["e1"], (
        "answers given twice are told once"
    )
    text = cli("search", "one", "seven")[1]
    assert "row       r0 of dataset d7 (train.jsonl)" in text and "and 11 more rows; a longer text finds fewer" in text
    assert "`run_agent.py follow one r0`" in text
    (runs_dir / "one" / "data" / "d7" / "train.jsonl").write_text("")
    code, _, err = cli("search", "one", "seven")
    assert code == 2 and "restore it from a copy" in err


# --- export


def test_export_writes_the_whole_events(runs_dir: Path, cli: Cli, tmp_path: Path) -> None:
    with (runs_dir / "one" / "events.jsonl").open("a") as file:
        file.write('{"torn')
    said = cli.json("export", "one", "--out", str(tmp_path / "copy.jsonl"))
    assert said == {"run": "one", "path": str(tmp_path / "copy.jsonl")}
    assert [event["seq"] for event in read_jsonl(tmp_path / "copy.jsonl")] == list(range(1, 20))
    assert not (tmp_path / "copy.jsonl").read_text().endswith("torn")
    code, _, err = cli("export", "one", "--out", str(runs_dir / "one" / "events.jsonl"))
    assert code == 2 and "is the trace itself" in err


def test_export_writes_the_page_of_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    said = Cli(tmp_path, capsys).json("export", run.name, "--to", "html", "--out", str(tmp_path / "page.html"))
    assert said["path"] == str(tmp_path / "page.html") and "<html" in (tmp_path / "page.html").read_text()


def spans_in(path: Path) -> list[Json]:
    return [span for row in read_jsonl(path) for span in row["resourceSpans"][0]["scopeSpans"][0]["spans"]]


def attributes(span: Json) -> Json:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in span["attributes"]}


def test_export_writes_a_tree_of_spans(cli: Cli, tmp_path: Path) -> None:
    cli.json("export", "one", "--to", "openinference", "--out", str(tmp_path / "spans.jsonl"))
    spans = spans_in(tmp_path / "spans.jsonl")
    by_id = {span["spanId"]: span for span in spans}
    assert len(by_id) == len(spans) == 1 + 4 * 3 + 1  # the run; a step, a decision and a call four times; a verdict
    (root,) = [span for span in spans if not span["parentSpanId"]]
    assert attributes(root)["openinference.span.kind"] == "AGENT"
    assert all(span is root or span["parentSpanId"] in by_id for span in spans)
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)
    (refused,) = [span for span in spans if span["status"]["code"] == 2]
    assert refused["name"] == "note_lesson" and "sample first" in refused["status"]["message"]
    decision = attributes(next(span for span in spans if span["name"] == "decide"))
    assert decision["openinference.span.kind"] == "LLM" and decision["llm.token_count.total"] == "700"
    assert json.loads(decision["input.value"])["budget_left_percent"] == 90


def test_the_spans_are_what_opentelemetry_reads(cli: Cli, tmp_path: Path) -> None:
    json_format = pytest.importorskip("google.protobuf.json_format")
    trace_pb2 = pytest.importorskip("opentelemetry.proto.trace.v1.trace_pb2")
    cli.json("export", "one", "--to", "openinference", "--out", str(tmp_path / "spans.jsonl"))
    rows = [json_format.ParseDict(row, trace_pb2.TracesData()) for row in read_jsonl(tmp_path / "spans.jsonl")]
    assert sum(len(row.resource_spans[0].scope_spans[0].spans) for row in rows) == 14


def test_a_last_step_without_a_decision_says_why(runs_dir: Path, cli: Cli) -> None:
    trace = begin(runs_dir, "dry")
    step(trace, 1, result={"dataset": "d1"})
    trace.emit("observed", step=2, situation={"champion": "base", "score": None, "budget_left_percent": 1,
               "unused_right_answers": 7}, menu=[])  # fmt: skip
    assert "no decision" not in cli("show", "dry")[1]
    stop(trace)
    write_json(runs_dir / "dry" / "report.json", {"stop_reason": "plateau", "stop_sentence": "no more gain"})
    for argv in (["show", "dry"], ["show", "dry", "--step", "2"]):
        assert cli(*argv)[1].count("no decision: no more gain") == 1
    assert "no decision" not in cli("show", "dry", "--kind", "observed")[1]
