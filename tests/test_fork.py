"""Forks and replays of one finished run of the tiny model, through the command line.

The run's data come from a tool of its own, because the tiny model never answers right: seven steps, two verdicts (both
rejections), one lesson, the final split opened.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent import views
from agent.clock import PARENT
from agent.fork import make_fork
from agent.metering import spent_on
from agent.report import page, page_values
from agent.run import job_fingerprint
from agent.sealing import verdicts_before
from agent.statistics import alpha_for
from agent.trace import read_events
from bench.driven import outcome
from memory.records import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from memory.store import RunStore
from run_agent import main
from tests.test_run import finish, program, wait_for, write_task
from tools.jobs.job import Usage

Json = dict[str, Any]
ROWS_TOOL = '''"""Training rows that need no model."""

from typing import Literal

from memory.records import content_id
from tools.optimize.rehearsal import DATASET
from tools.contract import ToolRun, tool


def legal(context):
    store = context.store
    return None if store.untrained_datasets() or store.candidate() else {}


@tool(stage="acquire", when=legal)
def write_rows(run: ToolRun, num_rows: Literal[64, 80] = 64) -> dict:
    """Write rows to train on."""
    store = run.context.store
    first = 1000 * len(store.all("data"))
    rows = []
    for number in range(first, first + num_rows):
        row = {"prompt": f"Which colour has ball {number}?", "completion": f"colour {number % 7}"}
        row |= {"id": content_id(row), "item_id": content_id(row), "difficulty": "all", "generation": "none"}
        rows.append(row | {"example_id": row["id"], "parents": [], "model": "none", "pass_rate": 0.5})
    name = content_id([row["id"] for row in rows])
    manifest = {"kind": "train", "num_examples": num_rows, "rejected": {}}
    store.put("data", name, manifest, {"train.jsonl": rows, "rejected.jsonl": []})
    return {"dataset": name, "num_examples": num_rows}
'''
TRAIN = {"start_from": "base", "method": "lora", "learning_rate": 0.001, "schedule": "linear", "epochs": 1}
SCRIPT: list[Json] = [
    {"tool": "write_rows", "arguments": {"num_rows": 64}},
    {"tool": "finetune_model", "arguments": TRAIN},
    {"tool": "evaluate_model", "arguments": {"target": "candidate"}},
    {"tool": "note_lesson"},
    {"tool": "write_rows", "arguments": {"num_rows": 80}},
    {"tool": "finetune_model", "arguments": TRAIN},
    {"tool": "evaluate_model", "arguments": {"target": "candidate"}},
]
"""Step 3 and 7 are the only legal action there."""
APPENDED = {"events.jsonl", "worker.log", "tools.log", "state.sqlite", "run.lock", "worker.lock"}
"""Files that are written in place: sharing one would change the parent."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished run. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("family")
    code, report, said = finish(begin(folder, tiny_model))
    assert (code, report["stop_reason"], report["rejected"]) == (0, "steps", 2), said
    return Path(views.run_folders(folder / "runs")[0])


def begin(folder: Path, model: Path) -> "subprocess.Popen[str]":
    (folder / "rows.py").write_text(ROWS_TOOL)
    write_jsonl(folder / "script.jsonl", SCRIPT)
    task = write_task(folder / "copy.jsonl", lambda text: f"Say this word again: {text}")
    sizes = ["--search-items", "20", "--gate-items", "20", "--final-items", "20", "--budget-tokens", "3000000"]
    where = ["--runs-dir", str(folder / "runs"), "--model", str(model), "--dtype", "float32", "--max-steps", "7"]
    planner = ["--planner", f"scripted:{folder / 'script.jsonl'}", "--tools", str(folder / "rows.py")]
    return program("start", "--task", task, *planner, *sizes, *where, "--json")


@pytest.fixture
def family(parent: Path, tmp_path: Path) -> Path:
    """A copy of the run, with the times of its files, that a test may fork as it likes."""
    shutil.copytree(parent.parent, tmp_path / "runs")
    return tmp_path / "runs" / parent.name


