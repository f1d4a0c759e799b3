"""Games of several turns: the environment, whose turns are kept, and kills."""

import json
from pathlib import Path
from typing import Any

import pytest

from memory.store import RunStore
from tests.test_acquisition import ARGS, KilledJob, manifest_of, rows_of
from tests.test_acquisition import new_job as new_job
from tests.test_run import Flags, finish, only_run, program
from tests.test_run import copy_task as copy_task
from tests.test_run import flags as flags
from tools.acquire.environments import GuessNumber
from tools.acquire.play_games import play
from tools.engines.base import Message
from tools.jobs.job import Job
from tools.registry import load_tools

PLAY = ARGS | {"method": "play_games", "environment": "guess_number", "num_seeds": 40, "samples_per_item": 4}


def halving(history: str) -> int:
    """Return the middle of what can still be."""
    low, high = 1, 31
    for line in history.splitlines():
        guess, _, answer = line.partition(" -> ")
        low = int(guess) + 1 if answer == "Higher." else low
        high = int(guess) - 1 if answer == "Lower." else high
    return (low + high) // 2


def test_halving_the_range_finds_every_number() -> None:
    for seed in range(60):
        game, history, score = GuessNumber(), "", 0.0
        game.reset(seed=seed)
        over = False
        while not over:
            guess = halving(history)
            said, reward, terminated, truncated, _ = game.step(f"I say {guess}!")
            history += f"{guess} -> {said}\n"
            score, over = score + reward, terminated or truncated
        assert score == 1.0


def test_what_is_no_number_costs_a_turn() -> None:
    game = GuessNumber()
    assert game.reset(seed=1) == game.reset(seed=1)
    answers = [game.step(action) for action in ("", "3 or 4", "-", "9" * 50, "none")]
    assert {answer[:3] for answer in answers} == {("That is not one number.", 0.0, False)}
    assert [answer[3] for answer in answers] == [False] * 4 + [True]


def player(chat: list[Message], number: int) -> str:
    """Play well, but for games that begin in the upper half, where moves are no numbers."""
    lines = chat[-1]["content"].splitlines()
    history = "\n".join(line for line in lines if " -> " in line)
    return "well ..." if history.startswith("16 -> Higher") else str(halving(history))


def test_the_turns_of_won_games_are_kept(new_job: Any) -> None:
    job: Job = new_job(player)
    made = play(job, **PLAY)
    rows = rows_of(job, made)
    games = {(row["seed"], row["game"]): row for row in rows}
    assert made["num_games"] == len(games) == 160
    lost = [row for row in rows if row["verdict"] == "lost"]
    assert lost and not any(row["right"] for row in lost)
    assert {row["num_turns"] for row in lost} == {5}
    assert all(row["right"] and row["pass_rate"] == 1.0 for row in rows if row["verdict"] == "won")
    won = sum(row["verdict"] == "won" for row in games.values())
    assert made["mean_score"] == round(won / 160, 4) and 0 < won < 160
    later = next(row for row in rows if row["turn"] == 1 and row["right"])
    assert "16 -> Lower." in later["prompt"] and "-> Yes" not in later["prompt"]
    assert len({(row["item_id"], row["sample"], row["chunk"]) for row in rows}) == len(rows)
    assert manifest_of(job, made)["num_tokens"] == len(rows)


def test_a_killed_game_goes_on_after_its_last_chunk(new_job: Any) -> None:
    whole: Job = new_job(player)
    made = play(whole, **PLAY)
    written = rows_of(whole, made)
    (whole.run_dir / "data" / made["dataset"] / "manifest.json").unlink()
    killed: Job = new_job(player)
    with pytest.raises(KeyboardInterrupt):
        play(KilledJob(killed.folder, killed.resident), **PLAY)
    assert play(Job(killed.folder, killed.resident), **PLAY) == made and rows_of(killed, made) == written
    assert killed.resident.engine.tokens_processed == whole.resident.engine.tokens_processed


def test_methods_that_find_nothing_do_not_say_that_the_task_is_too_hard(flags: Flags, tmp_path: Path) -> None:
    """In a whole run, where the worker is locked in: the tiny model wins no game and asks nothing sensible."""
    steps = [
        {"tool": "play_games", "arguments": {"environment": "guess_number", "num_seeds": 64}},
        {"tool": "magpie", "arguments": {"num_drafts": 256, "prompting": "few_shot", "reward": "agreement"}},
    ]
    script = tmp_path / "plan.jsonl"
    script.write_text("".join(json.dumps(step) + "\n" for step in steps))
    named = ["--tools", "play_games", "--tools", "magpie", "--planner", f"scripted:{script}"]
    code, report, said = finish(program("start", *flags, *named, "--max-steps", "2"))
    assert code == 0, said
    assert (report["stop_reason"], report["steps"]) == ("steps", 2)
    made = {dataset["method"]: dataset for dataset in RunStore(only_run(tmp_path)).datasets("samples")}
    assert made["play_games"]["num_games"] == 256 and made["play_games"]["num_tokens"] > 0
    assert "magpie" in made


def test_it_is_offered_by_name() -> None:
    tool = load_tools(("play_games",))["play_games"]
    assert tool.optional and tool.section == "environment interaction"
    assert tool.grid["environment"] == ["guess_number"] and "play_games" not in load_tools()
