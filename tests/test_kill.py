"""What a kill must not change: repeated work costs and gives the same, and the bench that kills runs sees what breaks.

Whole runs that are killed: tests/test_run.py, and here one through every tool (slow).
"""

import random
import shutil
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.disk import failure_text
from agent.tool_host import ToolHost, ToolHostError
from bench.driven import DrivenRun, damaged_files
from bench.kill import differing, draw_aims, figures_of, killed_run, reference_of, tiny_scenario
from memory.records import read_json, write_json
from memory.store import BASE, RunStore
from tools.contract import Jobs, Json, Judge, ToolContext
from tools.jobs.job import Job, run_job
from tools.jobs.machine import repeated
from tools.optimize.finetune_model import finetune_model
from tools.optimize.rehearsal import DATASET

SETTINGS: Json = {"start_from": "base", "method": "lora", "learning_rate": 0.001, "schedule": "linear", "epochs": 1}
RESULT: Json = {"num_examples": 4, "num_steps": 1, "loss_first": 2.0, "loss_last": 1.0, "train_s": 3.0}


class KnownJobs:
    """Tells what it was asked for."""

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Any]:
        return args, None


@pytest.fixture
def trained(tmp_path: Path) -> RunStore:
    """A run that was killed right after the manifest of its first model was written."""
    store = RunStore(tmp_path)
    store.put("data", "d1", {"kind": "train", "num_examples": 4})
    store.put("models", "m1", RESULT | {"parent": BASE, "dataset": "d1", "datasets": ["d1"], "num_tokens": 50})
    return store


def test_a_training_killed_before_its_result_costs_the_same(trained: RunStore) -> None:
    folder = trained.run_dir / "jobs" / "key"
    args = {"model_id": "m1", "settings": SETTINGS, "parent": BASE, "datasets": ["d1"], "rehearse": [], "seed": 0}
    write_json(folder / "spec.json", {"function": "tools.optimize.sft_worker:train", "args": args, "inputs": {}})
    run_job(folder, SimpleNamespace(tokens_processed=7, cpu_s=1.0, make_room=lambda: None))
    result = (folder / "result.json").read_text()
    assert '"model": "m1"' in result and '"tokens": 150' in result, "a trained token counts three times"


def test_a_training_call_killed_before_its_result_can_be_repeated(trained: RunStore) -> None:
    assert trained.untrained_datasets() == []
    trained.put("data", DATASET, {"kind": "general_chats"}, {"train.jsonl": []})
    context = ToolContext(trained, cast(Jobs, KnownJobs()), cast(Judge, None), 0, "sums")
    assert finetune_model(context, **SETTINGS)["datasets"] == ["d1"]


