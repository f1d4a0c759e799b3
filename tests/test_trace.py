"""`trace show` with filters, `search`, `diff` and `export`, through the command line, on small traces written here."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.trace import Trace
from agent.trace_search import search
from agent.trace_select import KINDS, Filter, parse_since, select_events, steps
from memory.records import read_jsonl, write_json
from run_agent import main
from tests.test_views import make_run

Json = dict[str, Any]
REPO = Path(__file__).resolve().parents[1]
USAGE = {"wall_s": 2.0, "cpu_s": 3.0, "tokens": 40}
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
    trace.emit("observed", step=number, situation=situation, menu=["generate_data", "note_lesson"])
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
    for part in ("budget_left_percent: 90", "may choose: generate_data, note_lesson", "cost of deciding: 700 tokens"):
        assert part in text
    assert "budget_left_percent" not in cli("show")[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "--step", "9"], "has no step 9; it has steps 1 to 4"),
        (["show", "--step", "0"], "has no step 0; it has steps 1 to 4"),
        (["show", "--tool", "generat_data"], "did you mean 'generate_data'?"),
        (["show", "--kind", "decide"], "invalid choice: 'decide'"),
        (["show", "--since", "soon"], "give 90s, 10m, 2h, 1d or a time"),
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
    emitted = set(re.findall(r'\.emit\("(\w+)"', text)) | set(re.findall(r'\.emit\("\w+" if \w+ else "(\w+)"', text))
    assert {"observed", "run_started"} <= emitted <= set(KINDS)


def test_a_killed_run_is_read_and_a_torn_line_left_out(runs_dir: Path, cli: Cli) -> None:
    trace = begin(runs_dir, "killed")
    step(trace, 1)
    with trace.path.open("a") as file:
        file.write('{"kind": "tool_fin')
    assert {event["step"] for event in cli.json("show", "killed", "--tool", "generate_data")} == {1}
    assert cli.json("search", "killed", "samples")[0]["field"] == "reasoning"
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
    assert "run_resumed" not in {event["kind"] for event in select_events(tmp_path / "run", Filter(step=1))}


# --- search


def test_search_names_the_place_and_cuts_a_snippet(cli: Cli) -> None:
    (place,) = cli.json("search", "one", "NOTHING TO note")
    assert place == {
        "seq": 9,
        "step": 2,
        "kind": "tool_failed",
        "field": "error",
        "snippet": "error: there is nothing to note; sample first",
    }
    text = cli("search", "one", "Dance")[1]
    assert "step 3" in text and "decided" in text and "problems[0]" in text
    assert cli("search", "one", "no such words")[1] == "no event holds this text\n"


def test_search_finds_names_numbers_and_text_over_line_ends(cli: Cli) -> None:
    assert {place["field"] for place in cli.json("search", "one", "num_items: 512")} >= {
        "action.args.num_items",
        "args.num_items",
    }
    (place,) = cli.json("search", "one", 'wie "gesagt"')
    assert place["step"] == 4 and place["snippet"] == 'note: Größe wie "gesagt"'
    assert {place["step"] for place in cli.json("search", "one", "sums")} == {None}


def test_a_long_text_is_cut_around_what_was_found() -> None:
    event = {"seq": 1, "step": 1, "kind": "decided", "reasoning": "a" * 500 + " needle " + "b" * 500}
    (place,) = search([event], "needle")
    assert " needle " in place["snippet"] and len(place["snippet"]) < 150
    assert place["snippet"].startswith("...") and place["snippet"].endswith("...")


# --- diff


def two_runs(runs_dir: Path, *, seed: int = 0, budget: int = 90, action: Json = GENERATE, num_right: int = 3) -> None:
    """Write `a` and `b`, alike in step 1; step 2 of `b` is as told here."""
    for name in ("a", "b"):
        ours = name == "a"
        trace = begin(runs_dir, name, seed=0 if ours else seed)
        step(trace, 1, result={"dataset": "d1", "train_s": 1.0 if ours else 2.0})
        chosen, shown, right = (GENERATE, 90, 3) if ours else (action, budget, num_right)
        logprob = -0.25 if ours else -0.75
        step(trace, 2, chosen, result={"dataset": "d2", "num_right": right}, budget=shown, logprob=logprob)
        stop(trace)


def test_runs_that_differ_in_time_alone_do_not_part(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    found = cli.json("diff", "a", "b")
    assert found["parted"] is None and found["counts"] == {"same": 2} and found["settings"] == []
    assert "the runs do not part: 2 steps are the same" in cli("diff", "a", "b")[1]


def test_runs_part_by_a_decision_on_the_same_situation(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, action=NOTE, seed=1)
    found = cli.json("diff", "a", "b")
    assert found["settings"] == [{"field": "seed", "a": 0, "b": 1}]
    parted = found["parted"]
    assert (parted["step"], parted["how"], parted["situation"]) == (2, "different tool", [])
    assert parted["why"] == "a different decision on the same situation"
    assert found["decided_differently"] == parted
    text = cli("diff", "a", "b")[1]
    assert "A  model decides generate_data(num_items=512) (-0.25), instead of note_lesson (-1.50)" in text
    assert "B  model decides note_lesson() (-0.75), instead of generate_data (-1.50)" in text
    assert re.search(r"^ +1  same$", text, re.M)
    assert re.search(r"^ +2  different tool +generate_data\(num_items=512\) \| note_lesson\(\)$", text, re.M)


def test_runs_part_by_what_the_planner_was_shown(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, action=GENERATE | {"args": {"num_items": 256}}, budget=70)
    parted = cli.json("diff", "a", "b")["parted"]
    assert (parted["how"], parted["why"]) == ("different arguments", "the planner was shown something else")
    assert parted["situation"] == [{"field": "budget_left_percent", "a": 90, "b": 70}]
    assert "budget_left_percent: 90 | 70" in cli("diff", "a", "b")[1]


def test_the_same_decision_on_another_situation_is_a_difference_too(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, budget=70)
    found = cli.json("diff", "a", "b")
    assert found["parted"]["how"] == "different situation" and found["decided_differently"] is None


def test_runs_part_by_a_result_of_the_same_call(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir, num_right=4)
    parted = cli.json("diff", "a", "b")["parted"]
    assert (parted["step"], parted["how"]) == (2, "different result")
    assert parted["outcome"] == [{"field": "result.num_right", "a": 3, "b": 4}]


def test_the_first_different_decision_is_shown_beside_an_earlier_parting(runs_dir: Path, cli: Cli) -> None:
    for name, right, action in (("a", 3, GENERATE), ("b", 4, NOTE)):
        trace = begin(runs_dir, name)
        step(trace, 1, result={"num_right": right})
        step(trace, 2, action, result={})
    text = cli("diff", "a", "b")[1]
    assert "they part at step 1, different result" in text
    assert "the first different decision at step 2, different tool" in text


def test_a_refusal_and_an_end_are_differences(runs_dir: Path, cli: Cli) -> None:
    two_runs(runs_dir)
    trace = begin(runs_dir, "short")
    step(trace, 1, error="no")
    found = cli.json("diff", "a", "short")
    assert [row["how"] for row in found["rows"]] == ["different result", "only in A"]
    assert found["num_steps"] == {"a": 2, "b": 1}
    assert {"field": "refused", "a": "-", "b": "no"} in found["parted"]["outcome"]


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
