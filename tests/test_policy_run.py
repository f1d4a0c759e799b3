"""A whole run in which a policy becomes part of the champion: start, report, status, follow, try and export.

The model is taught to say "y", the right answer, in 8 of 20 cases, and "xa" to "xl" in one each: the greedy
answer begins with the likelier x, and a vote of several samples finds the most frequent text.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.views import side_by_side
from bench.tiny import teach
from memory.records import read_json, write_jsonl
from memory.store import GREEDY, RunStore
from run_agent import main
from tests.test_run import finish, program

ANSWERS = ["y"] * 8 + [f"x{letter}" for letter in "abcdefghijkl"]
SCRIPT = [{"tool": "vote_on_answers", "arguments": {"samples": 16}}]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished run of one step, whose vote was accepted. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("policy")
    shutil.copytree(tiny_model, folder / "model")

    def draw(chance: random.Random) -> tuple[str, str]:
        return f"say {chance.randrange(500)}", chance.choice(ANSWERS)

    teach(folder / "model", draw, 120)
    rows = [{"question": f"say {number}", "answer": "y", "difficulty": "all"} for number in range(300)]
    write_jsonl(folder / "say.jsonl", rows)
    write_jsonl(folder / "script.jsonl", SCRIPT)
    task = f"{folder / 'say.jsonl'}?scorer=exact&generated=true&max_new_tokens=4"
    sizes = ["--search-items", "20", "--gate-items", "40", "--final-items", "20", "--budget-tokens", "3000000"]
    where = ["--runs-dir", str(folder / "runs"), "--model", str(folder / "model"), "--dtype", "float32"]
    chosen = ["--planner", f"scripted:{folder / 'script.jsonl'}", "--tools", "vote_on_answers", "--max-steps", "1"]
    code, report, said = finish(program("start", "--task", task, *chosen, *sizes, *where, "--json"))
    assert (code, report["accepted"], report["champion"]) == (0, 1, "base"), said
    assert "times the" in said and "self_consistency" in said
    return Path(folder / "runs" / report["run"])


def cli(capsys: pytest.CaptureFixture[str], run_dir: Path, *argv: str) -> str:
    assert main([*argv, "--runs-dir", str(run_dir.parent)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def final_of(run_dir: Path) -> dict[str, Any]:
    return dict(read_json(run_dir / "report.json")["final"])


def test_the_final_evaluation_is_of_model_and_policy(run_dir: Path) -> None:
    final, policy = final_of(run_dir), RunStore(run_dir).champion_policy()
    assert final["policy"] == policy != GREEDY and "champion_greedy" not in final
    assert final["champion"]["score"] > final["base_zero_shot"]["score"] + 0.3
    assert final["champion"]["tokens_per_question"] > 1.5 * final["base_zero_shot"]["tokens_per_question"]


def test_people_see_the_policy_its_cost_and_where_it_came_from(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = RunStore(run_dir).champion_policy()
    assert f"asked by policy {policy} (self_consistency)" in cli(capsys, run_dir, "status", run_dir.name)
    told = cli(capsys, run_dir, "follow", run_dir.name, policy)
    assert told.startswith(f"policy {policy}: self_consistency, proposed for model base in place of policy greedy")
    assert "gate split: ACCEPTED" in told and "tokens a question" in told
    cli(capsys, run_dir, "report", run_dir.name)
    page = (run_dir / "report.html").read_text()
    assert "Inference policies" in page and f'id="policy-{policy}"' in page and "ACCEPTED" in page
    assert "policy" in cli(capsys, run_dir, "trace", "show", run_dir.name)


def test_try_answers_by_the_policy(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(cli(capsys, run_dir, "try", run_dir.name, "say 7", "--json"))
    greedy, voted = told["answers"]
    assert (greedy["policy"], voted["kind"]) == (GREEDY, "self_consistency")
    assert greedy["text"].startswith("x") and voted["tokens_processed"] > greedy["tokens_processed"]
    assert "by self_consistency" in side_by_side(told["answers"])


def test_export_carries_the_policy_along(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli(capsys, run_dir, "export", run_dir.name, str(tmp_path / "out"))
    policy = read_json(tmp_path / "out" / "policy.json")
    assert policy["settings"]["choice"] == {"kind": "self_consistency", "samples": 16, "temperature": 0.7}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Inference policy" in card and "most frequent" in card and "times what greedy" in card
    weights, readme = (tmp_path / "out" / name for name in ("model.safetensors", "README.md"))
    assert weights.stat().st_mode == readme.stat().st_mode, "who may read the card may read the weights"
