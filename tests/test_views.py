"""What people read about a run (state, status, list, trace, follow), on a small run written without a model."""

import fcntl
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import follow, trace_view, views
from agent.config import FORMAT_VERSION, RunConfig
from agent.state import StopReason
from agent.trace import Trace
from agent.trace_select import Filter
from memory.records import append_jsonl, content_id, write_json
from memory.store import RunStore

Json = dict[str, Any]
SAMPLES, TRAIN, SECOND, GOOD, BAD = "5a3b" * 4, "7a14" * 4, "7a15" * 4, "900d" * 4, "0bad" * 4
RIGHT, DUPLICATE, WRONG, UNUSED = "ex-right", "ex-duplicate", "ex-wrong", "ex-unused"
USAGE = {"wall_s": 12.5, "cpu_s": 20.0, "tokens": 4200}
SECRET_OF_A_MODEL = "evil \x1b[31m red"


STEPS: Json = {
    "looks": [{}],
    "gate_items": 400,
    "alpha_left": 0.04,
    "guards": [
        {"name": "form", "value": 0.01, "limit": 0.02, "ok": True, "n": 400, "why": "of the answers never end"},
        {"name": "drift", "value": 0.2, "limit": 1.0, "ok": True, "n": 52, "why": "nats from the base model"},
    ],
    "refused_by": [],
}
"""What a verdict says beside its counts."""


def make_run(runs_dir: Path, name: str = "20260102-030405", ended: StopReason | None = StopReason.PLATEAU) -> Path:
    """Write a run with one accepted and one rejected model; ended None = no ending, as a kill leaves it."""
    run_dir = runs_dir / name
    config = RunConfig(planner="rules", budget_minutes=3.0).to_json()
    identity = {"task": config["task"], "model": "f00d" * 4, "format": FORMAT_VERSION}
    created = "2026-01-02T03:04:05+00:00"
    record = {"run": name, "format": FORMAT_VERSION, "created": created, "config": config, "identity": identity}
    write_json(run_dir / "run.json", record)
    with closing(sqlite3.connect(run_dir / "state.sqlite")) as connection:
        connection.execute("create table checkpoints (thread_id text)")
    _write_data(RunStore(run_dir))
    _write_models(RunStore(run_dir))
    _write_events(Trace(run_dir), config, identity)
    if ended is not None:
        end_run(run_dir, ended)
    return run_dir


def end_run(run_dir: Path, reason: StopReason) -> None:
    """Write report.json and the closing events."""
    arms = {name: {"score": share, "ci95": [share / 2, min(1.0, 2 * share)]} for name, share in
            (("base_zero_shot", 0.0), ("base_few_shot", 0.05), ("champion", 0.25))}  # fmt: skip
    final: Json | None = None if reason.resumable else {"n": 400, "num_shots": 6} | arms
    error = "JobFailedError: no memory" if reason is StopReason.FAILED else None
    trace = Trace(run_dir)
    if final:
        trace.emit("final", **final)
    report = {
        "run": run_dir.name,
        "stop_reason": reason.value,
        "stop_sentence": reason.sentence,
        "error": error,
        "final": final,
    }
    write_json(run_dir / "report.json", report)
    trace.emit("run_stopped", reason=reason.value, sentence=reason.sentence, error=error)


def sample(example: str, right: bool, index: int) -> Json:
    """Return a row of samples.jsonl."""
    return {
        "example_id": example, "item_id": f"item-{example}", "prompt": f"What is {index} + 1?", "completion": "2",
        "right": right, "verdict": "right" if right else "wrong", "score": float(right), "finish": "stop",
        "logprob": -1.5, "pass_rate": 0.5, "difficulty": "1 digit", "model": "base", "generation": SAMPLES,
        "chunk": 0, "sample": index, "num_samples": 2,
    }  # fmt: skip


