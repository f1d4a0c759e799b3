"""The methods of acquisition against plain generate_data: from one adapter, at about equal token cost, trained alike.

    .venv/bin/python -m bench.acquire [--quick] [--json] [--seeds 0] [--methods self_play magpie] [--teacher URL#MODEL]

A first adapter of the default task learns from few-shot answers, as in a run; it is kept in runs/acquire-start-* and
used again. Each method makes data from there until it has taken --tokens, one right row of each question that at most
90 % of the samples agree on is trained on (two passes, the first data rehearsed), and the result answers the same fresh
questions, which no arm saw. The control is generate_data. "labels right" is measured here alone, by calculating what
the questions ask for. rationalise and from_documents need data of a user's and play_games is another skill, so they
have no arm; distil_answers has one with --teacher. --quick: a tenth of the tokens, a smaller first adapter, 100
questions, one seed.
"""

import argparse
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.config import DEFAULT_TASK, RunConfig
from agent.statistics import paired_gain, paired_test, wilson_interval
from bench.common import ROOT, finish, fresh_folder, machine, percent, points
from memory.records import read_json, write_json
from memory.store import BASE, RunStore
from tools.acquire.distil_answers import ask_teacher
from tools.acquire.evolve_questions import evolve
from tools.acquire.generate_data import sample_items
from tools.acquire.magpie import ask_as_users
from tools.acquire.sampling import TEMPERATURE
from tools.acquire.self_instruct import instruct
from tools.acquire.self_play import play
from tools.acquire.teacher import keep_teacher
from tools.acquire.vote_labels import label_items
from tools.acquire.write_programs import write_and_run
from tools.contract import Json, ToolError
from tools.engines.base import Sampling, build_messages
from tools.engines.models import DEFAULT_MODEL, resolve_model
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.optimize.sft_worker import train
from tools.select.curate_data import HIGHEST_PASS_RATE
from tools.tasks.base import Item, SplitSizes

FRESH_START = 5_000_000
"""Where in the training stream the questions of the evaluation are taken from."""
SETTINGS: Json = {"start_from": "latest", "method": "lora", "learning_rate": 0.001, "schedule": "linear", "epochs": 2}
LEAST_ROWS = 16
NUM_QUESTIONS, FIRST_ITEMS = 400, 512
CONTROL = "generate_data"
VOTED = {"samples_per_item": 8, "reward": "agreement"}
METHODS: dict[str, tuple[Callable[..., Json], Json]] = {
    CONTROL: (sample_items, {"num_items": 64, "samples_per_item": 32, "temperature": 1.2}),
    "vote_labels": (label_items, {"num_items": 64, "samples_per_item": 16, "least_agreement": 0.5}),
    "self_play": (play, VOTED | {"num_drafts": 256}),
    "self_instruct": (instruct, VOTED | {"num_drafts": 128}),
    "self_instruct, judged": (instruct, VOTED | {"num_drafts": 128, "reward": "model"}),
    "evolve_questions": (evolve, VOTED | {"num_items": 64}),
    "magpie": (ask_as_users, VOTED | {"num_drafts": 128, "prompting": "few_shot"}),
    "write_programs": (write_and_run, {"num_drafts": 32, "samples_per_item": 4}),
    "distil_answers": (ask_teacher, {"num_items": 64, "samples_per_item": 1, "shots": True, "temperature": 0.0}),
}
"""What one call of each method gets; it is called until the tokens are taken."""
MOST_CALLS = 200
_SUM = re.compile(r"-?\d+(?:\s*[-+]\s*\d+)+")