def contents(run_dir: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, time and bytes of every file of a run: what a fork must leave as it is."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def fork_error(capsys: pytest.CaptureFixture[str], run_dir: Path, *argv: str) -> str:
    before = sorted(run_dir.parent.iterdir())
    assert main(["fork", run_dir.name, "--runs-dir", str(run_dir.parent), *argv]) == 2
    assert sorted(run_dir.parent.iterdir()) == before, "a fork that cannot be is not there"
    return capsys.readouterr().err


def decided(run_dir: Path) -> dict[int, Json]:
    return {event["step"]: event for event in read_events(run_dir) if event["kind"] == "decided"}


# --- the same run, elsewhere


def test_a_run_that_was_killed_and_moved_with_all_its_files_ends_as_if_it_had_not_been(
    parent: Path, tiny_model: Path, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    shutil.copytree(tiny_model, there / "model")
    process = begin(there, there / "model")
    wait_for(lambda: len(list(there.glob("runs/*/calls/0003*.json"))) > 0, process)
    process.kill()
    process.communicate()
    finished = {path.relative_to(there): path.stat().st_mtime_ns for path in there.glob("runs/*/jobs/*/result.json")}
    there.rename(here)
    runs = ["--runs-dir", str(here / "runs"), "--json"]
    code, _, said = finish(program("resume", *runs))
    assert code == 2 and f"--moved {there}" in said, said
    code, _, said = finish(program("resume", "--moved", f"{there}={here}", *runs))
    assert code == 2 and f"moved: {there} -> {here}" in said and "--accept-changes" in said, said
    code, _, said = finish(program("resume", "--moved", f"{there}={here}", "--accept-changes", *runs))
    assert code == 0, said
    (run_dir,) = views.run_folders(here / "runs")
    assert finished and {path: (here / path).stat().st_mtime_ns for path in finished} == finished
    told: Json = {"lessons": []}  # these name the task's file
    assert outcome(run_dir) | told == outcome(parent) | told
    assert str(there) not in (run_dir / "run.json").read_text()


# --- what a fork shares


def test_a_fork_pays_for_jobs_that_were_refused_before_it(family: Path) -> None:
    for name in ("early", "late"):
        folder = family / "jobs" / name
        write_json(folder / "spec.json", {"function": "tools.optimize.sft_worker:train", "args": {}, "inputs": {}})
        write_json(folder / "status.json", {"state": "tool_error", "spent": Usage(5.0, 9.0, 70)._asdict()})
        (folder / "half.jsonl").touch()
    os.utime(family / "jobs" / "early" / "status.json", (0, 0))
    run_dir = make_fork(family, 5)
    assert sorted(path.name for path in (run_dir / "jobs" / "early").iterdir()) == ["spec.json", "status.json"]
    assert not (run_dir / "jobs" / "late").exists()
    assert spent_on(run_dir / "jobs" / "early")[0] == Usage(5.0, 9.0, 70)


def test_a_fork_holds_what_was_there_before_the_decision_and_nothing_later(family: Path) -> None:
    before = contents(family)
    run_dir = make_fork(family, 5)
    assert contents(family) == before
    store, old = RunStore(run_dir), RunStore(family)
    for run, expected in ((store, [1, 1, 1]), (old, [2, 2, 1])):
        own = [one for one in run.all("data") if one["kind"] != "general_chats"]
        assert [len(own), len(run.all("models")), len(run.all("lessons"))] == expected
    assert store.verdicts() == old.verdicts()[:1]
    later = {own[1]["id"], *[verdict["model"] for verdict in old.verdicts()[1:]]}
    told = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert not [name for name in later if name.encode() in told], "no file of the fork knows of them"
    assert {path.name[:4] for path in (run_dir / "calls").iterdir()} == {"0001", "0002", "0003", "0004"}
    assert not (run_dir / "referee" / "final.json").exists() and not (run_dir / "report.json").exists()
    assert (run_dir / "referee").stat().st_mode & 0o077 == 0


def test_what_a_fork_shares_takes_no_space_and_is_never_written_in_place(family: Path) -> None:
    run_dir = make_fork(family, 5)
    shared = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.stat().st_nlink > 1
              and path.is_file()}  # fmt: skip
    kinds = {name.split("/")[0] for name in shared}
    assert kinds == {"data", "models", "evals", "lessons", "jobs", "calls", "referee", "task"}
    assert not APPENDED & {Path(name).name for name in shared} and "referee/verdicts.jsonl" not in shared
    own = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()} - shared
    assert own == {"run.json", "events.jsonl", "state.sqlite", "referee/verdicts.jsonl", "referee/models.json"}