def _write_data(store: RunStore) -> None:
    rows = [sample(RIGHT, True, 0), sample(DUPLICATE, True, 1), sample(WRONG, False, 2), sample(UNUSED, True, 3)]
    manifest = {"kind": "samples", "model": "base", "temperature": 0.7, "seed": 3, "shots": True, "num_samples": 4}
    store.put("data", SAMPLES, manifest | {"num_right": 3, "samples_per_item": 2}, {"samples.jsonl": rows})
    train = [row | {"id": row["example_id"], "parents": []} for row in rows]
    rejected = train[1] | {"reason": "semantic_duplicate", "neighbour": RIGHT, "similarity": 0.987}
    overlap = train[3] | {"reason": "evaluation_overlap"}  # the referee's rejections have no neighbour
    manifest = {"kind": "train", "num_examples": 1, "rejected": {"semantic_duplicate": 1}, "sources": [SAMPLES]}
    store.put("data", TRAIN, manifest, {"train.jsonl": train[:1], "rejected.jsonl": [rejected]})
    manifest = {"kind": "train", "num_examples": 1, "rejected": {"evaluation_overlap": 1}, "sources": [SAMPLES]}
    store.put("data", SECOND, manifest, {"train.jsonl": train[1:2], "rejected.jsonl": [overlap]})


def _write_models(store: RunStore) -> None:
    score = {"ci95": [0.1, 0.4], "n": 128, "identity": {"engine": "transformers", "dtype": "bfloat16", "device": "cpu"}}
    for model, shots, share in (("base", 0, 0.0), ("base", 6, 0.05), (GOOD, 0, 0.22), (BAD, 0, 0.2)):
        record = score | {"model": model, "split": "search", "shots": shots, "score": share}
        store.put("evals", content_id([model, "search", shots]), record)
    for number, (model, parent, sets, accepted) in enumerate(
        ((GOOD, "base", [TRAIN], True), (BAD, GOOD, [TRAIN, SECOND], False)), 1
    ):
        settings = {"method": "lora", "learning_rate": 0.001, "epochs": 1}
        manifest = {"parent": parent, "dataset": sets[-1], "datasets": sets, "settings": settings, "seed": 0}
        store.put("models", model, manifest | {"num_examples": len(sets)})
        public = {
            "model": model,
            "split": "gate",
            "shots": 0,
            "champion": parent,
            "accepted": accepted,
            "n": 400,
            "refused_by": [],
        }
        store.put("evals", content_id([model, "gate", 0]), public | {"number": number})
        detail = {"candidate": model, "champion": parent, "number": number, "accepted": accepted, "alpha": 0.0075}
        counts = {"num_items": 400, "num_fixed": 76, "num_broken": 3, "p_value": 1e-9, "level": 0.0056} | STEPS
        append_jsonl(store.run_dir / "referee" / "verdicts.jsonl", [detail | counts])


def _write_events(trace: Trace, config: Json, identity: Json) -> None:
    score = {"score": 0.0, "ci95": [0.0, 0.0291], "n": 128}
    situation = {"champion": "base", "score": score, "budget_left_percent": 92, "unused_right_answers": 7}
    trace.emit("run_started", config=config, identity=identity)
    trace.emit("observed", step=1, situation=situation, menu=["evaluate_model", "finish_run"])
    action = {"tool": "evaluate_model", "args": {"target": "candidate"}}
    trace.emit(
        "decided", step=1, action=action, decided_by="model", logprob=-0.25, usage={},
        reasoning="why not " * 60 + SECRET_OF_A_MODEL,
        alternatives=[{"tool": "finish_run", "logprob": -1.75}], problems=["tool 'dance' is not legal now"],
    )  # fmt: skip
    trace.emit("tool_started", step=1, tool="evaluate_model", args=action["args"], job="0001")
    result = {
        "model": GOOD,
        "accepted": True,
        "search_score": 0.22,
        "ci95": [0.15, 0.3],
        "n": 128,
        "gain_on_search": 0.22,
        "quarantined": None,
    }
    weakest = {"weakest": {"difficulty": "2 digits", "score": 0.202, "n": 99}}
    trace.emit("tool_finished", step=1, **action, result=result | weakest, usage=USAGE)
    detail = {"accepted": True, "num_fixed": 76, "num_broken": 3, "num_items": 400, "p_value": 1e-9, "alpha": 0.0075}
    trace.emit("judged", step=1, candidate=GOOD, champion="base", level=0.0056, **detail, **STEPS)
    trace.emit("observed", step=2, situation=situation, menu=["generate_data"])
    trace.emit("tool_started", step=2, tool="generate_data", args={"num_items": 256}, job="0002")