def test_work_of_an_earlier_attempt_belongs_to_the_cost_of_a_job(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "key"
    write_json(folder / "spec.json", {"function": "tests.test_kill:goes_on", "args": {}, "inputs": {}})
    run_job(folder, SimpleNamespace(tokens_processed=7, cpu_s=1.0, make_room=lambda: None))
    assert '"tokens": 40' in (folder / "result.json").read_text()


def goes_on(job: Job) -> Json:
    """Find work of 40 tokens done."""
    job.earlier_tokens = 40
    return {}


def test_what_killed_attempts_took_belongs_to_the_cost_of_a_job_but_for_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "key"
    write_json(folder / "spec.json", {"function": "tests.test_kill:ends_early", "args": {}, "inputs": {}})
    resident = SimpleNamespace(tokens_processed=0, cpu_s=0.0, num_gpus=2, paid_tokens=(0, 0, 0, 0))
    with pytest.raises(RuntimeError):
        run_job(folder, resident)
    spent = read_json(folder / "status.json")["spent"]
    assert spent["cpu_s"] == 5.0 and spent["gpu_s"] == pytest.approx(2 * spent["wall_s"]) and spent["wall_s"] > 0
    write_json(folder / "status.json", {"state": "running", "attempts": 1, "spent": spent | {"wall_s": 7200.0}})
    (folder / "again").touch()
    run_job(folder, resident)
    usage = read_json(folder / "result.json")["usage"]
    assert usage["wall_s"] > 7200 and usage["cpu_s"] == 10.0 and usage["tokens"] == 30, "tokens are those of the work"
    assert (usage["teacher_input_tokens"], usage["teacher_output_tokens"]) == (40, 6), "asked twice, paid twice"
    assert read_json(folder / "status.json")["attempts"] == 2


def ends_early(job: Job) -> Json:
    """Work, and end in the middle of it at the first attempt."""
    job.resident.cpu_s += 5.0
    job.resident.tokens_processed += 30
    job.resident.paid_tokens = tuple(map(sum, zip(job.resident.paid_tokens, (0, 0, 20, 3), strict=True)))
    if not (job.folder / "again").exists():
        raise RuntimeError("gone")
    return {}


def test_a_job_tells_what_it_took_while_it_runs() -> None:
    beats = iter(range(100))
    enough = threading.Event()
    with repeated(lambda: enough.set() if next(beats) == 3 else None, 0.01):
        assert enough.wait(10)


def test_a_full_disk_does_not_end_what_is_told_beside_the_work() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with repeated(fail, 0.01):
        pass


def test_a_failure_for_want_of_room_names_the_cure(tmp_path: Path) -> None:
    text = failure_text(sqlite3.OperationalError("database or disk is full"), tmp_path)
    assert str(tmp_path) in text and "make room there, then `resume`" in text
    assert failure_text(ValueError("no"), tmp_path) == "ValueError: no"


HALF_A_LINE = """
import os, signal
from tools.contract import ToolRun, tool

@tool(stage="evaluate")
def stammer(run: ToolRun) -> dict:
    '''Be killed in the middle of a line.'''
    run.context.jobs._answers.write('{"ask": "ru')
    run.context.jobs._answers.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_tool_host_that_was_killed_while_it_wrote_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HALF_A_LINE)
    (tmp_path / "run").mkdir()
    with ToolHost([str(tmp_path / "mine.py")], tmp_path / "run") as host:
        with pytest.raises(ToolHostError, match="ended 2 times in the tool stammer"):
            host.call("stammer", {}, cast(Jobs, None), cast(Judge, None))
        assert "stammer" in {told["name"] for told in host.describe()}


def test_half_written_files_are_found(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    (tmp_path / "events.jsonl").write_text('{"seq": 1}\n{"seq": 2')
    assert damaged_files(tmp_path) == [], "a torn last line is left out by readers"
    (tmp_path / "events.jsonl").write_text('{"seq": 1\n{"seq": 2}\n')
    write_json(tmp_path / "data" / "d1" / "manifest.json", {})
    (tmp_path / "data" / "d1" / "manifest.json").write_text('{"id": "d')
    assert len(damaged_files(tmp_path)) == 2


def test_finished_work_that_is_lost_or_written_again_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = DrivenRun.__new__(DrivenRun)
    run.runs_dir, run.finished, run.problems = tmp_path, {}, []
    write_json(tmp_path / "one" / "run.json", {})
    results = [tmp_path / "one" / "jobs" / key / "result.json" for key in "ab"]
    for path in results:
        write_json(path, {"value": 1})
    run.remember_finished()
    run.remember_finished()
    assert run.problems == []
    shutil.rmtree(results[0].parent)
    write_json(results[1], {"value": 1})
    run.remember_finished()
    assert sorted(run.problems) == ["lost: result.json of a", "written again: result.json of b"]


def test_a_bench_without_a_kill_or_with_another_outcome_is_not_ok() -> None:
    row: Json = {"model": "tiny", "kills": [{"victim": "agent", "under_way": "start-up"}], "resume_s": [3.0]}
    row |= {"problems": [], "damaged": [], "differs_in": [], "orphans": 0}
    assert figures_of([row])["ok"]
    for part, value in {"problems": ["lost: x"], "damaged": ["x"], "differs_in": ["tokens"], "orphans": 1}.items():
        assert not figures_of([row | {part: value}])["ok"]
    assert not figures_of([row | {"resume_s": [30.0]}])["ok"]
    assert not figures_of([])["ok"]
    assert differing({"tokens": 1, "verdicts": []}, {"tokens": 2, "verdicts": []}) == ["tokens"]


@pytest.mark.slow
def test_a_run_through_every_tool_ends_the_same_after_kills(tmp_path: Path) -> None:
    scenario = tiny_scenario(tmp_path, seed=0)
    reference = reference_of(scenario)
    assert {tool for tool, _ in reference.tools.values()} >= {"generate_data", "curate_data", "finetune_model"}
    assert len(draw_aims(reference, 5, random.Random(0))) == 5
    found = killed_run(scenario, reference, 3, number=0)
    assert found["kills"]
    assert found["problems"] == found["damaged"] == found["differs_in"] == []
    assert found["orphans"] == 0