def test_the_record_and_the_trace_say_where_a_fork_comes_from(family: Path) -> None:
    run_dir = make_fork(family, 4, planner="rules")
    record = read_json(run_dir / "run.json")
    assert record["forked_from"] == {"run": family.name, "step": 4}
    assert record["config"]["planner"] == "rules"
    assert record["config"]["max_steps"] == read_json(family / "run.json")["config"]["max_steps"]
    assert job_fingerprint(record) == job_fingerprint(read_json(family / "run.json")), "else no job would be found"
    assert str(run_dir / "task") in record["training_task"]
    *prefix, forked = read_events(run_dir)
    assert prefix == list(read_events(family))[: len(prefix)]
    assert (prefix[-1]["kind"], prefix[-1]["step"]) == ("observed", 4)
    assert (forked["kind"], forked["from_run"], forked["from_step"]) == ("forked", family.name, 4)
    assert forked["spent_s"] == max(event["spent_s"] for event in prefix)
    assert f"forked from {family.name} at step 4" in views.status_text(views.run_status(run_dir))


def test_a_fork_may_have_a_last_step_of_its_own(family: Path) -> None:
    assert read_json(make_fork(family, 4, max_steps=4) / "run.json")["config"]["max_steps"] == 4
    with pytest.raises(ValueError, match="--max-steps 3 is before step 4"):
        make_fork(family, 4, max_steps=3)


# --- what a fork may still test


def test_verdicts_of_relatives_are_tested_candidates(family: Path) -> None:
    """The chain spends one ALPHA: a fork's first own candidate comes behind all that its relatives tested."""
    first = make_fork(family, 5)
    assert verdicts_before(RunStore(first)) == [False, False], "one shared, one of the parent's later"
    early = make_fork(family, 2)
    assert verdicts_before(RunStore(early)) == [False, False], "none shared, two of the parent's"
    judged = {"model": "mine", "split": "gate", "accepted": True}
    RunStore(early).put("evals", "mine", judged)
    assert verdicts_before(RunStore(early)) == [False, False, True]
    assert verdicts_before(RunStore(make_fork(family, 2))) == [False] * 3, "two of the parent's, one of the other fork"
    again = make_fork(first, 2)
    assert read_json(again / "run.json")["family"]["root"] == family.name
    assert verdicts_before(RunStore(again)) == [False] * 3
    shutil.rmtree(first / "evals")
    assert verdicts_before(RunStore(first)) == [], "a replay of a fork is tested as its parent was, up to the fork"


def test_looks_go_on_from_those_of_the_family(family: Path) -> None:
    looks = read_json(family / "run.json")["looks"]
    assert looks["gate"] >= 2 and looks["final"] == 3
    first = make_fork(family, 2)
    record = read_json(first / "run.json")
    assert record["looks"] == looks
    write_json(first / "run.json", record | {"looks": {"gate": looks["gate"] + 2, "final": 6}})
    assert read_json(make_fork(family, 2) / "run.json")["looks"] == {"gate": looks["gate"] + 2, "final": 6}


# --- what cannot be forked