def tree(run_dir: Path, wanted: Filter = trace_view.EVERYTHING) -> str:
    return "\n".join(trace_view.tree_lines(run_dir, wanted))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock as a live process does."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_job(run_dir: Path, key: str, state: str, done: int) -> None:
    """Write a job that was begun and has no result."""
    write_json(run_dir / "jobs" / key / "spec.json", {"function": "tools.x:sample_items", "args": {}, "inputs": {}})
    write_json(run_dir / "jobs" / key / "status.json", {"state": state})
    write_json(run_dir / "jobs" / key / "progress.json", {"done": done, "total": 9, "metrics": {"loss": 1.5}})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs")


@pytest.mark.parametrize(
    ("ended", "state"),
    [
        (StopReason.PLATEAU, "finished"),
        (StopReason.USER_STOPPED, "stopped"),
        (StopReason.FAILED, "failed"),
        (StopReason.WAITING, "waiting"),
        (None, "killed"),
    ],
)
def test_the_state_of_a_run(tmp_path: Path, ended: StopReason | None, state: str) -> None:
    run = make_run(tmp_path, ended=ended)
    assert views.run_state(run) == state
    with held(run / "run.lock"):
        assert views.run_state(run) == ("finished" if state == "finished" else "running")
    assert views.run_state(run) == state


def test_a_stopped_run_that_was_resumed_and_killed_is_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=StopReason.USER_STOPPED)
    Trace(run).emit("run_resumed", config={}, identity={})
    assert views.run_state(run) == "killed"
    text = tree(run)
    assert "stopped 20" in text and "resumed 20" in text and "killed: no ending was written" in text
    assert views.run_status(run)["stop_reason"] is None


def test_probing_the_lock_creates_no_file(run_dir: Path) -> None:
    assert not views.is_locked(run_dir)
    assert not (run_dir / "run.lock").exists()


def test_status_of_a_finished_run(run_dir: Path) -> None:
    text = views.status_text(views.run_status(run_dir))
    assert f"finished: {StopReason.PLATEAU.sentence}" in text
    assert f"{GOOD}: search 22.0 % [10.0, 40.0] n=128" in text
    assert "1 accepted, 1 rejected" in text and "model 1" in text
    assert "champion        25.0 % [12.5, 50.0] n=400" in text
    assert f"export {run_dir.name}" in text


def test_status_of_a_live_run_shows_the_job_under_way(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=None)
    write_job(run, "diverged", "tool_error", 8)
    write_job(run, "now", "running", 4)
    with held(run / "run.lock"):
        text = views.status_text(views.run_status(run))
    assert "2 of at most 200; at generate_data: sample_items 4/9, loss 1.500" in text
    assert "92 % left" in text and "trace tail" in text and "not opened" in text
    assert "killed at generate_data" in views.status_text(views.run_status(run))


def test_status_before_the_first_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in ("events.jsonl", "report.json"):
        (run / path).unlink()
    text = views.status_text(views.run_status(run))
    assert "killed" in text and "0 taken of at most 200" in text


