"""Data that a user brings (`--data`): what is read, refused, checked and trained on, and that nothing comes without it.

The Hugging Face path is tested on folders and files, which `datasets` streams alike; the hub itself is not reached.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from agent.config import DEFAULT_TASK, from_mapping
from agent.follow import follow, follow_text
from agent.planners.fixed import RulesPlanner
from agent.trace import read_events
from memory.records import content_id, read_json
from memory.store import RunStore
from tests.test_curation import JobsHere, curate, embedder, job, referee_of
from tests.test_run import WORDS, finish, flags, only_run, program, write_task
from tests.test_run import copy_task as copy_task
from tools.acquire.data_source import (
    MOST_CHARACTERS,
    MOST_LINE_BYTES,
    keep_source,
    parse_source,
    read_source,
    read_sources,
    source_text,
)
from tools.contract import Jobs, Json, Judge, ToolContext, ToolError
from tools.engines.publish import model_card
from tools.host import offers
from tools.jobs.job import Job
from tools.registry import load_tools
from tools.tasks.base import normalise

__all__ = ["embedder", "flags", "job"]
REPO = Path(__file__).resolve().parents[1]
ADDITIONS = [{"prompt": f"What is {a} plus {a + 1}?", "completion": str(2 * a + 1)} for a in range(200, 300)]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def context_of(job: Job, referee: Judge | None = None) -> ToolContext:
    jobs = cast(Jobs, JobsHere(job))
    return ToolContext(RunStore(job.run_dir), jobs, cast(Judge, referee), 0, DEFAULT_TASK)


def bring(job: Job, rows: list[Json], path: Path, options: str = "") -> str:
    """Put rows into the run as `start` does; returns the id of the source."""
    (source,) = read_sources([f"{write(path, *rows)}{options}"], set())
    return str(keep_source(RunStore(job.run_dir), source)["id"])


def test_columns_are_mapped_and_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"question": "1 + 1?", "answer": 2, "other": None},
        "{not json",
        "",
        {"question": "2 + 2?"},
        {"question": "  ", "answer": "4"},
        {"question": "q" * MOST_CHARACTERS, "answer": "long"},
        '{"question": "x", "answer": "' + "y" * MOST_LINE_BYTES + '"}',
        ["a list"],
        {"question": "half \ud800", "answer": "x"},
        {"question": " 3 + 3? ", "answer": "6"},
        "[" * 100_000,
    )
    manifest, rows = read_source(f"{path}?prompt=question&completion=answer&licence=mit")
    assert rows == [
        {"place": "line 1", "prompt": "1 + 1?", "completion": "2"},
        {"place": "line 10", "prompt": "3 + 3?", "completion": "6"},
    ]
    assert (manifest["num_rows"], manifest["num_broken"], manifest["num_huge"]) == (2, 6, 2)
    assert [text.split(":")[0] for text in manifest["broken"]] == ["line 2", "line 4", "line 5"]
    assert manifest["licence"] == "mit" and manifest["source"].startswith(str(path))
    said = source_text(manifest | {"num_held_out": 0})
    assert "2 rows, licence mit" in said and "6 broken (line 2: is not valid JSON" in said and "2 longer" in said


def test_at_most_so_many_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", "broken", *ADDITIONS)
    assert [row["place"] for row in read_source(f"{path}?rows=2").rows] == ["line 2", "line 3"]


def test_a_conversation_of_one_message_is_a_text(tmp_path: Path) -> None:
    said = {"prompt": [{"role": "user", "content": "Hi?"}], "completion": [{"role": "assistant", "content": "Ho"}]}
    path = write(tmp_path / "mine.jsonl", said, said | {"prompt": said["prompt"] * 2})
    manifest, rows = read_source(str(path))
    assert rows == [{"place": "line 1", "prompt": "Hi?", "completion": "Ho"}]
    assert manifest["num_broken"] == 1


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "as from the hub"])
def test_parquet_is_streamed(tmp_path: Path, as_folder: bool) -> None:
    from datasets import Dataset

    columns = {"q": ["1 + 1?", None, "3 + 3?"], "a": ["2", "4", "6"], "picture": [b"x", b"y", b"z"]}
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.parquet"
    Dataset.from_dict(columns).to_parquet(str(path))
    spec = f"{path.parent if as_folder else path}?prompt=q&completion=a&rows=5"
    manifest, rows = read_source(spec)
    assert [row["place"] for row in rows] == ["row 1", "row 3"]
    assert manifest["num_broken"] == 1 and manifest["broken"][0].startswith("row 2: 'q' must be text")
    with pytest.raises(ValueError, match=r"no column 'qq'; did you mean 'q'\? it has q, a, picture"):
        read_source(spec.replace("prompt=q", "prompt=qq"))
    if as_folder:
        with pytest.raises(ValueError, match=r"cannot be read .*split"):
            read_source(f"{spec}&split=nothing")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", "", "is empty; write one row per line"),
        ("nonsense\nmore\n", "", r"no usable row: 2 broken and 0 too long; correct them:\n  line 1: is not valid JSON"),
        ('{"prompts": "a", "completion": "b"}\n', "", r"no column 'prompt'; did you mean 'prompts'\?.*\?prompt=COLUMN"),
        ('{"prompt": "a", "answer": "b"}\n', "", "no column 'completion'; it has prompt, answer"),
        (json.dumps({"prompt": "a" * MOST_CHARACTERS, "completion": "b"}), "", "all 1 rows are longer than"),
        ("{}", "?promt=a", "unknown option .*'promt'; did you mean 'prompt'"),
        ("{}", "?rows=many", "rows='many' is not a whole number above 0"),
        (
            '{"prompt": "a", "completion": null}\n',
            "",
            "no usable row: 1 broken .*\n  line 1: 'completion' must be text",
        ),
        ("{}", "?rows", "--data .* is not of the form key=value"),
    ],
)
def test_bad_input_is_refused_with_the_cure(tmp_path: Path, content: str, options: str, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_source(f"{tmp_path / 'mine.jsonl'}{options}")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path / "answers.jsonl", *ADDITIONS)
    write(tmp_path / "answers.csv", "a,b")
    for name, message in {
        "answer.jsonl": r"there is no file .*did you mean '.*answers\.jsonl'",
        "answers.csv": r"a file is one of \.jsonl, \.ndjson, \.parquet; convert it",
        "no/such/place": "there is no file",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_source(str(tmp_path / name))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"torn\.parquet cannot be read"):
        read_source(str(tmp_path / "torn.parquet"))
    with pytest.raises(ValueError, match=r"nobody/nothing cannot be read .*a downloaded \.parquet file works"):
        read_source("nobody/nothing")


def test_the_agent_reads_without_importing_torch(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ADDITIONS).to_parquet(str(tmp_path / "mine.parquet"))
    code = (
        "import sys\nfrom tools.acquire.data_source import read_sources\n"
        "(source,) = read_sources([sys.argv[1]], set())\n"
        "assert not {'torch', 'datasets'} & set(sys.modules)\nprint(len(source.rows))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "mine.parquet")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "100", done.stderr


def test_what_is_held_out_never_reaches_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *ADDITIONS)
    held_out = {content_id(normalise(row["prompt"])) for row in ADDITIONS[:98]}
    ((manifest, rows),) = read_sources([f"{path}"], held_out)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ADDITIONS[98:]]
    assert (manifest["num_rows"], manifest["num_held_out"]) == (2, 98)
    with pytest.raises(ValueError, match="every row is an evaluation item"):
        read_sources([f"{path}?rows=98"], held_out)


def test_without_data_there_is_nothing_to_import(job: Job) -> None:
    context = context_of(job)
    assert load_tools()["import_data"].legal(context) is None
    assert {offer["tool"] for offer in offers(load_tools(), context)} == {"generate_data"}
    with pytest.raises(ToolError, match="no source"):
        load_tools()["import_data"](context, source="s1")


def test_a_source_is_offered_once_and_not_while_something_waits(job: Job, tmp_path: Path) -> None:
    context, tool = context_of(job), load_tools()["import_data"]
    first = bring(job, ADDITIONS, tmp_path / "one.jsonl")
    second = bring(job, ADDITIONS[:50], tmp_path / "two.jsonl")
    assert tool.legal(context) == {"source": [first, second]}
    menu: Any = [{"tool": offer["tool"], "description": "", "arguments": offer["grid"]} for offer in
                 offers(load_tools(), context)]  # fmt: skip
    assert RulesPlanner().decide("", menu, 1)["args"] == {"source": first}
    tool(context, source=first)
    assert tool.legal(context) == {"source": [second]}
    RunStore(job.run_dir).put("data", "d1", {"kind": "train"}, {"train.jsonl": []})
    assert tool.legal(context) is None


def test_the_scorer_drops_what_it_knows_to_be_wrong(job: Job, tmp_path: Path) -> None:
    right, wrong = job.resident.task.stream(0, 2, 0)
    rows = [
        {"prompt": right.question.upper(), "completion": right.answer},
        {"prompt": wrong.question, "completion": "12345"},
        ADDITIONS[0],
    ]
    source = bring(job, rows, tmp_path / "mine.jsonl", "?licence=cc0")
    found = load_tools()["import_data"](context_of(job), source=source)
    job.resident.scorer.__exit__(None, None, None)
    counts = {"num_rows": 2, "num_checked": 2, "num_wrong": 1, "num_held_out": 0}
    assert found == {"dataset": found["dataset"]} | counts
    store = RunStore(job.run_dir)
    manifest = store.get("data", found["dataset"]) or {}
    assert (manifest["kind"], manifest["licence"]) == ("imported", "cc0") and str(tmp_path) in manifest["source"]
    samples = store.rows("data", found["dataset"], "samples.jsonl")
    assert [row["verdict"] for row in samples] == ["right", "wrong", "unchecked"]
    assert [row["difficulty"] for row in samples] == [right.difficulty, wrong.difficulty, "imported"]
    assert [row["place"] for row in store.rows("data", found["dataset"], "right.jsonl")] == ["line 1", "line 3"]
    refused = follow_text(follow(job.run_dir, samples[1]["example_id"]))
    assert "line 2 of" in refused and "the scorer says wrong" in refused and "never trained on" in refused


def test_imported_rows_pass_the_filters_and_are_followed(job: Job, tmp_path: Path) -> None:
    source = bring(job, [*ADDITIONS, ADDITIONS[3]], tmp_path / "mine.jsonl", "?licence=mit")
    imported = load_tools()["import_data"](context_of(job), source=source)["dataset"]
    referee = referee_of(job, ADDITIONS[7]["prompt"], "Please tell me, what is 290 plus 291?")
    result = curate(job, referee)
    assert result["rejected"]["evaluation_exact"] == 1 and result["rejected"]["exact_duplicate"] == 1
    assert result["rejected"]["evaluation_paraphrase"] == 1
    store = RunStore(job.run_dir)
    rows = store.rows("data", result["dataset"], "train.jsonl")
    assert len(rows) == result["num_examples"] == 98
    assert {(row["source"].split("/")[-1], row["model"]) for row in rows} == {("mine.jsonl?licence=mit", "mine.jsonl")}
    assert (store.get("data", result["dataset"]) or {})["sources"] == [imported]
    for name in (rows[0]["id"], result["dataset"], imported, source):
        assert "mine.jsonl" in follow_text(follow(job.run_dir, name))
    made = {"parent": "base", "dataset": result["dataset"], "datasets": [result["dataset"]], "num_examples": 98}
    store.put("models", "m1", made | {"settings": {"method": "lora"}})
    record = {"config": {"model": "m", "task": "t"}, "run": "r", "identity": {"model": "f"}}
    card = model_card(record, store, "m1", None, False, "float32")
    assert "It also learned from 98 rows of `mine.jsonl` (licence: mit)." in card


def test_the_setting_is_a_list_of_specs() -> None:
    assert from_mapping({"data": ["a.jsonl", "org/name?split=test"]}).data == ("a.jsonl", "org/name?split=test")
    assert from_mapping({}).to_json()["data"] == []


def test_a_run_learns_from_a_file_without_its_evaluation_items(flags: list[str], tmp_path: Path) -> None:
    task = write_task(tmp_path / "words.jsonl", lambda text: f"Repeat after me: {text}")
    data = f"{tmp_path / 'words.jsonl'}?prompt=question&completion=answer&licence=cc0"
    code, _, said = finish(program("start", *flags, "--task", task, "--data", data))
    assert code == 0, said
    assert "data words.jsonl: 240 rows, licence cc0; left out: 60 evaluation items" in said
    run_dir = only_run(tmp_path)
    store, events = RunStore(run_dir), list(read_events(run_dir))
    decided = [event["action"]["tool"] for event in events if event["kind"] == "decided"]
    assert decided[:3] == ["import_data", "curate_data", "finetune_model"]
    (kept,) = [row for row in store.all("data") if row["kind"] == "source"]
    held_out = set(read_json(run_dir / "referee" / "evaluation_ids.json"))
    prompts = [row["prompt"] for row in store.rows("data", kept["id"], "rows.jsonl")]
    assert len(prompts) == 300 - 60 and WORDS.split()[0] in " ".join(prompts)
    assert not {content_id(normalise(prompt)) for prompt in prompts} & held_out
    code, _, said = finish(program("start", *flags, "--data", str(tmp_path / "word.jsonl")))
    assert code == 2 and "did you mean" in said and "words.jsonl" in said
