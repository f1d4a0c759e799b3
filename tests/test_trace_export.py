"""Where a trace can go: ATIF, an OTLP endpoint, MLflow; and the ids of spans when a person edits a step."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent.trace import Trace
from agent.trace_spans import span_rows
from memory.records import read_json, write_json
from run_agent import main
from tests.test_trace import GENERATE, NOTE, begin, step, stop
from tests.test_views import held, make_run

Json = dict[str, Any]


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """A run of three steps: plain, refused, and one that a person edited and the referee judged."""
    trace = begin(tmp_path / "runs", "one")
    step(trace, 1, result={"dataset": "d1", "num_right": 3})
    step(trace, 2, NOTE, error="there is nothing to note; sample first")
    edit(trace, 3)
    judged: Json = {"accepted": False, "candidate": "m1", "num_items": 90}
    trace.emit("judged", step=3, **judged)
    stop(trace)
    return tmp_path / "runs"


def edit(trace: Trace, number: int) -> None:
    """Write a step in which a person chose another action than the model."""
    rest: Json = {"logprob": None, "alternatives": [], "reasoning": "", "problems": []}
    trace.emit("observed", step=number, situation={"score": None, "budget_left_percent": 50}, menu=["note_lesson"])
    decided = rest | {"decided_by": "model", "usage": {"tokens": 7, "cost_usd": 0.5}}
    trace.emit("decided", step=number, action=GENERATE, **decided)
    trace.emit("answered", step=number, who="person", answer="edit", action=GENERATE, edited=NOTE, reason="cheaper")
    decided = rest | {"decided_by": "human", "usage": {"tokens": 0, "cost_usd": 0}}
    trace.emit("decided", step=number, action=NOTE, **decided)
    trace.emit("tool_started", step=number, **NOTE, job="2")
    trace.emit("tool_finished", step=number, **NOTE, job="2", result={"lesson": "l1"}, usage={"tokens": 5})


def spans_of(run_dir: Path) -> list[Json]:
    return [span for row in span_rows(run_dir) for span in row["resourceSpans"][0]["scopeSpans"][0]["spans"]]


def attributes(span: Json) -> Json:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in span["attributes"]}


def export(runs_dir: Path, *options: str) -> int:
    return main(["trace", "export", "one", "--runs-dir", str(runs_dir), *options])


# --- spans


def test_the_decisions_of_an_edited_step_are_spans_of_their_own(runs_dir: Path) -> None:
    spans = spans_of(runs_dir / "one")
    assert len({span["spanId"] for span in spans}) == len(spans)
    ours, theirs = (span for span in spans[-5:] if span["name"] == "decide")
    assert [attributes(span)["autodidact.decided_by"] for span in (ours, theirs)] == ["model", "human"]
    assert theirs["startTimeUnixNano"] == ours["endTimeUnixNano"]
    assert spans == spans_of(runs_dir / "one"), "the same ids every time"


def test_spans_carry_the_names_of_the_genai_conventions(runs_dir: Path) -> None:
    spans = [attributes(span) for span in spans_of(runs_dir / "one")]
    operations = [span.get("gen_ai.operation.name") for span in spans]
    assert operations.count("execute_tool") == 3 and operations.count("chat") == 3
    assert operations.count("invoke_agent") == 1
    root = next(span for span in spans if span.get("gen_ai.operation.name") == "invoke_agent")
    assert root["gen_ai.conversation.id"] == "one" and root["gen_ai.request.model"] == "small"
    call = next(span for span in spans if span.get("gen_ai.tool.name") == "generate_data")
    assert json.loads(call["gen_ai.tool.call.arguments"]) == {"num_items": 512}
    assert json.loads(call["gen_ai.tool.call.result"])["num_right"] == 3
    verdict = next(span for span in spans if "gen_ai.evaluation.name" in span)
    assert verdict["gen_ai.evaluation.score.label"] == "rejected" and verdict["gen_ai.evaluation.score.value"] == 0.0


# --- OTLP


class Receiver(HTTPServer):
    """Takes what is posted to /v1/traces, as a collector does; answers with `status`."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bodies: list[bytes] = []
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Receiving)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Receiving(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf":
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["x-key"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("options", [(), ("--follow",)])
def test_otlp_sends_the_spans_as_protobuf(
    options: tuple[str, ...], runs_dir: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
    assert export(runs_dir, "--otlp", receiver.url, *options) == 0
    requests = [ExportTraceServiceRequest.FromString(body) for body in receiver.bodies]
    sent = [span for request in requests for span in request.resource_spans[0].scope_spans[0].spans]
    told = spans_of(runs_dir / "one")
    assert [span.span_id.hex() for span in sent] == [span["spanId"] for span in told]
    assert {span.trace_id.hex() for span in sent} == {told[0]["traceId"]}
    assert [span.parent_span_id.hex() for span in sent] == [span["parentSpanId"] for span in told]
    assert [str(span.start_time_unix_nano) for span in sent] == [span["startTimeUnixNano"] for span in told]
    assert [span.status.code for span in sent] == [span["status"]["code"] for span in told]
    assert "note_lesson" in {entry.value.string_value for span in sent for entry in span.attributes}
    assert set(receiver.keys) == {"secret"}
    resource = requests[0].resource_spans[0].resource.attributes
    assert ("service.name", "autodidact") in [(entry.key, entry.value.string_value) for entry in resource]


def test_follow_sends_each_step_of_a_live_run_as_it_ends(runs_dir: Path, receiver: Receiver) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    codes: list[int] = []
    sending = threading.Thread(target=lambda: codes.append(export(runs_dir, "--otlp", receiver.url, "--follow")))
    with held(runs_dir / "one" / "run.lock"):
        sending.start()
        while len(receiver.bodies) < 2:  # steps 1 and 2 have ended, step 3 may go on
            time.sleep(0.05)
        step(Trace(runs_dir / "one"), 4, result={"dataset": "d4"})
    sending.join()
    assert codes == [0] and len(receiver.bodies) == 5, "four steps and the run"


def test_otlp_says_who_does_not_take_the_spans(
    runs_dir: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    receiver.status = 401
    assert export(runs_dir, "--otlp", receiver.url) == 1
    assert f"{receiver.url}/v1/traces took 0 spans" in capsys.readouterr().err
    assert export(runs_dir, "--otlp", "localhost:4318") == 2
    assert "http://localhost:4318" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "options", "cure"),
    [
        ("opentelemetry.exporter.otlp.proto.http", ("--otlp", "http://127.0.0.1:1"), ".[otlp]"),
        ("mlflow", ("--to", "mlflow", "--uri", "mlruns"), ".[mlflow]"),
    ],
)
def test_a_missing_package_is_named_with_the_cure(
    module: str,
    options: tuple[str, ...],
    cure: str,
    runs_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert export(runs_dir, *options) == 2
    said = capsys.readouterr().err
    assert module in said and cure in said


# --- ATIF

ATIF = {
    "root": "schema_version session_id agent steps notes final_metrics extra",
    "agent": "name version model_name extra",
    "step": "step_id timestamp source model_name message reasoning_content tool_calls observation metrics extra",
    "call": "tool_call_id function_name arguments",
    "result": "source_call_id content",
    "metrics": "prompt_tokens completion_tokens cached_tokens cost_usd logprobs extra",
    "final_metrics": "total_prompt_tokens total_completion_tokens total_cost_usd total_steps extra",
}
"""The fields of ATIF v1.4 that may be there: Harbor's own reader refuses others."""


def check_atif(told: Json) -> None:
    def known(kind: str, value: Json) -> None:
        assert set(value) <= set(ATIF[kind].split()), kind

    known("root", told)
    known("agent", told["agent"])
    known("final_metrics", told["final_metrics"])
    for turn in told["steps"]:
        known("step", turn)
        known("metrics", turn.get("metrics", {}))
        calls = turn.get("tool_calls", [])
        results = turn.get("observation", {"results": []})["results"]
        for call in calls:
            known("call", call)
        for result in results:
            known("result", result)
            assert result["source_call_id"] in [None, *(call["tool_call_id"] for call in calls)]
        assert turn["source"] == "agent" or not {"tool_calls", "metrics", "reasoning_content"} & set(turn)


def test_atif_is_a_trajectory_of_turns(runs_dir: Path, tmp_path: Path) -> None:
    assert export(runs_dir, "--to", "atif", "--out", str(tmp_path / "trajectory.json")) == 0
    told = json.loads((tmp_path / "trajectory.json").read_text())
    check_atif(told)
    assert told["schema_version"] == "ATIF-v1.4" and told["session_id"] == "one"
    assert told["agent"]["name"] == "autodidact" and told["agent"]["model_name"] == "small"
    turns = told["steps"]
    assert [turn["step_id"] for turn in turns] == list(range(1, len(turns) + 1))
    assert [turn["source"] for turn in turns] == ["user", *["user", "agent"] * 3, "agent"]
    first, refused, edited, edit = (turn for turn in turns if turn["source"] == "agent")
    (call,), (result,) = first["tool_calls"], first["observation"]["results"]
    assert call["function_name"] == "generate_data" and call["arguments"] == {"num_items": 512}
    assert result["source_call_id"] == call["tool_call_id"] and json.loads(result["content"])["num_right"] == 3
    assert first["reasoning_content"] == "Samples are needed." and first["metrics"]["extra"]["tokens"] == 700
    assert "nothing to note" in refused["observation"]["results"][0]["content"]
    assert "cheaper" in edited["observation"]["results"][0]["content"]
    assert edit["extra"]["decided_by"] == "human" and '"accepted":false' in edit["observation"]["results"][1]["content"]
    assert told["final_metrics"]["total_cost_usd"] == 0.5 and told["extra"]["reason"] == "plateau"


def test_the_totals_of_a_trajectory_are_those_of_the_report(runs_dir: Path, tmp_path: Path) -> None:
    """Baseline and final evaluation are no steps, and cost tokens all the same."""
    write_json(runs_dir / "one" / "report.json", {"tokens": 99_000, "spent": {"usd": 1.25}})
    assert export(runs_dir, "--to", "atif", "--out", str(tmp_path / "trajectory.json")) == 0
    metrics = json.loads((tmp_path / "trajectory.json").read_text())["final_metrics"]
    assert (metrics["total_cost_usd"], metrics["extra"]["total_tokens"]) == (1.25, 99_000)


def test_each_form_says_what_it_needs(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs = {("--to", "atif"): "--out", ("--to", "mlflow"): "--uri", ("--follow",): "--otlp"}
    for options, said in needs.items():
        assert export(runs_dir, *options) == 2
        assert said in capsys.readouterr().err


# --- MLflow


def test_mlflow_gets_a_run_once(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = make_run(tmp_path / "runs")
    manifest = next((run / "models").glob("*/model.json"))
    write_json(manifest, read_json(manifest) | {"losses": [2.0, 1.5]})
    words = ["trace", "export", run.name, "--runs-dir", str(tmp_path / "runs"), "--to", "mlflow"]
    for _ in range(2):
        assert main([*words, "--uri", str(tmp_path / "mlruns")]) == 0
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (experiment,) = (one for one in client.search_experiments() if one.name == "autodidact")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == run.name and kept.info.status == "FINISHED"
    assert kept.data.params["planner"] == "rules"
    assert {"run.json", "events.jsonl", "report.html"} <= {
        file.path for file in client.list_artifacts(kept.info.run_id)
    }
    shown = {"tokens", "spent_s", "champion_search_score", "accepted", "final/champion"}
    assert shown <= set(kept.data.metrics) and any(name.startswith("loss/") for name in kept.data.metrics)
    (trace,) = client.search_traces(locations=[experiment.experiment_id])
    spans = {span.name: span for span in trace.data.spans}
    assert trace.info.request_metadata["mlflow.sourceRun"] == kept.info.run_id
    assert spans["step 1"].parent_id == spans[f"run {run.name}"].span_id
    assert spans["generate_data"].span_type == "TOOL" and set(spans["generate_data"].inputs) == {"num_items"}
    assert spans[f"run {run.name}"].start_time_ns == 1_000_000 * kept.info.start_time
    (spent,) = client.get_metric_history(kept.info.run_id, "tokens")
    assert (spent.step, spent.value) == (1, 4200.0)