def test_list_shows_newest_first_and_names_a_damaged_run(tmp_path: Path) -> None:
    for name in ("20260102-030405-9", "20260102-030405-10", "20251231-000000"):
        make_run(tmp_path, name)
    (tmp_path / "20251231-000000" / "report.json").write_text("{half")
    lines = views.list_text(views.list_runs(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["20260102-030405-10", "20260102-030405-9", "20251231-000000"]
    assert "22.0 % [10.0, 40.0] n=128" in lines[1] and "25.0 % [12.5, 50.0] n=400" in lines[1]
    assert "damaged" in lines[3] and "report.json is not valid JSON" in lines[3]


def test_a_score_always_has_its_n_and_interval() -> None:
    assert views.score_text({"score": 0.202, "n": 99}) == "20.2 % [13.5, 29.2] n=99"
    assert views.score_text(None) == "not measured"
    text = trace_view.result_text(
        {"search_score": 0.5, "ci95": [0.4, 0.6], "n": 90, "weakest": {"score": 0.202, "n": 99}}
    )
    assert text == "search 50.0 % [40.0, 60.0] n=90, weakest 20.2 % [13.5, 29.2] n=99"


def test_the_trace_as_a_tree(run_dir: Path) -> None:
    text = tree(run_dir)
    assert "quarantined" not in text, "nothing was"
    for part in (
        f"run {run_dir.name}, begun 2026-01-02T03:04:05",
        "planner rules, seed 0, budget 3.0 minutes",
        "sees: champion base 0.0 % [0.0, 2.9] n=128 | budget left 92 % | unused answers 7",
        "model decides: evaluate_model(target=candidate), probability 82 % of the tool alone",
        "instead of: finish_run (18 %)",
        "invalid before: tool 'dance'",
        "gain +22.0 points (n=128)",
        "search 22.0 % [15.0, 30.0] n=128, weakest 2 digits 20.2 % [13.5, 29.2] n=99",
        "cost: 12.5 s wall, 20.0 s cpu, 4200 tokens",
        "└─ verdict: ACCEPTED: 76 fixed, 3 broken of n=400 gate items (of 400, look 1), p=1e-09 "
        "(level 0.0056; 0.04 left for later candidates); guards: form 0.01, drift 0.2",
        f"plateau: {StopReason.PLATEAU.sentence}",
        "champion        25.0 % [12.5, 50.0] n=400",
    ):
        assert part in text
    assert SECRET_OF_A_MODEL not in text


def test_one_step_shows_the_reasoning_in_full(run_dir: Path) -> None:
    text = tree(run_dir, Filter(step=1))
    assert SECRET_OF_A_MODEL in text and "step 2" not in text
    with pytest.raises(ValueError, match="has no step 7; it has steps 1 to 2"):
        tree(run_dir, Filter(step=7))


@pytest.mark.parametrize("torn", ["", '{"kind": "obs'])
def test_the_trace_of_a_killed_and_of_a_live_run(tmp_path: Path, torn: str) -> None:
    run = make_run(tmp_path, ended=None)
    with (run / "events.jsonl").open("a") as file:
        file.write(torn)
    assert f"killed: no ending was written; go on with `run_agent.py resume {run.name}`" in tree(run)
    with held(run / "run.lock"):
        assert "still running" in tree(run)


def test_tail_of_a_dead_run_prints_what_there_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=None)
    with (run / "events.jsonl").open("a") as file:
        file.write('{"torn')
    lines = list(trace_view.tail_lines(run))
    assert len(lines) == 9 and "started: task" in lines[0] and "starts: generate_data(num_items=256)" in lines[-2]
    assert lines[-1].startswith("killed")
    assert [json.loads(line)["seq"] for line in trace_view.tail_lines(run, as_json=True)] == list(range(1, 9))


def test_tail_follows_a_run_over_a_stop_until_its_process_is_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path, ended=StopReason.USER_STOPPED)
    seen: list[str] = []
    with held(run / "run.lock"):
        thread = threading.Thread(target=lambda: seen.extend(trace_view.tail_lines(run, poll_s=0.01)))
        thread.start()
        Trace(run).emit("run_resumed", config={}, identity={})
        end_run(run, StopReason.PLATEAU)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert "user_stopped" in seen[-4] and "resumed" in seen[-3] and "plateau" in seen[-1]


