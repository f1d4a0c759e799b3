"""Preferences against more supervised passes: both go on from the same adapter, on the same rows, at equal cost.

    .venv/bin/python -m bench.preferences [--quick] [--json] [--seeds 0 1]

A first adapter learns from few-shot answers, as in a run; its own samples are the rows of all arms. Measured on fresh
questions of the training stream that no arm saw and no evaluation split holds. Equal cost: the last arm makes as many
passes as give it the tokens of the dearest preference arm (its reference's forward pass at a third); a token costs both
about the same, and unlike seconds tokens do not depend on what else the machine does. --quick: fewer items, one seed.
"""

import argparse
from typing import Any

from agent.config import RunConfig
from agent.statistics import paired_test, wilson_interval
from bench.common import finish, machine, percent
from bench.upper_arm import new_run
from memory.records import write_json
from memory.store import BASE, RunStore
from tools.acquire.generate_data import sample_items
from tools.engines.base import Sampling, build_messages
from tools.jobs.job import Job
from tools.optimize import dpo_worker, sft_worker
from tools.select.curate_data import HIGHEST_PASS_RATE
from tools.tasks.base import Item, SplitSizes

FRESH_START = 5_000_000
"""Where in the training stream the questions of the evaluation are taken from."""
SETTINGS = {"start_from": "latest", "method": "lora", "schedule": "linear"}
RATES = {"supervised": 0.001, "preferences": 0.0001, "preferences, higher rate": 0.0005}

Json = dict[str, Any]


class Bench:
    """One seed: a run folder without an agent, the questions, the first adapter and the rows that it sampled."""

    def __init__(self, seed: int, num_items: int, num_questions: int) -> None:
        self.seed, self.resident = seed, new_run(seed)
        self.store = RunStore(self.resident.run_dir)
        config = RunConfig()
        splits = self.resident.task.splits(SplitSizes(config.search_items, config.gate_items, config.final_items), seed)
        held_out = {key for items in splits for item in items for key in item.keys}
        write_json(self.resident.run_dir / "referee" / "evaluation_ids.json", sorted(held_out))
        self._freeze("first", self._sample(BASE, 0, num_items // 2, shots=True), 1.0)
        self._train(sft_worker.train, "start", BASE, ["first"], [], 0.001, 2)
        self.num_rows = self._freeze(
            "second", self._sample("start", num_items, num_items, shots=False), HIGHEST_PASS_RATE["not_too_easy"]
        )
        self.questions = self._fresh_questions(num_questions, held_out)

    def arm(self, name: str, passes: int) -> Json:
        """Train one arm from the first adapter and answer the questions."""
        train = sft_worker.train if name == "supervised" else dpo_worker.train
        model = f"{name}-{passes}".replace(", ", "-").replace(" ", "-")
        told = self._train(train, model, "start", ["second"], ["first"], RATES[name], passes)
        cost = {"tokens": (self.store.get("models", model) or {})["num_tokens"], "train_s": told["train_s"]}
        return {"arm": name, "passes": passes, "rows": told["num_examples"]} | cost | self.score(model)

    def score(self, model: str) -> Json:
        """Return the share of right greedy answers with its interval."""
        self.resident.engine.use_model(self.store.model_dir(model))
        prompts = [build_messages(item.question, []) for item in self.questions]
        answers = self.resident.engine.generate(prompts, Sampling(self.resident.task.max_new_tokens))
        pairs = [(item, samples[0].text) for item, samples in zip(self.questions, answers, strict=True)]
        right = [verdict.right for verdict in self.resident.scorer.score(pairs)]
        found = {"score": sum(right) / len(right), "ci95": wilson_interval(sum(right), len(right)), "n": len(right)}
        return found | {"right": right}

    def _sample(self, model: str, start: int, num_items: int, shots: bool) -> str:
        args = {"model": model, "start": start, "num_items": num_items, "samples_per_item": 32, "temperature": 1.2}
        return str(sample_items(self._job(f"sampling-{model}"), shots=shots, seed=self.seed, **args)["dataset"])

    def _freeze(self, name: str, generation: str, highest_pass_rate: float) -> int:
        """Put one right answer of each item that is hard enough into a dataset; returns how many."""
        rows = {row["item_id"]: row for row in self.store.rows("data", generation, "right.jsonl")}
        kept = [row for row in rows.values() if row["pass_rate"] <= highest_pass_rate]
        self.store.put("data", name, {"kind": "train"}, {"train.jsonl": kept})
        return len(kept)

    def _train(
        self, train: Any, model: str, parent: str, datasets: list[str], rehearse: list[str], rate: float, passes: int
    ) -> Json:
        settings = SETTINGS | {"learning_rate": rate, "epochs": passes}
        told: Json = train(self._job(model), model, settings, parent, datasets, rehearse, self.seed)
        return told

    def _job(self, name: str) -> Job:
        folder = self.resident.run_dir / "jobs" / name
        folder.mkdir(parents=True, exist_ok=True)
        return Job(folder, self.resident)

    def _fresh_questions(self, count: int, held_out: set[str]) -> list[Item]:
        samples = [data["id"] for data in self.store.all("data") if data["kind"] == "samples"]
        seen = {row["item_id"] for name in samples for row in self.store.rows("data", name, "samples.jsonl")}
        fresh: dict[str, Item] = {}
        for item in self.resident.task.stream(FRESH_START, 4 * count, self.seed):
            if len(fresh) < count and item.id not in seen and held_out.isdisjoint(item.keys):
                fresh[item.id] = item
        return list(fresh.values())


def arms_of(bench: Bench) -> list[Json]:
    """Return the arms of one seed: supervised as a run trains, preferences, supervised at the cost of those."""
    start = {"arm": "where all arms start", "passes": 0, "rows": 0, "tokens": 0, "train_s": 0.0} | bench.score("start")
    short = bench.arm("supervised", 2)
    pairs = [bench.arm(name, 1) for name in RATES if name != "supervised"]
    dearest = max(arm["tokens"] for arm in pairs)
    passes = max(3, round(2 * dearest / short["tokens"]))
    arms = [start, short, *pairs, bench.arm("supervised", passes)]
    for arm in arms:
        test = paired_test(arms[-1]["right"], arm["right"])
        arm |= {"fixed": test.num_fixed, "broken": test.num_broken, "p_value": test.p_value}
    bench.resident.scorer.__exit__(None, None, None)
    return [{key: value for key, value in arm.items() if key != "right"} | {"seed": bench.seed} for arm in arms]


def main() -> None:
    """Run all arms for each seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer items, one seed")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    sizes = (256, 200) if arguments.quick else (1024, 1000)
    arms = [arm for seed in seeds for arm in arms_of(Bench(seed, *sizes))]
    print(f"machine: {machine()}; fixed and broken: against the last arm")
    print("| seed | arm | passes | rows | trained tokens | training s | fresh questions right | n | fixed | broken |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for arm in arms:
        cost = f"{arm['rows']} | {arm['tokens']} | {arm['train_s']:.0f}"
        found = f"{percent(arm)} | {arm['n']} | {arm['fixed']} | {arm['broken']}"
        print(f"| {arm['seed']} | {arm['arm']} | {arm['passes']} | {cost} | {found} |")
    figures = {"bench": "preferences", "quick": arguments.quick, "machine": machine(), "arms": arms, "ok": True}
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