class Arms:
    """One seed: where all arms start, and the questions of the evaluation."""

    def __init__(self, seed: int, num_questions: int, num_first: int, teacher: str) -> None:
        self.seed, self.teacher = seed, teacher
        self.start = _start_adapter(seed, num_first)
        resident = Resident(self.start)
        self.engine, self.task, self.scorer = resident.engine, resident.task, resident.scorer
        held_out = set(read_json(self.start / "referee" / "evaluation_ids.json"))
        fresh: dict[str, Item] = {}
        for item in self.task.stream(FRESH_START, 4 * num_questions, seed):
            if len(fresh) < num_questions and held_out.isdisjoint(item.keys):
                fresh[item.id] = item
        self.questions = list(fresh.values())
        asked = held_out | {key for item in self.questions for key in item.keys}
        write_json(self.start / "referee" / "asked.json", sorted(asked))  # no arm trains on what is asked here
        self.right_at_start = self.score(RunStore(self.start).model_dir("start"))

    def score(self, model_dir: Path | None) -> list[bool]:
        """Return which greedy answers are right."""
        self.engine.use_model(model_dir)
        prompts = [build_messages(item.question, []) for item in self.questions]
        answers = self.engine.generate(prompts, Sampling(self.task.max_new_tokens))
        pairs = [(item, samples[0].text) for item, samples in zip(self.questions, answers, strict=True)]
        return [verdict.right for verdict in self.scorer.score(pairs)]

    def run(self, method: str, budget_tokens: int) -> Json:
        """Make data with a method, train on it and answer the questions."""
        run_dir = self._folder()
        resident = Resident(run_dir)
        resident.__dict__ |= {"engine": self.engine, "local_engine": self.engine, "task": self.task}
        resident.__dict__["scorer"] = self.scorer
        store = RunStore(run_dir)
        tokens = self._produce(resident, method, budget_tokens)
        made = [dataset["id"] for dataset in store.datasets("samples") if dataset["id"] not in self._first_samples]
        right = [row for name in made for row in store.rows("data", name, "right.jsonl")]
        kept = {row["item_id"]: row for row in right if row["pass_rate"] <= HIGHEST_PASS_RATE["not_too_easy"]}
        rows, model = list(kept.values()), method.split(",")[0]
        labels = [found for row in rows if (found := calculated(row)) is not None]
        figures: Json = {"method": method, "tokens": tokens, "rows": len(rows)}
        figures |= {"labels_right": sum(labels), "labels": len(labels)}
        answers = self.right_at_start
        if len(rows) >= LEAST_ROWS:
            store.put("data", "second", {"kind": "train"}, {"train.jsonl": rows})
            train(_job(resident, "training"), model, SETTINGS, "start", ["second"], ["first"], self.seed)
            answers = self.score(store.model_dir(model))
        return figures | {"trained": len(rows) >= LEAST_ROWS, "right": answers}

    @property
    def _first_samples(self) -> set[str]:
        return {dataset["id"] for dataset in RunStore(self.start).datasets("samples")}

    def _folder(self) -> Path:
        """Return a new run with the first adapter and its data."""
        run_dir = Path(fresh_folder())
        for name in ("models", "data"):
            shutil.copytree(self.start / name, run_dir / name)
        shutil.copy(self.start / "worker.json", run_dir)
        write_json(run_dir / "referee" / "evaluation_ids.json", read_json(self.start / "referee" / "asked.json"))
        if self.teacher:
            keep_teacher(RunStore(run_dir), self.teacher)
        return run_dir

    def _produce(self, resident: Resident, method: str, budget_tokens: int) -> int:
        work, options = METHODS[method]
        before, start = resident.tokens_processed, 10_000  # behind the items of the first adapter
        for number in range(MOST_CALLS):
            args: Json = {"model": "start", "shots": False, "temperature": TEMPERATURE, "seed": self.seed}
            args |= {"start": start} | ({} if method == CONTROL else {"method": method.split(",")[0]})
            args |= {"teacher": self.teacher.partition("#")[2]} if method == "distil_answers" else {}
            try:
                made = work(_job(resident, f"making-{number}"), **args | options)
            except ToolError as problem:
                print(f"{method}: {problem}")
                break
            manifest = RunStore(resident.run_dir).get("data", made["dataset"]) or {}
            start = manifest["next_index"] + ("num_items" not in options)  # else the same call again
            if resident.tokens_processed - before >= budget_tokens:
                break
        return resident.tokens_processed - before


def calculated(row: Json) -> bool | None:
    """Return whether a row's answer is what the sum or difference in its question amounts to; None without one."""
    found = _SUM.search(row["prompt"])
    if found is None or row["difficulty"] in ("deduction", "abduction", "induction"):
        return None
    terms = re.findall(r"[-+]?\d+", found[0].replace(" ", ""))
    return str(sum(map(int, terms))) == row["completion"].strip().rstrip(".")


def _job(resident: Resident, name: str) -> Job:
    folder = resident.run_dir / "jobs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Job(folder, resident)


