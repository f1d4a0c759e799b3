"""Random `kill -9` over whole runs: is work lost or repeated, and does every run end as the undisturbed one does?

    .venv/bin/python -m bench.kill [--quick] [--json] [--kills 100] [--default-kills 15] [--seed 0]

First each model's run undisturbed, twice: it must repeat exactly. Then runs with the same seed in which the agent, the
worker, the tool host, or agent and worker are killed, two of three times while a certain tool runs, else at any moment,
and the run is resumed until it ends. Most runs are of a tiny model (see tiny.py), some of the default one.
The folder of a run with which something is wrong stays below runs/.
--quick: 8 kills, tiny model alone. About half a minute a kill on two cores, two with the default model.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from agent.trace import read_events
from bench.common import Json, finish, machine, median
from bench.driven import VICTIMS, Aim, DrivenRun, Kill, damaged_files, outcome
from bench.tiny import make_tiny_model, teach_letters, write_letters_task
from memory.records import write_jsonl

MOST_RESUME_S = 15.0
TINY_STEPS = 10
ROUND = ("generate_data", "curate_data", "finetune_model", "evaluate_model", "note_lesson")


class Scenario(NamedTuple):
    """A run to be killed."""

    name: str
    options: Json
    kills_per_run: int


class Reference(NamedTuple):
    """The undisturbed run."""

    outcome: Json
    tools: dict[int, tuple[str, float]]
    """Step -> its tool and how many seconds it took."""
    wall_s: float


def tiny_scenario(folder: Path, seed: int) -> Scenario:
    """Return two rounds of the tiny model through all tools that work, chosen by a script."""
    model = make_tiny_model(folder / "model")
    teach_letters(model)
    arguments: dict[str, Json] = {
        "generate_data": {
            "num_items": 1024,
            "samples_per_item": 32,
            "temperature": 1.2,
            "prompting": "zero_shot",
        },
        "evaluate_model": {"target": "candidate"},
    }
    # Where a line is not legal as it stands (curation and training offer what fits), the rules choose the arguments.
    script = [{"tool": tool, "arguments": arguments.get(tool, {})} for tool in ROUND] * 2
    write_jsonl(folder / "script.jsonl", script)
    options: Json = {
        "task": write_letters_task(folder),
        "model": str(model),
        "planner": f"scripted:{folder}/script.jsonl",
    }
    options |= {"search_items": 20, "gate_items": 60, "final_items": 20, "max_steps": TINY_STEPS}
    return Scenario("tiny", options | {"budget_tokens": 5_000_000, "dtype": "float32", "seed": seed}, 6)


def default_scenario(folder: Path, seed: int) -> Scenario:
    """Return one round of the default model, up to a verdict, on a task that it learns from one short training."""
    settings = {"start_from": "base", "method": "lora", "learning_rate": 0.001, "schedule": "linear", "epochs": 2}
    script = [{"tool": tool, "arguments": settings if tool == "finetune_model" else {}} for tool in ROUND[:4]]
    write_jsonl(folder / "default.jsonl", script)
    options: Json = {"task": "reasoning_gym:syllogism", "planner": f"scripted:{folder}/default.jsonl"}
    options |= {"search_items": 40, "gate_items": 60, "final_items": 60, "max_steps": len(script)}
    return Scenario("default", options | {"budget_tokens": 1_000_000, "dtype": "float32", "seed": seed}, 4)


def reference_of(scenario: Scenario) -> Reference:
    """Run twice undisturbed; raises SystemExit when these two differ."""
    outcomes = []
    for _ in range(2):
        run = DrivenRun(scenario.options)
        run.drive([])
        assert run.run_dir is not None and not run.problems, run.problems
        outcomes.append(outcome(run.run_dir))
        events = list(read_events(run.run_dir))
        shutil.rmtree(run.runs_dir)
    if differences := differing(*outcomes):
        raise SystemExit(f"undisturbed {scenario.name} runs with the same seed differ in: {differences}")
    began = {event["step"]: event["spent_s"] for event in events if event["kind"] == "tool_started"}
    tools = {
        event["step"]: (event["tool"], event["spent_s"] - began[event["step"]])
        for event in events
        if event["kind"] in ("tool_finished", "tool_failed")
    }
    wall_s = events[-1]["spent_s"]
    verdicts = ["accepted" if row["accepted"] else "rejected" for row in outcomes[0]["verdicts"]]
    print(
        f"{scenario.name}: undisturbed {wall_s:.0f} s, {len(tools)} steps, verdicts {verdicts}, twice the same",
        flush=True,
    )
    return Reference(outcomes[0], tools, wall_s)


def differing(one: Json, other: Json) -> list[str]:
    """Return the parts in which two outcomes differ."""
    return [part for part in one if one[part] != other[part]]


def draw_aims(reference: Reference, count: int, chance: random.Random) -> list[Aim]:
    """Return kills in the order of their steps, each tool as likely as another; a third at any moment."""
    steps_of: dict[str, list[int]] = {}
    for step, (tool, _) in reference.tools.items():
        steps_of.setdefault(tool, []).append(step)
    steps = sorted(chance.choice(steps_of[chance.choice(list(steps_of))]) for _ in range(count))
    aims = []
    for step in steps:
        victim = chance.choice(list(VICTIMS))
        if chance.random() < 1 / 3:
            aims.append(Aim(victim, None, chance.uniform(0, 2 * reference.wall_s / count)))
        else:
            aims.append(Aim(victim, step, chance.uniform(0, reference.tools[step][1])))
    return aims


def killed_run(scenario: Scenario, reference: Reference, count: int, number: int) -> Json:
    """Do one run with so many kills, as far as it lasts, and return what was found."""
    began = time.monotonic()
    run = DrivenRun(scenario.options)
    run.drive(draw_aims(reference, count, random.Random(f"{scenario.name}/{number}")))
    assert run.run_dir is not None
    found: Json = {
        "model": scenario.name,
        "kills": [kill._asdict() for kill in run.kills],
        "wall_s": round(time.monotonic() - began),
        "resume_s": [round(seconds, 1) for seconds in run.resume_s],
        "problems": run.problems,
        "damaged": damaged_files(run.run_dir),
        "differs_in": differing(reference.outcome, outcome(run.run_dir)),
        "orphans": run.orphans(),
        "folder": str(run.runs_dir),
    }
    victims = ", ".join(f"{count} {name}" for name, count in Counter(kill.victim for kill in run.kills).items())
    shown = [f"{scenario.name} {number}", len(run.kills), victims, found["wall_s"]]
    shown += [", ".join(map(str, found["resume_s"]))]
    shown += ["; ".join(found["problems"]), "; ".join(found["damaged"]), ", ".join(found["differs_in"])]
    print("|", " | ".join(map(str, [*shown, found["orphans"]])), "|", flush=True)
    if not any(found[part] for part in ("problems", "damaged", "differs_in", "orphans")):
        shutil.rmtree(run.runs_dir)
    return found


def main() -> None:
    """Kill runs until there were enough kills, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 kills, tiny model alone")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--kills", type=int, default=100, help="of runs of both models together")
    parser.add_argument("--default-kills", type=int, default=15, help="of these, of runs of the default model")
    parser.add_argument("--seed", type=int, default=0, help="of the runs")
    arguments = parser.parse_args()
    num_default = 0 if arguments.quick else arguments.default_kills
    num_tiny = 8 if arguments.quick else arguments.kills - num_default
    print(f"machine: {machine()}")
    rows: list[Json] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = [(tiny_scenario(Path(folder), arguments.seed), num_tiny)] if num_tiny else []
        wanted += [(default_scenario(Path(folder), arguments.seed), num_default)] if num_default else []
        for scenario, num_kills in wanted:
            reference = reference_of(scenario)
            print("| run | kills | of | wall, s | resume to work, s | problems | damaged | differs in | orphans |")
            print("|---|---|---|---|---|---|---|---|---|")
            done = number = 0
            while done < num_kills:
                rows.append(killed_run(scenario, reference, min(scenario.kills_per_run, num_kills - done), number))
                done, number = done + len(rows[-1]["kills"]), number + 1
    finish(figures_of(rows) | {"quick": arguments.quick, "seed": arguments.seed}, arguments.json)


