"""A vote of k samples against one greedy answer: what it brings, and what it costs.

    .venv/bin/python -m bench.self_consistency [--quick] [--json] [--seed 0]

The model is an adapter trained as in a run (see bench/preferences.py); questions that no split holds and it never saw.
Cost: tokens that go through the model (a prompt is read once for all its samples) and seconds, per question.
"""

import argparse
import time
from typing import Any

from agent.statistics import paired_test, wilson_interval
from bench.common import finish, machine, percent
from bench.preferences import Bench
from tools.engines.base import Sampling, build_messages
from tools.refine.self_consistency import majority

TEMPERATURE = 0.7


def policy(bench: Bench, num_samples: int) -> dict[str, Any]:
    """Return score and cost of a vote of so many samples; 1 = greedy."""
    engine, task = bench.resident.engine, bench.resident.task
    prompts = [build_messages(item.question, []) for item in bench.questions]
    temperature = TEMPERATURE if num_samples > 1 else 0.0
    before, started = engine.tokens_processed, time.monotonic()
    answers = engine.generate(prompts, Sampling(task.max_new_tokens, num_samples, temperature, bench.seed))
    seconds, tokens = time.monotonic() - started, engine.tokens_processed - before
    pairs = [(item, majority(samples).text) for item, samples in zip(bench.questions, answers, strict=True)]
    right = [verdict.right for verdict in bench.resident.scorer.score(pairs)]
    n = len(right)
    found = {"samples": num_samples, "score": sum(right) / n, "ci95": wilson_interval(sum(right), n), "n": n}
    return found | {"tokens": tokens / n, "milliseconds": 1000 * seconds / n, "right": right}


def main() -> None:
    """Train the model, then ask it greedily and by votes of 4, 16 and 64."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer items")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bench = Bench(arguments.seed, *((256, 200) if arguments.quick else (1024, 1000)))
    trained = bench.arm("supervised", 2)
    policies = [policy(bench, num_samples) for num_samples in ((1, 4) if arguments.quick else (1, 4, 16, 64))]
    bench.resident.scorer.__exit__(None, None, None)
    print(f"machine: {machine()}; seed {arguments.seed}, temperature {TEMPERATURE}")
    print(f"the model was trained on {trained['rows']} rows; fixed and broken: against greedy")
    print("| policy | right | n | fixed | broken | tokens a question | ms a question |")
    print("|---|---|---|---|---|---|---|")
    for row in policies:
        test = paired_test(policies[0]["right"], row["right"])
        row |= {"fixed": test.num_fixed, "broken": test.num_broken}
        name = "greedy" if row["samples"] == 1 else f"vote of {row['samples']}"
        cost = f"{row['tokens']:.1f} | {row['milliseconds']:.0f}"
        print(f"| {name} | {percent(row)} | {row['n']} | {row['fixed']} | {row['broken']} | {cost} |")
    shown = [{key: value for key, value in row.items() if key != "right"} for row in policies]
    figures = {"bench": "self_consistency", "quick": arguments.quick, "machine": machine(), "policies": shown}
    finish(figures | {"ok": True}, arguments.json)


if __name__ == "__main__":
    main()