def test_a_step_that_began_with_a_removed_model(family: Path) -> None:
    before = set(family.parent.iterdir())
    with pytest.raises(ValueError, match=r"step 3 began with model \w+, whose weights were removed"):
        make_fork(family, 3)
    assert set(family.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--at", "9"], "it decided steps 1 to 7"),
        (["--at", "0"], "it decided steps 1 to 7"),
        (["--at", "2", "--planner", "rule"], "did you mean 'rules'?"),
        (["--at", "2", "--planner", "scripted:none.jsonl"], "there is no such file"),
        (["--at", "2", "--arg", "epochs=1"], "--force TOOL"),
        (["--at", "2", "--force", "finetune_model", "--arg", "epochs"], "--arg epochs=VALUE"),
        (["--at", "2", "--force", "finetune_model", "--arg", "epochs=9", "--arg", "schedule=linear"], "legal: [1, 2]"),
        (["--at", "2", "--force", "finetune_model", "--arg", "epochs=1"], "needs the argument 'schedule'"),
        (
            ["--at", "2", "--force", "finetune_model", "--arg", "epochs=9", "--arg", "speed=1"],
            "finetune_model has no argument 'speed'; it takes: start_from, method, learning_rate, schedule, epochs; "
            "finetune_model needs the argument 'schedule', one of ['linear', 'cosine']; "
            "finetune_model: epochs='9' is not legal; legal: [1, 2]",
        ),
        (["--at", "2", "--force", "note_lesson"], "tool 'note_lesson' is not legal now; legal: finetune_model"),
    ],
)
def test_bad_forks_name_the_cure(argv: list[str], said: str, parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fork_error(capsys, parent, *argv)


def test_files_without_their_times_cannot_be_forked(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in family.rglob("*"):
        os.utime(path)
    assert "cp -a" in fork_error(capsys, family, "--at", "3")


# --- whole forks and replays


def test_a_forced_fork_runs_to_its_end_and_counts_what_was_spent(family: Path) -> None:
    before = contents(family)
    force = ["--force", "finetune_model", "--arg", "epochs=2", "--arg", "schedule=cosine"]
    command = ["fork", family.name, "--at", "2", *force, "--runs-dir", str(family.parent), "--json"]
    code, report, said = finish(program(*command))
    assert (code, report["stop_reason"]) == (0, "steps"), said
    run_dir = family.parent / report["run"]
    steps = decided(run_dir)
    assert (steps[2]["decided_by"], steps[2]["action"]["args"]["epochs"]) == ("forced", 2)
    assert steps[4]["decided_by"] == "scripted" and max(steps) == 7, "then the planner goes on"
    assert contents(family) == before
    first = next(read_jsonl(run_dir / "referee" / "verdicts.jsonl"))
    assert (first["number"], first["alpha"]) == (3, alpha_for([False, False]))
    tokens = {path.parent.name: read_json(path)["usage"]["tokens"] for path in run_dir.glob("jobs/*/result.json")}
    shared = sum(tokens[path.name] for path in (family / "jobs").iterdir() if path.name in tokens)
    assert 0 < shared < report["tokens"] == sum(tokens.values())
    costs = page_values(run_dir)["costs"]
    by_work = {row["name"]: row["tokens"] for row in costs["rows"] if row["tokens"]}
    assert by_work[PARENT] > 0 and sum(by_work.values()) == costs["tokens"] == report["tokens"]
    assert report["resumes"] == 0 and f"A fork of run {family.name} at step 2." in page(run_dir)
    looks = read_json(family / "run.json")["looks"]
    assert report["looks"]["final"] == looks["final"] + 3 and report["looks"]["gate"] > looks["gate"]
    code, found, said = finish(program("replay", run_dir.name, "--runs-dir", str(family.parent), "--json"))
    assert code == 0 and found["equal"], (found, said)


def test_a_replay_comes_to_the_same_without_a_model(family: Path) -> None:
    code, found, said = finish(program("replay", family.name, "--runs-dir", str(family.parent), "--json"))
    assert code == 0 and found["equal"] and not found["differences"], (found, said)
    run_dir = family.parent / found["run"]
    assert found["num_steps"] == 7
    assert not (run_dir / "worker.log").exists(), "no worker was started"
    assert {event["decided_by"] for event in decided(run_dir).values()} == {"replay", "only_choice"}
    lessons = [row["run"] for row in read_jsonl(family.parent / "lessons.jsonl")]
    assert lessons == [family.name], "a repeated lesson is none"
    assert main(["fork", found["run"], "--at", "2", "--runs-dir", str(family.parent)]) == 2


def test_a_replay_names_what_differs(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = list(read_events(family))
    events[next(i for i, event in enumerate(events) if event["kind"] == "tool_finished")]["result"]["num_examples"] = 65
    write_jsonl(family / "events.jsonl", events)
    job = next(path for path in family.glob("jobs/*/spec.json") if read_json(path)["function"].endswith(":train"))
    shutil.rmtree(job.parent)
    code, found, said = finish(program("replay", family.name, "--runs-dir", str(family.parent), "--json"))
    assert code == 1 and not found["equal"], said
    first = found["differences"][0]
    assert (first["step"], first["field"], first["a"], first["b"]) == (1, "outcome.result.num_examples", 65, 64)
    assert "no finished job like this one of tools.optimize.sft_worker:train" in found["report"]["error"]


def test_a_replay_that_computes_afresh_comes_to_the_same(family: Path) -> None:
    command = ["replay", family.name, "--recompute", "--runs-dir", str(family.parent), "--json"]
    code, found, said = finish(program(*command))
    assert code == 0, (found.get("differences"), said)
    run_dir = family.parent / found["run"]
    assert found["equal"] and (run_dir / "worker.log").exists()
    assert not any(path.stat().st_nlink > 1 for path in (run_dir / "models").rglob("*.safetensors"))


def test_a_run_under_way_is_not_replayed(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_json(family / "report.json")
    write_json(family / "report.json", report | {"stop_reason": "user_stopped"})
    append_jsonl(
        family / "events.jsonl", [{"seq": 999, "ts": "2026-01-02", "kind": "run_stopped", "step": None, "spent_s": 0.0}]
    )
    assert main(["replay", family.name, "--runs-dir", str(family.parent)]) == 2
    assert "only a run that has ended can be replayed" in capsys.readouterr().err