def test_a_damaged_event_is_named(run_dir: Path) -> None:
    with (run_dir / "events.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(ValueError, match=r"events\.jsonl line 11 is damaged"):
        list(trace_view.tail_lines(run_dir))


def kinds(nodes: list[Json]) -> list[tuple[str, str]]:
    return [(node["kind"], node["id"]) for node in nodes]


def test_follow_a_trained_example_both_ways(run_dir: Path) -> None:
    node = follow.follow(run_dir, RIGHT)
    [sampled] = node["made_from"]
    assert sampled["verdict"] == "right"
    assert sampled["id"] == content_id({"generation": SAMPLES, "item_id": f"item-{RIGHT}", "sample": 0})
    assert kinds(sampled["children"]) == [("dataset", SAMPLES)] and sampled["children"][0]["temperature"] == 0.7
    assert kinds(node["led_to"]) == [("dataset", TRAIN), ("model", GOOD), ("model", BAD)]
    text = follow.follow_text(node)
    assert "few-shot, temperature 0.7, seed 3" in text and "ACCEPTED: 76 fixed" in text and "rejected: 76 fixed" in text
    assert "1 of this item's 2 samples are right" in text and "final: 25.0 % [12.5, 50.0] n=400" in text
    assert follow.follow(run_dir, sampled["id"]) == node


def test_follow_says_why_an_example_was_not_used(run_dir: Path) -> None:
    duplicate = follow.follow_text(follow.follow(run_dir, DUPLICATE))
    assert f"semantic_duplicate, neighbour {RIGHT} (similarity 0.987)" in duplicate
    assert "no right answer by the scorer" in follow.follow_text(follow.follow(run_dir, WRONG))
    assert (
        "rejected when it was frozen: evaluation_overlap\n" in follow.follow_text(follow.follow(run_dir, UNUSED)) + "\n"
    )


def test_follow_datasets(run_dir: Path) -> None:
    frozen = follow.follow(run_dir, TRAIN)
    assert frozen["by_model"] == {"base": 1} and frozen["by_difficulty"] == {"1 digit": 1}
    assert kinds(frozen["made_from"]) == [("dataset", SAMPLES)] and frozen["made_from"][0]["num_rows"] == 1
    assert kinds(frozen["led_to"]) == [("model", GOOD), ("model", BAD)]
    sampled = follow.follow(run_dir, SAMPLES)
    assert kinds(sampled["made_from"]) == [("model", "base")] and sampled["by_source"] == {SAMPLES: 4}
    sets = [("dataset", TRAIN), ("dataset", SECOND)]
    assert kinds(sampled["led_to"]) == [*sets, ("model", GOOD), ("model", BAD)]


def test_follow_models_and_evaluations(run_dir: Path) -> None:
    model = follow.follow(run_dir, BAD)
    assert model["chain"] == ["base", GOOD, BAD] and model["examples_by_model"] == {"base": 2}
    assert kinds(model["made_from"]) == [("model", GOOD), ("dataset", TRAIN), ("dataset", SECOND)]
    base = follow.follow(run_dir, "base")
    assert ("dataset", SAMPLES) in kinds(base["led_to"]) and ("model", GOOD) in kinds(base["led_to"])
    verdict = follow.follow(run_dir, content_id([BAD, "gate", 0]))
    assert "its newest dataset is quarantined" in follow.follow_text(verdict)
    assert kinds(follow.follow(run_dir, content_id(["base", "search", 6]))["made_from"]) == [("model", "base")]


def test_follow_an_unknown_id_names_the_nearest(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{GOOD}' .model."):
        follow.follow(run_dir, GOOD[:6])
    with pytest.raises(ValueError, match=r"did you mean 'ex-right' .example."):
        follow.follow(run_dir, "ex-rihgt")


def test_a_broken_lineage_is_an_error_not_an_endless_loop(run_dir: Path) -> None:
    path = run_dir / "models" / GOOD / "model.json"
    write_json(path, json.loads(path.read_text()) | {"parent": BAD})
    with pytest.raises(ValueError, match="lineage of the model is broken"):
        follow.follow(run_dir, BAD)


def test_columns_of_answers_are_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    answers = [{"model": "base", "text": "a b " * 12 + "\n\nend", "num_tokens": 9, "finish": "length"},
               {"model": GOOD, "text": "42", "num_tokens": 2, "finish": "stop"}]  # fmt: skip
    lines = views.side_by_side(answers).splitlines()
    assert lines[0].startswith("base, 9 tokens (cut off)") and f"| champion {GOOD}"[:20] in lines[0]
    assert "| 42" in lines[2] and lines[-1].startswith("end") and max(map(len, lines)) <= 60
