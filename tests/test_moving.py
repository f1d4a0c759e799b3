"""Where a run's files lie: paths in its record that were moved, files that are missing, and specs without folders."""

from pathlib import Path
from typing import Any

import pytest

from agent.config import RunConfig
from agent.moving import check_places, moved_record, read_places, without_folders

PLACES = {"/old": "/new", "/old/models": "/m"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/old", "/new"),
        ("/old/task.jsonl", "/new/task.jsonl"),
        ("/older/task.jsonl", "/older/task.jsonl"),
        ("/old/models/x", "/m/x"),
        ("jsonl:/old/a.jsonl?scorer=python:/old/s.py", "jsonl:/new/a.jsonl?scorer=python:/new/s.py"),
        ("jsonl:/x/a.jsonl?scorer=python:/old/My%20Tasks/s.py", "jsonl:/x/a.jsonl?scorer=python:/new/My%20Tasks/s.py"),
        ("scripted:/old/plan.jsonl", "scripted:/new/plan.jsonl"),
        ("/old/R&D/m?x", "/new/R&D/m?x"),
        ("chat:openai:/old/qwen", "chat:openai:/old/qwen"),
        ("http://host/old/v1#m", "http://host/old/v1#m"),
        ("reasoning_gym:chain_sum?min_terms=2&max_terms=2", "reasoning_gym:chain_sum?min_terms=2&max_terms=2"),
        ("rules", "rules"),
    ],
)
def test_paths_of_a_record_are_where_they_are_now(before: str, after: str) -> None:
    record = {"config": {"x": before, "n": 3, "none": None, "list": [before, 1]}, "all": ["/old/a", "/old/models"]}
    moved = {"config": {"x": after, "n": 3, "none": None, "list": [after, 1]}, "all": ["/new/a", "/m"]}
    assert moved_record(record, PLACES) == moved


def test_two_folders_may_change_places() -> None:
    assert moved_record({"/a/x": "/b/y"}, {"/a": "/b", "/b": "/a"}) == {"/b/x": "/a/y"}


def test_a_place_that_the_run_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="--moved /elsewhere"):
        moved_record({"config": {"model": "/old/m"}}, {"/elsewhere": "/new"})


@pytest.mark.parametrize("pair", ["/old", "rules=/q", "/=/mnt", "/old=", "=/new", ""])
def test_places_that_are_none_are_refused(pair: str) -> None:
    with pytest.raises(ValueError, match="write OLD=NEW"):
        read_places([pair])


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "jsonl:{there}/a.jsonl?scorer=python:{there}/My%20Tasks/s.py"},
        {"task": "jsonl:{there}/a.jsonl?pattern=/(\\w+)&scorer=regex"},
        {"planner": "chat:openai:/models/qwen"},
        {"model": "{there}/R&D"},
        {"model": "Qwen/Qwen3-0.6B", "task": "reasoning_gym:chain_sum?min_terms=2"},
    ],
)
def test_what_is_there_is_not_called_missing(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "My Tasks").mkdir()
    (tmp_path / "R&D").mkdir()
    for name in ("a.jsonl", "My Tasks/s.py"):
        (tmp_path / name).touch()
    check_places("r", config_of(tmp_path, settings))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"task": "jsonl:{there}/gone.jsonl?scorer=exact"}, "gone.jsonl"),
        ({"task": "jsonl:{there}/?gold={there}/gold%20set.jsonl&scorer=judge:self"}, "gold set.jsonl"),
        ({"planner": "scripted:{there}/plan.jsonl"}, "plan.jsonl"),
        ({"model": "{there}/model"}, "model"),
        ({"models_dir": "{there}/gone/models"}, "gone"),
    ],
)
def test_what_is_missing_is_named_with_the_cure(tmp_path: Path, settings: dict[str, str], missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing}, which run r needs.*--moved .*{missing}=PATH"):
        check_places("r", config_of(tmp_path, settings))


def test_a_spec_is_the_same_wherever_its_files_lie() -> None:
    def parts(folder: str, quoted: str) -> Any:
        spec = f"jsonl:{folder}/a.jsonl?scorer=python:{quoted}/s.py&max_new_tokens=9"
        return without_folders(spec, [f"{folder}/a.jsonl", f"{folder}/s.py"])

    assert parts("/x", "/x") == parts("/My Tasks", "/My%20Tasks")
    assert parts("/x", "/x") != without_folders(
        "jsonl:/x/b.jsonl?scorer=python:/x/s.py&max_new_tokens=9", ["/x/b.jsonl"]
    )


def config_of(folder: Path, settings: dict[str, str]) -> RunConfig:
    return RunConfig(**{name: value.replace("{there}", str(folder)) for name, value in settings.items()})  # type: ignore[arg-type]