def _start_adapter(seed: int, num_items: int) -> Path:
    """Return the folder of a run with a model "start" that learned from few-shot answers, made once."""
    folder = ROOT / "runs" / f"acquire-start-{seed}-{num_items}"
    store = RunStore(folder)
    if store.get("models", "start") is not None:
        return folder
    model_dir = resolve_model(DEFAULT_MODEL, ROOT / "models")
    settings = {"model_dir": str(model_dir), "engine": "transformers", "dtype": "auto", "system_prompt": ""}
    write_json(folder / "worker.json", settings | {"task": DEFAULT_TASK, "seed": seed})
    resident, config = Resident(folder), RunConfig()
    splits = resident.task.splits(SplitSizes(config.search_items, config.gate_items, config.final_items), seed)
    held_out = {key for items in splits for item in items for key in item.keys}
    write_json(folder / "referee" / "evaluation_ids.json", sorted(held_out))
    args = {"model": BASE, "start": 0, "num_items": num_items, "samples_per_item": 32, "temperature": 1.2}
    made = sample_items(_job(resident, "first"), **args, shots=True, seed=seed)
    rows = {row["item_id"]: row for row in store.rows("data", made["dataset"], "right.jsonl")}
    store.put("data", "first", {"kind": "train"}, {"train.jsonl": list(rows.values())})
    train(_job(resident, "start"), "start", SETTINGS | {"start_from": "base"}, BASE, ["first"], [], seed)
    resident.scorer.__exit__(None, None, None)
    return folder


def arms_of(seed: int, methods: list[str], budget_tokens: int, num_questions: int, teacher: str) -> list[Json]:
    """Return the arms of one seed, the control first, each against it."""
    arms = Arms(seed, num_questions, FIRST_ITEMS if num_questions == NUM_QUESTIONS else FIRST_ITEMS // 4, teacher)
    start = {"method": "where all arms start", "tokens": 0, "rows": 0, "labels_right": 0, "labels": 0, "trained": False}
    found = [start | {"right": arms.right_at_start}, *map(partial(arms.run, budget_tokens=budget_tokens), methods)]
    arms.scorer.__exit__(None, None, None)
    control = found[1]["right"]
    for arm in found:
        right = arm.pop("right")
        arm |= {"seed": seed, "n": len(right), "score": sum(right) / len(right)}
        test = paired_test(control, right)
        arm |= {"ci95": wilson_interval(sum(right), len(right)), "fixed": test.num_fixed, "broken": test.num_broken}
        arm["gain"], *arm["gain_ci95"] = paired_gain(test.num_fixed, test.num_broken, len(right))
    return found


def main() -> None:
    """Run all arms for each seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens, 100 questions, one seed")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, default=400_000, help="of each arm's data")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all that need nothing of a user's")
    parser.add_argument("--teacher", default="", metavar="URL#MODEL", help="for the arm distil_answers")
    options = parser.parse_args()
    wanted = options.methods or [name for name in METHODS if name != "distil_answers" or options.teacher]
    methods = [CONTROL, *(name for name in wanted if name != CONTROL)]
    seeds, tokens, num_questions = options.seeds, options.tokens, NUM_QUESTIONS
    if options.quick:
        seeds, tokens, num_questions = seeds[:1], tokens // 10, 100
    arms = [arm for seed in seeds for arm in arms_of(seed, methods, tokens, num_questions, options.teacher)]
    print(f"machine: {machine()}; gain: against {CONTROL}, points with 95 % interval")
    print("| seed | method | tokens of data | rows | labels right | score | n | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for arm in arms:
        labels = f"{arm['labels_right']}/{arm['labels']}" if arm["labels"] else "-"
        gain = points(arm["gain"], arm["gain_ci95"])
        untrained = "" if arm["trained"] or not arm["tokens"] else f" (fewer than {LEAST_ROWS} rows: not trained)"
        cost = f"{arm['tokens']} | {arm['rows']}{untrained} | {labels}"
        print(f"| {arm['seed']} | {arm['method']} | {cost} | {percent(arm)} | {arm['n']} | {gain} |")
    controls = [arm for arm in arms if arm["method"] == CONTROL]
    ok = all(arm["trained"] for arm in controls) and len(arms) == len(seeds) * (1 + len(methods))
    finish({"bench": "acquire", "quick": options.quick, "machine": machine(), "arms": arms, "ok": ok}, options.json)


if __name__ == "__main__":
    main()
