"""Each inference policy on a task that it suits, against what the model began with and against a control.

    .venv/bin/python -m bench.policies [--quick] [--json] [--seed 0] [--run RUNS/RUN]

Votes, examples and the prompt search: the champion of --run (its task and adapter; without one an adapter trained as
in bench/preferences.py), on questions that it was not trained on. The prompt search reads failures on other questions,
and its control is as many prompts by a writer that reads none. Test-time training: on a tenth of the questions. Best
of n and feedback: the base model on small python functions, whose rows publish some of their tests and are scored by
others.
Cost: tokens that go through the model for one question; what questions share counts once. fixed and broken: against
greedy answers, and against the control, where a sign test says whether a policy is worth more than its cost.
"""

import argparse
import copy
import random
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from agent.statistics import paired_test, wilson_interval
from bench.common import finish, machine, percent
from bench.preferences import FRESH_START, Bench
from bench.upper_arm import new_run
from memory.records import content_id, read_json
from memory.store import BASE, RunStore
from tools.engines.models import MODELS_DIR, resolve_embedder
from tools.jobs.job import Job
from tools.refine.best_of_n import best_settings
from tools.refine.feedback import mend_settings
from tools.refine.policy import answer
from tools.refine.prompt_search import NUM_FAILURES, ROUNDS, propose_prompts
from tools.refine.proposal import add_policy
from tools.refine.self_consistency import vote_settings
from tools.refine.test_time_training import training_settings
from tools.tasks.base import Item
from tools.tasks.scoring import ScorerProcess

Json = dict[str, Any]
MODEL = "champion"
CODE_TOKENS = 64
OPERATIONS = {
    "returns x plus {k}": "x + {k}", "returns x times {k}": "x * {k}", "returns x minus {k}": "x - {k}",
    "returns the square of x plus {k}": "x * x + {k}", "returns True if x is greater than {k}, else False": "x > {k}",
    "returns the remainder of x divided by {k}": "x % {k}", "returns the larger of x and {k}": "max(x, {k})",
    "returns the absolute difference of x and {k}": "abs(x - {k})",
}  # fmt: skip


class Place(NamedTuple):
    """A model and questions to ask it."""

    resident: Any
    store: RunStore
    model: str
    questions: list[Item]
    max_new_tokens: int
    tests: list[list[Any]] | None = None


def ask(place: Place, name: str, settings: Json, questions: list[Item] | None = None) -> Json:
    """Return score and cost of a policy; "right" and "rows" hold each answer."""
    items = place.questions if questions is None else questions
    policy = add_policy(place.store, settings)
    before = place.resident.tokens_processed
    texts = [item.question for item in items]
    given = answer(place.resident, place.store, place.model, policy, texts, place.max_new_tokens, place.tests)
    tokens = place.resident.tokens_processed - before
    verdicts = place.resident.scorer.score([(item, one.text) for item, one in zip(items, given, strict=True)])
    right, n = [verdict.right for verdict in verdicts], len(items)
    found = {"policy": name, "score": sum(right) / n, "ci95": wilson_interval(sum(right), n), "n": n}
    rows = [{"question": text, "answer": one.text} for text, one in zip(texts, given, strict=True)]
    sys.stderr.write(f"{name}: {percent(found)} of n={n}, {tokens / n:.1f} tokens a question\n")
    return found | {"tokens": round(tokens / n, 1), "right": right, "rows": rows}


def trained_place(run: Path | None, seed: int, num_items: int, num_questions: int) -> tuple[Place, list[str]]:
    """Return a trained model with fresh questions, and the ids of the datasets that it learned from."""
    if run is None:
        bench = Bench(seed, num_items, num_questions)
        task, resident, store = bench.resident.task, bench.resident, bench.store
        _with_embedder(resident)
        return Place(resident, store, "start", bench.questions, task.max_new_tokens), ["first"]
    source, resident = RunStore(run), new_run(seed)
    _with_embedder(resident)
    store = RunStore(resident.run_dir)
    # A copy: the other run stays as it is.
    shutil.copytree(source.folder("models", source.champion()), store.folder("models", MODEL))
    names = [name for name in source.trained_on(source.champion()) if source.rows("data", name, "train.jsonl")]
    for name in names:
        store.put("data", name, {"kind": "train"}, {"train.jsonl": source.rows("data", name, "train.jsonl")})
    resident.settings["task"] = read_json(run / "run.json")["config"]["task"]
    seen = {row["item_id"] for name in names for row in store.rows("data", name, "train.jsonl")}
    fresh: dict[str, Item] = {}
    for item in resident.task.stream(FRESH_START, 4 * num_questions, seed):
        if len(fresh) < num_questions and item.id not in seen:
            fresh[item.id] = item
    return Place(resident, store, MODEL, list(fresh.values()), resident.task.max_new_tokens), names


def _with_embedder(resident: Any) -> None:
    resident.settings["embedder_dir"] = str(resolve_embedder(MODELS_DIR))


def trained_arms(place: Place, datasets: list[str], quick: bool) -> list[Json]:
    """Return votes, examples and searched prompts, each with the name of its control."""
    arms = [ask(place, "greedy", {})]
    arms += [ask(place, f"vote of {k}", {"choice": vote_settings(k)}) for k in ((4,) if quick else (4, 8, 16))]
    hashes = {name: content_id(place.store.rows("data", name, "train.jsonl")) for name in datasets}
    seeds = [[item.question, item.answer] for item in place.resident.task.seed_examples()]
    for count in (2,) if quick else (2, 4):
        fixed = {"shots": {"kind": "few_shot", "examples": seeds[:count]}}
        near = {"shots": {"kind": "few_shot", "datasets": hashes, "count": count}}
        arms.append(ask(place, f"{count} fixed examples", fixed))
        arms.append(ask(place, f"{count} nearest examples", near) | {"control": f"{count} fixed examples"})
    proposals = 2 if quick else 4
    num_items = 64 if quick else 256
    searched = [search(place, proposals, num_items, reads) for reads in (False, True)]
    arms.append(ask(place, "prompts, no failures read", searched[0]))
    return [*arms, ask(place, "prompt search", searched[1]) | {"control": "prompts, no failures read"}]