def figures_of(rows: list[Json]) -> Json:
    """Return the sums and print them."""
    kills = [Kill(**kill) for row in rows for kill in row["kills"]]
    resume_s = [seconds for row in rows for seconds in row["resume_s"]]
    repeated = sum("written again" in problem for row in rows for problem in row["problems"])
    lost = sum("lost" in problem for row in rows for problem in row["problems"])
    damaged = sum(len(row["damaged"]) for row in rows)
    same = sum(not row["differs_in"] for row in rows)
    typical = median(resume_s) if resume_s else None
    print(f"{len(kills)} kills: {dict(Counter(kill.victim for kill in kills))}")
    print(f"under way: {dict(Counter(kill.under_way for kill in kills).most_common())}")
    print(f"finished work repeated: {repeated}; files lost: {lost}; half-written: {damaged}")
    print(f"runs that ended as the undisturbed one: {same} of {len(rows)}")
    if resume_s:
        print(f"resume to work: median {typical:.1f} s, longest {max(resume_s):.1f} s, of {len(resume_s)} resumes")
    clean = all(not row["problems"] and not row["damaged"] and not row["orphans"] for row in rows)
    figures = {"bench": "kill", "machine": machine(), "num_kills": len(kills), "median_resume_s": typical}
    figures |= {"repeated": repeated, "lost": lost, "half_written": damaged, "same": same, "rows": rows}
    quick_enough = typical is not None and typical <= MOST_RESUME_S
    return figures | {"ok": clean and same == len(rows) and quick_enough}


if __name__ == "__main__":
    main()
