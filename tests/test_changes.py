"""What a resume shows and wants confirmed, and what no run may go on with."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from agent.changes import settle_changes
from agent.config import RunConfig, from_mapping
from agent.console import Console
from agent.run import create_run, job_fingerprint
from agent.trace import read_events
from memory.records import read_json, write_json
from tools.contract import Json
from tools.tasks import load_task
from tools.tasks.base import SplitSizes

Resume = Callable[..., str]


@pytest.fixture
def run_dir(tiny_model: Path, tmp_path: Path) -> Path:
    rows = [{"question": f"Say w{number}", "answer": f"w{number}"} for number in range(200)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text("# a tool\n")
    shutil.copytree(tiny_model, tmp_path / "model")
    task = load_task(f"{tmp_path / 'words.jsonl'}?scorer=exact")
    config = RunConfig(
        task=task.spec, model=str(tmp_path / "model"), runs_dir=str(tmp_path / "runs"), planner="rules",
        budget_tokens=1000, tools=(str(tmp_path / "mine.py"),),
    )  # fmt: skip
    return create_run(config, task, tmp_path / "model", task.splits(SplitSizes(20, 20, 20), 0), 0)


def settle(run_dir: Path, accepted: bool = False, **given: object) -> str:
    """Resume as far as the changes; returns what was said."""
    record, said = read_json(run_dir / "run.json"), io.StringIO()
    console = Console()
    console.rich = RichConsole(file=said, width=500)
    config = from_mapping(record["config"] | given)
    settle_changes(run_dir, record, config, job_fingerprint(record), accepted, console, {})
    return said.getvalue()


def test_a_run_on_which_nothing_changed_goes_on_silently(run_dir: Path) -> None:
    assert settle(run_dir) == ""
    assert list(read_events(run_dir)) == []


def test_settings_given_again_are_shown_and_must_be_accepted(run_dir: Path) -> None:
    before, fingerprint = (run_dir / "run.json").read_text(), job_fingerprint(read_json(run_dir / "run.json"))
    with pytest.raises(ValueError, match=r"(?s)planner: rules -> random.*budget_tokens: 1000 -> 2000.*accept-changes"):
        settle(run_dir, budget_tokens=2000, planner="random")
    assert (run_dir / "run.json").read_text() == before, "what was not accepted changed nothing"
    assert "rules -> random" in settle(run_dir, True, budget_tokens=2000, planner="random")
    [event] = read_events(run_dir)
    assert event["kind"] == "changes_accepted"
    assert event["changes"] == ["planner: rules -> random", "budget_tokens: 1000 -> 2000"]
    record = read_json(run_dir / "run.json")
    assert (record["config"]["planner"], record["config"]["budget_tokens"]) == ("random", 2000)
    assert job_fingerprint(record) == fingerprint, "finished jobs stay finished"
    assert settle(run_dir) == "", "what was accepted is not asked again"


def test_a_tool_file_code_and_a_library_that_changed_are_named(run_dir: Path) -> None:
    record: Json = read_json(run_dir / "run.json")
    record["surroundings"]["code"]["agent/nodes.py"] = "another"
    record["surroundings"]["libraries"]["langgraph"] = "0.0.1"
    write_json(run_dir / "run.json", record)
    tool = Path(record["config"]["tools"][0])
    tool.write_text("# another tool\n")
    with pytest.raises(ValueError, match=r"(?s)agent/nodes.py.*revision.*mine.py.*langgraph: 0.0.1 -> "):
        settle(run_dir)
    tool.unlink()
    with pytest.raises(ValueError, match=r"mine.py: \w+ -> none"):
        settle(run_dir)


def _change_task(run_dir: Path, config: Json) -> None:
    path = Path(config["task"].partition("?")[0].removeprefix("jsonl:"))
    path.write_text(path.read_text().replace("Say w1", "Say v1", 1))


def _change_items(run_dir: Path, config: Json) -> None:
    path = run_dir / "referee" / "gate.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _change_weights(run_dir: Path, config: Json) -> None:
    path = Path(config["model"]) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _change_library(run_dir: Path, config: Json) -> None:
    record = read_json(run_dir / "run.json")
    record["identity"]["hashes"]["libraries"]["torch"] = "1.0"
    write_json(run_dir / "run.json", record)


def _change_code(run_dir: Path, config: Json) -> None:
    record = read_json(run_dir / "run.json")
    record["identity"]["hashes"]["scorer code"] = "another"
    write_json(run_dir / "run.json", record)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_change_task, "task"), (_change_items, "gate items"), (_change_weights, "base weights"),
        (_change_library, "torch 1.0"), (_change_code, "scorer code"),
    ],
)  # fmt: skip
def test_what_a_score_depends_on_cannot_be_accepted(
    run_dir: Path, change: Callable[[Path, Json], None], part: str
) -> None:
    change(run_dir, read_json(run_dir / "run.json")["config"])
    with pytest.raises(ValueError, match=rf"(?s)cannot go on.*{part}.*would not compare"):
        settle(run_dir, True, budget_tokens=2000)
    assert list(read_events(run_dir)) == []


def test_a_run_of_an_earlier_version_goes_on_and_is_recorded_from_then_on(run_dir: Path) -> None:
    record = read_json(run_dir / "run.json")
    del record["surroundings"], record["config"]["heartbeat_minutes"]
    write_json(run_dir / "run.json", record)
    assert settle(run_dir) == ""
    assert read_json(run_dir / "run.json")["surroundings"]["code"]


def test_a_budget_of_money_needs_prices() -> None:
    with pytest.raises(ValueError, match="--prices"):
        dataclasses.replace(RunConfig(), budget_usd=1.0)