def taught_arms(place: Place, datasets: list[str], num_questions: int) -> list[Json]:
    """Return test-time training on few questions, for each is a training; its control shows rows instead."""
    few = place._replace(questions=place.questions[:num_questions])
    hashes = {name: content_id(place.store.rows("data", name, "train.jsonl")) for name in datasets}
    shown = {"shots": {"kind": "few_shot", "datasets": hashes, "count": 4}}
    return [
        ask(few, "fewer questions: greedy", {}),
        ask(few, "4 nearest examples", shown),
        ask(few, "trained on 8 neighbours", {"choice": training_settings(hashes, 8)})
        | {"control": "4 nearest examples"},
    ]


def search(place: Place, proposals: int, num_items: int, reads: bool) -> Json:
    """Return the settings of the best prompt on other questions; reads: whether its writer sees failures."""
    items = place.resident.task.stream(2 * FRESH_START, num_items, 0)
    folder = place.store.run_dir / "jobs" / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    best, system = ask(place, "greedy", {}, items), ""
    for turn in range(ROUNDS):
        wrong = [row for row, right in zip(best["rows"], best["right"], strict=True) if not right and reads]
        told = propose_prompts(Job(folder, place.resident), system, wrong[:NUM_FAILURES], proposals, turn)
        for text in told["systems"]:
            found = ask(place, "proposed", {"system": text}, items)
            if found["score"] > best["score"]:
                best, system = found, text
    return {"system": system} if system else {}


def code_place(num_questions: int, resident: Any, store: RunStore) -> Place:
    """Return the base model with small python functions to write; each row publishes one test of four."""
    chance = random.Random(0)
    items, public = [], []
    for number in range(num_questions):
        words, code = list(OPERATIONS.items())[number % len(OPERATIONS)]
        k = chance.randrange(2, 30)
        body = code.format(k=k)
        tests = [f"assert f({x}) == {eval(body, {'x': x, 'abs': abs, 'max': max})}" for x in (0, 3, 17, 50)]
        question = f"Write a Python function f(x) that {words.format(k=k)}. For example: `{tests[1]}`. Write code only."
        items.append(Item(question, f"def f(x):\n    return {body}", "all", {"tests": tests[2:] + tests[:1]}))
        public.append(tests[1:2])
    scorer = ScorerProcess({"name": "code"}).__enter__()
    coder = copy.copy(resident)  # which counts the tokens
    coder.__dict__["scorer"] = scorer
    return Place(coder, store, BASE, items, CODE_TOKENS, public)


def code_arms(place: Place, quick: bool) -> list[Json]:
    """Return what may look at public tests, beside what costs as much and may not."""
    k = 4 if quick else 8
    return [
        ask(place, "code: greedy", {}),
        ask(place, f"code: vote of {k}", {"choice": vote_settings(k)}),
        ask(place, f"code: best of {k}", {"choice": best_settings(k)}) | {"control": f"code: vote of {k}"},
        ask(place, "code: best of 2", {"choice": best_settings(2)}),
        ask(place, "code: feedback, 1 round", {"choice": mend_settings(1)}) | {"control": "code: best of 2"},
    ]


def compared(arms: list[Json]) -> list[Json]:
    """Return the arms with their gains over the first one and over their control; the answers left out."""
    by_name = {arm["policy"]: arm for arm in arms}
    for arm in arms:
        test = paired_test(arms[0]["right"], arm["right"])
        arm |= {
            "fixed": test.num_fixed,
            "broken": test.num_broken,
            "times": round(arm["tokens"] / arms[0]["tokens"], 2),
        }
        if "control" in arm:
            other = by_name[arm["control"]]
            test = paired_test(other["right"], arm["right"])
            arm |= {"against_control": [test.num_fixed, test.num_broken, test.p_value]}
    return [{key: value for key, value in arm.items() if key not in ("right", "rows")} for arm in arms]


def main() -> None:
    """Measure all policies and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions and policies")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="folder of a run whose champion is asked (default: train one here)")
    arguments = parser.parse_args()
    num_questions = 150 if arguments.quick else 1000
    place, datasets = trained_place(arguments.run, arguments.seed, 256 if arguments.quick else 1024, num_questions)
    arms = compared(trained_arms(place, datasets, arguments.quick))
    arms += compared(taught_arms(place, datasets, 20 if arguments.quick else 100))
    coder = code_place(num_questions // 5, place.resident, place.store)
    arms += compared(code_arms(coder, arguments.quick))
    for scorer in (place.resident.scorer, coder.resident.scorer):
        scorer.__exit__(None, None, None)
    print(f"machine: {machine()}; seed {arguments.seed}; fixed and broken: against greedy")
    print("| policy | right | n | fixed | broken | tokens a question | times greedy | against its control |")
    print("|---|---|---|---|---|---|---|---|")
    for row in arms:
        control = "{}/{} fixed/broken, p={:.2g}".format(*row["against_control"]) if "control" in row else ""
        found = f"{percent(row)} | {row['n']} | {row['fixed']} | {row['broken']} | {row['tokens']} | {row['times']}"
        print(f"| {row['policy']} | {found} | {control} |")
    figures = {"bench": "policies", "quick": arguments.quick, "machine": machine(), "policies": arms}
    finish(figures | {"run": str(arguments.run or ""), "ok": True}, arguments.json)


if __name__ == "__main__":
    main()
