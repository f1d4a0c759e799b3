"""The command line: what each command prints and returns, its errors and exit codes. No model is loaded.

Not covered here: whole runs through `start` and `resume` (see the tests of the loop), what the worker does for `try`
and `doctor --rebuild`, and Ctrl-C at a terminal.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import commands
from agent.config import RunConfig
from agent.state import StopReason
from memory.records import write_json
from memory.store import RunStore
from run_agent import main
from tests.test_views import BAD, GOOD, RIGHT, SAMPLES, end_run, held, make_run
from tools.contract import ToolError
from tools.engines.publish import export_model, model_card
from tools.jobs.job import Job

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs")


class Cli:
    """Runs commands in this process on the runs of a test."""

    def __init__(self, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.runs_dir, self.capsys = runs_dir, capsys

    def __call__(self, *argv: str, runs_dir: bool = True) -> tuple[int, str, str]:
        code = main([*argv, *(["--runs-dir", str(self.runs_dir)] if runs_dir else [])])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def json(self, *argv: str, runs_dir: bool = True) -> Any:
        code, out, _ = self(*argv, "--json", runs_dir=runs_dir)
        assert code == 0
        return json.loads(out)


@pytest.fixture
def cli(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(run_dir.parent, capsys)


def run_program(*argv: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "run_agent.py", *argv]
    return subprocess.run(
        command, cwd=REPO, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


# --- as a program


@pytest.mark.parametrize(("argv", "code"), [((), 0), (("--help",), 0), (("tools", "list"), 0), (("lsit",), 2)])
def test_exit_codes_of_the_program(argv: tuple[str, ...], code: int) -> None:
    done = run_program(*argv)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) is (code == 0)


def test_commands_that_read_import_nothing_heavy(run_dir: Path) -> None:
    heavy = ("torch", "transformers", "langgraph", "chromadb", "numpy", "pydantic", "reasoning_gym", "httpx", "rich")
    lines = [["tools", "list"], ["status"], ["list"], ["trace", "show"], ["follow", run_dir.name, RIGHT], ["doctor"]]
    calls = [line + (["--runs-dir", str(run_dir.parent)] if line[0] != "tools" else []) for line in lines]
    program = (
        f"import sys; from run_agent import main\nassert not any([main(line) for line in {calls!r}])\n"
        f"found = {{name.split('.')[0] for name in sys.modules}} & set({heavy!r})\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_reading_is_no_error(run_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "run_agent.py", "trace", "show", "--runs-dir", str(run_dir.parent)]
        done = subprocess.run(command, cwd=REPO, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- bad input


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["statsu"], "unknown command 'statsu'; did you mean 'status'?"),
        (["trace", "shwo"], "unknown command 'shwo'; did you mean 'show'?"),
        (["trace"], "the following arguments are required: COMMAND"),
        (["start", "--bugdet-minutes", "3"], "unknown option '--bugdet-minutes'; did you mean '--budget-minutes'?"),
        (["start", "--budget=3"], "unknown option '--budget'"),
        (["start", "--seed", "one"], "invalid int value: 'one'"),
        (["start", "--seed", "1", "extra"], "unknown argument 'extra'"),
        (["start", "--planner", "rule"], "did you mean 'rules'?"),
        (["start", "--planner", "scripted:none.jsonl"], "there is no such file"),
        (["start", "--task", "reasoning_gym:chain_sums"], "did you mean 'chain_sum'?"),
        (["start", "--config", "none.toml"], "there is no such file"),
        (["start", "--tools", "none.py"], "there is no such file"),
        (["tools", "list", "generat_data"], "unknown tool 'generat_data'; did you mean 'generate_data'?"),
        (["doctor", "--rebuild"], "--rebuild needs the name of a run"),
    ],
)
def test_bad_input_names_the_nearest_and_exits_with_2(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if argv[0] == "start":
        argv = [*argv, "--runs-dir", str(tmp_path)]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert said in captured.err
    assert not list(tmp_path.iterdir()), "bad input leaves no run behind"


def test_an_unknown_key_of_a_toml_file_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text("bugdet_minutes = 3\n")
    assert main(["start", "--config", str(tmp_path / "run.toml")]) == 2
    assert "did you mean 'budget_minutes'?" in capsys.readouterr().err


def test_unknown_and_foreign_runs(cli: Cli, run_dir: Path) -> None:
    code, _, err = cli("status", run_dir.name[:-1])
    assert code == 2 and f"did you mean '{run_dir.name}'?" in err
    (run_dir.parent / "notes").mkdir()
    code, _, err = cli("trace", "show", "notes")
    assert code == 2 and "is no run (it has no run.json)" in err
    write_json(run_dir / "run.json", json.loads((run_dir / "run.json").read_text()) | {"format": 99})
    for command in (["status"], ["resume"], ["export"], ["follow"], ["doctor"]):
        rest = {"export": ["dir"], "follow": ["x"]}.get(command[0], [])
        code, _, err = cli(*command, run_dir.name, *rest)
        assert code == 2 and "was written by a newer version (format 99" in err


def test_a_file_of_another_kind_in_place_of_run_json(cli: Cli, run_dir: Path) -> None:
    for text, said in (("[1]", "is not what a run begins with"), ("{", "is not valid JSON")):
        (run_dir / "run.json").write_text(text)
        code, _, err = cli("status", run_dir.name)
        assert code == 2 and said in err


def test_no_run_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(tmp_path / "none", capsys)
    assert cli("status")[0] == 2 and cli("resume")[0] == 2
    assert "no runs yet" in cli("list")[1] and cli.json("list") == []


# --- start and resume


def test_every_setting_is_an_option_of_start(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["start", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for setting in dataclasses.fields(RunConfig):
        assert f"--{setting.name.replace('_', '-')} " in text
    assert "items on which the referee accepts or rejects (default: 600)" in text


@pytest.mark.parametrize(
    ("reason", "code"), [("plateau", 0), ("budget", 0), ("failed", 1), ("waiting", 3), ("user_stopped", 130)]
)
def test_the_reason_of_the_end_gives_the_exit_code(reason: str, code: int) -> None:
    assert commands.ended({"stop_reason": reason}).code == code


def test_resuming_a_finished_run_gives_its_report(cli: Cli, run_dir: Path) -> None:
    report = cli.json("resume", run_dir.name)
    assert report["stop_reason"] == "plateau" and report["final"]["n"] == 400


def test_resume_needs_something_to_resume(cli: Cli, run_dir: Path) -> None:
    code, _, err = cli("resume")
    assert code == 2 and "waits to be resumed" in err


def test_resume_takes_the_newest_run_that_can_be_resumed(cli: Cli, run_dir: Path) -> None:
    older = make_run(run_dir.parent, "20260101-000000", ended=StopReason.USER_STOPPED)
    config = json.loads((older / "run.json").read_text())
    config["config"]["model"] = "./none"
    write_json(older / "run.json", config)
    code, _, err = cli("resume")
    assert code == 2 and "'./none'" in err


# --- look at runs


def test_status_trace_list_and_follow_as_json(cli: Cli, run_dir: Path) -> None:
    status = cli.json("status")
    assert status["state"] == "finished" and status["search"] == {"score": 0.22, "ci95": [0.1, 0.4], "n": 128}
    assert [row["run"] for row in cli.json("list")] == [run_dir.name]
    assert [event["seq"] for event in cli.json("trace", "show")] == list(range(1, 11))
    assert {event["step"] for event in cli.json("trace", "show", "--step", "1")} == {1}
    assert cli.json("follow", run_dir.name, SAMPLES)["num_right"] == 3
    code, out, _ = cli("trace", "tail", "--json")
    assert code == 0 and [json.loads(line)["seq"] for line in out.splitlines()] == list(range(1, 11))


def test_text_answers(cli: Cli, run_dir: Path) -> None:
    assert "finished" in cli("list")[1]
    assert "champion" in cli("status", str(run_dir))[1]
    assert "plateau" in cli("trace", "tail")[1]
    assert "came from" in cli("follow", run_dir.name, GOOD)[1]
    code, _, err = cli("follow", run_dir.name, "nothing")
    assert code == 2 and "has no example, question, dataset, model, policy, evaluation, job or call 'nothing'" in err


def test_what_a_model_wrote_cannot_steer_the_terminal(cli: Cli) -> None:
    out = cli("trace", "show", "--step", "1")[1]
    assert "evil" in out and "\x1b" not in out


def test_tools_and_tasks(cli: Cli, tmp_path: Path) -> None:
    tools = cli.json("tools", "list", runs_dir=False)
    assert {"generate_data", "finetune_model"} <= {tool["name"] for tool in tools}
    code, out, _ = cli("tools", "list", "generate_data", runs_dir=False)
    assert (
        code == 0 and "prompting: zero_shot, few_shot, policy (default zero_shot)" in out and "curate_data [" not in out
    )
    tasks = cli.json("tasks", "list", runs_dir=False)
    assert "chain_sum" in tasks["reasoning_gym"] and "composite" in tasks["refused"]
    assert "jsonl" in cli("tasks", "list", runs_dir=False)[1]


# --- doctor


def test_doctor_of_a_good_run(cli: Cli, run_dir: Path) -> None:
    code, out, _ = cli("doctor", run_dir.name)
    assert code == 0 and "PROBLEM" not in out and "is finished, not locked" in out
    assert all(check["level"] != "PROBLEM" for check in cli.json("doctor"))


def test_doctor_names_damaged_and_half_written_files(cli: Cli, run_dir: Path) -> None:
    (run_dir / "events.jsonl").open("a").write('nonsense\n{"torn')
    (run_dir / "models" / GOOD / "model.json").write_bytes(b"\xff\x00")
    (run_dir / "data" / "half").mkdir()
    (run_dir / "data" / "half" / ".train.jsonl.7.tmp").touch()
    with held(run_dir / "run.lock"):
        code, out, _ = cli("doctor", run_dir.name)
    assert code == 1
    for said in (
        "damaged    events.jsonl line 11",
        "events.jsonl ends in a torn line",
        f"unreadable models/{GOOD}/model.json: ",
        "data/half has no manifest.json",
        ".train.jsonl.7.tmp was being written",
        "locked by a process",
        f"a process works on run {run_dir.name}",
    ):
        assert said in out


def test_doctor_compares_rows_and_weights_with_what_was_written(cli: Cli, run_dir: Path) -> None:
    RunStore(run_dir).put("data", "d9", {"kind": "train"}, {"train.jsonl": [{"id": "r1"}]})
    (run_dir / "models" / GOOD / "adapter_model.safetensors").write_bytes(b"weights")
    write_json(run_dir / "referee" / "models.json", {GOOD: "another"})
    (run_dir / "data" / "d9" / "train.jsonl").write_text("")
    code, out, _ = cli("doctor", run_dir.name)
    assert code == 1 and out.count("PROBLEM damaged") == 2
    assert "train.jsonl is not what was written" in out and f"{GOOD} are not those that were written" in out


def test_rebuild_refuses_a_run_that_never_worked(cli: Cli, run_dir: Path) -> None:
    code, _, err = cli("doctor", run_dir.name, "--rebuild")
    assert code == 2 and "ended before it loaded its model" in err


# --- try and export


def with_base_model(run_dir: Path, model: Path) -> None:
    """Make a folder the base model of a run."""
    from tools.engines.models import fingerprint

    record = json.loads((run_dir / "run.json").read_text())
    record["identity"]["model"] = fingerprint(model)
    write_json(run_dir / "run.json", record)
    write_json(run_dir / "worker.json", {"model_dir": str(model), "system_prompt": ""})


def test_export_refuses(cli: Cli, run_dir: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").touch()
    for target in (full, full / "thesis.txt"):
        code, _, err = cli("export", run_dir.name, str(target))
        assert code == 2 and "is not an empty folder" in err
    code, _, err = cli("export", run_dir.name, str(tmp_path / "new"))
    assert code == 2 and "ended before it loaded its model" in err
    verdict = next(path for path in (run_dir / "evals").glob("*/record.json") if '"accepted": true' in path.read_text())
    verdict.unlink()
    code, _, err = cli("export", run_dir.name, str(tmp_path / "new"))
    assert code == 2 and "has no accepted model" in err
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


def test_try_and_export_leave_a_live_run_alone(cli: Cli, run_dir: Path, tmp_path: Path) -> None:
    fake = tmp_path / "base"
    write_json(fake / "config.json", {})
    with_base_model(run_dir, fake)
    with held(run_dir / "run.lock"):
        for argv in (["try", run_dir.name, "1 + 1 ="], ["export", run_dir.name, str(tmp_path / "new")]):
            code, _, err = cli(*argv)
            assert code == 2 and "is being worked on by another process" in err
    write_json(fake / "config.json", {"other": "model"})
    code, _, err = cli("try", run_dir.name, "1 + 1 =")
    assert code == 2 and "does not hold the base model" in err
    assert not (run_dir / "jobs").exists()


def test_the_model_card(run_dir: Path) -> None:
    store, record = RunStore(run_dir), json.loads((run_dir / "run.json").read_text())
    final = json.loads((run_dir / "report.json").read_text())["final"]
    card = model_card(record, store, GOOD, final, adapter_only=False, dtype="bfloat16")
    front, body = card.removeprefix("---\n").split("\n---\n")
    assert front.splitlines()[0] == 'base_model: "smollm2-135m"' and 'library_name: "transformers"' in front
    for said in (
        "| final | champion | 25.0 % | 12.5 to 50.0 | 400 |",
        "| search | champion | 22.0 % | 10.0 to 40.0 | 128 |",
        f"| {GOOD} | base |",
        "accepted (76 fixed, 3 broken of n=400)",
        "merged in float32, saved as bfloat16",
        "evaluated with dtype bfloat16, engine transformers",
        "AutoModelForCausalLM.from_pretrained(",
    ):
        assert said in body
    card = model_card(record, store, BAD, None, adapter_only=True, dtype="float32")
    assert 'library_name: "peft"' in card and "is not opened yet" in card and "PeftModel" in card
    assert [line.split(" | ")[0] for line in card.splitlines() if "learning_rate" in line] == [f"| {GOOD}", f"| {BAD}"]


def test_the_exported_weights_are_base_plus_adapter(run_dir: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    source = run_dir / "models" / GOOD
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(source))
    job = Job(run_dir / "jobs" / "export", SimpleNamespace(settings={"model_dir": str(tiny_model)}))
    tokens = torch.tensor([[1, 50, 60, 2]])
    for dtype in ("float32", "bfloat16"):
        written = export_model(job, GOOD, str(tmp_path / dtype), False, dtype)
        assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(written["files"])
        merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype="auto")
        assert str(merged.dtype) == f"torch.{dtype}"
        if dtype == "float32":
            assert torch.allclose(merged(tokens).logits, adapted(tokens).logits, atol=1e-5)
    export_model(job, GOOD, str(tmp_path / "adapter"), True, "float32")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (source / "adapter_config.json").unlink()
    with pytest.raises(ToolError, match="was trained in full and has no adapter"):
        export_model(job, GOOD, str(tmp_path / "other"), True, "float32")


def test_status_of_runs_that_stopped_early(cli: Cli, run_dir: Path) -> None:
    failed = make_run(run_dir.parent, "20260303-000000", ended=StopReason.FAILED)
    code, out, _ = cli("status")
    assert code == 0 and "JobFailedError: no memory" in out and f"resume {failed.name}" in out
    end_run(failed, StopReason.PLATEAU)
    assert "finished" in cli("status")[1]


def test_options_of_start_reach_the_config() -> None:
    flags = dict(commands.config_options())
    assert flags["--tools"]["action"] == "append" and flags["--budget-minutes"]["type"] is float
    with pytest.raises(ValueError, match="--search-items 3 is too few"):
        commands.start(Namespace(config=None, search_items=3, json=False))
