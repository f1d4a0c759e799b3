"""The upper arm of the default run: the same trainer on gold answers, which no run may do.

    .venv/bin/python -m bench.upper_arm [--quick] [--json] [--arms 800x1 800x2 800x4 1600x1 1600x2 3200x1] [--seed 0]

An arm is examples x epochs. Shows what perfect data would bring, and whether examples seen again teach as much as new
ones: final score, by the kind of answer, and training time. --quick: 200x1.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from agent.config import DEFAULT_TASK, RunConfig
from agent.statistics import wilson_interval
from bench.common import ROOT, finish, fresh_folder, machine, percent
from memory.records import write_json
from memory.store import BASE, RunStore
from tools.engines.base import Sampling, build_messages
from tools.engines.models import DEFAULT_MODEL, resolve_model
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.optimize.sft_worker import train
from tools.tasks.base import Item, Splits, SplitSizes

SETTINGS = {"start_from": "base", "method": "lora", "learning_rate": 0.001, "schedule": "linear"}


ARMS = [(800, 1), (800, 2), (800, 4), (1600, 1), (1600, 2), (3200, 1)]


def read_arm(text: str) -> tuple[int, int]:
    """Return examples and epochs of an arm, written 800x2."""
    num_examples, _, epochs = text.partition("x")
    return int(num_examples), int(epochs)


def gold_rows(task: Any, held_out: set[str], num_examples: int, seed: int) -> list[dict[str, str]]:
    """Return distinct training questions with their gold answers, in the order of the training stream."""
    items: dict[str, Item] = {}
    index = 0
    while len(items) < num_examples:
        if index > 50 * num_examples:
            raise SystemExit(
                f"the stream has only {len(items)} distinct items; lower the examples of --arms below that"
            )
        for item in task.stream(index, num_examples, seed):
            if item.id not in held_out and len(items) < num_examples:
                items.setdefault(item.id, item)
        index += num_examples
    return [{"prompt": item.question, "completion": item.answer} for item in items.values()]


def kind(item: Item) -> str:
    """Return the difficulty and the sign of the answer."""
    return f"{item.difficulty}, {'negative' if item.answer.startswith('-') else 'positive'}"


def new_run(seed: int) -> Resident:
    """Return what a worker holds in a new run of the default task."""
    run_dir = Path(fresh_folder())
    model_dir = resolve_model(DEFAULT_MODEL, ROOT / "models")
    settings = {"model_dir": str(model_dir), "engine": "transformers", "dtype": "auto", "system_prompt": ""}
    write_json(run_dir / "worker.json", settings | {"task": DEFAULT_TASK, "seed": seed})
    return Resident(run_dir)


def measure(resident: Resident, splits: Splits, num_examples: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train on gold answers and return the final score with what it cost."""
    held_out = {item.id for split in splits for item in split}
    store, name = RunStore(resident.run_dir), f"gold-{num_examples}x{epochs}"
    rows = gold_rows(resident.task, held_out, num_examples, seed)
    store.put("data", name, {"kind": "train"}, {"train.jsonl": rows})
    folder = resident.run_dir / "jobs" / name
    folder.mkdir(parents=True)
    started = time.monotonic()
    train(Job(folder, resident), name, SETTINGS | {"epochs": epochs}, BASE, [name], [], seed)
    train_s = time.monotonic() - started
    resident.engine.use_model(store.model_dir(name))
    prompts = [build_messages(item.question, []) for item in splits.final]
    answers = resident.engine.generate(prompts, Sampling(resident.task.max_new_tokens))
    pairs = [(item, samples[0].text) for item, samples in zip(splits.final, answers, strict=True)]
    groups: dict[str, list[bool]] = {}
    for item, verdict in zip(splits.final, resident.scorer.score(pairs), strict=True):
        groups.setdefault(kind(item), []).append(verdict.right)
    num_right = sum(map(sum, groups.values()))
    return {
        "examples": num_examples,
        "epochs": epochs,
        "train_s": train_s,
        "score": num_right / len(pairs),
        "ci95": wilson_interval(num_right, len(pairs)),
        "n": len(pairs),
        "by_kind": {name: [sum(right), len(right)] for name, right in sorted(groups.items())},
    }


def main() -> None:
    """Train once per number of examples, from the base model, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one arm, 200x1")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--arms", type=read_arm, nargs="+", default=ARMS, metavar="EXAMPLESxEPOCHS")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = RunConfig()
    resident = new_run(arguments.seed)
    sizes = SplitSizes(config.search_items, config.gate_items, config.final_items)
    splits = resident.task.splits(sizes, arguments.seed)
    wanted = [(200, 1)] if arguments.quick else arguments.arms
    arms = [measure(resident, splits, num_examples, epochs, arguments.seed) for num_examples, epochs in wanted]
    resident.scorer.__exit__(None, None, None)
    print(f"machine: {machine()}; gold answers, seed {arguments.seed}, {SETTINGS}")
    print("| examples | epochs | final score | n | training s | right by kind |")
    print("|---|---|---|---|---|---|")
    for arm in arms:
        kinds = "; ".join(f"{name} {right}/{total}" for name, (right, total) in arm["by_kind"].items())
        print(f"| {arm['examples']} | {arm['epochs']} | {percent(arm)} | {arm['n']} | {arm['train_s']:.0f} | {kinds} |")
    figures = {"bench": "upper_arm", "quick": arguments.quick, "machine": machine(), "arms": arms, "ok": True}
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
