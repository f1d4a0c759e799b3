"""Runs whose candidates are no better than the champion: how many promote any of them?

    .venv/bin/python -m bench.referee_null [--quick] [--json] [--runs 5000]

20 candidates a run, at several shares of changed answers, for right-or-wrong and graded scores; the referee's rule
beside accept-if-higher and beside a test at 5 % for each candidate. `ok`: in all settings the upper end of the 95 %
interval of the share of runs with any false promotion is at most 5 %.
"""

import argparse
from typing import Any

import numpy as np

from agent.statistics import ALPHA, alpha_for, sign_test, wilson_interval
from bench.common import finish, percent
from bench.simulated import answers, verdict

NUM_CANDIDATES = 20
NUM_ITEMS = 400
SETTINGS = [(changed, graded) for graded in (False, True) for changed in (0.05, 0.1, 0.2, 0.3)]


def one_run(rng: np.random.Generator, changed: float, graded: bool) -> dict[str, bool]:
    """Return for each rule whether it promoted any of a run's candidates."""
    champion, candidates = answers(rng, NUM_CANDIDATES, NUM_ITEMS, changed, graded=graded)
    rose, fell = (candidates > champion).sum(1), (candidates < champion).sum(1)
    # Until the first promotion, which is all that counts here, every verdict before was a rejection.
    referee = any(
        verdict(champion, candidate, alpha_for([False] * number))[0] for number, candidate in enumerate(candidates)
    )
    each = any(sign_test(int(a), int(b)) <= ALPHA for a, b in zip(rose, fell, strict=True))
    return {
        "referee": referee,
        "each at 5 %": each,
        "accept if higher": bool((candidates.sum(1) > champion.sum()).any()),
    }


def main() -> None:
    """Simulate and print one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 runs a setting")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--runs", type=int, default=5000)
    arguments = parser.parse_args()
    num_runs = 1000 if arguments.quick else arguments.runs
    rows = []
    print(f"{num_runs} runs a line, {NUM_CANDIDATES} candidates that are no better, {NUM_ITEMS} gate items")
    print("| answers changed | scores | referee | a test at 5 % each | accept if higher |")
    print("|---|---|---|---|---|")
    for seed, (changed, graded) in enumerate(SETTINGS):
        rng = np.random.default_rng(seed)
        runs = [one_run(rng, changed, graded) for _ in range(num_runs)]
        row: dict[str, Any] = {"changed": changed, "graded": graded}
        for rule in runs[0]:
            count = sum(run[rule] for run in runs)
            row[rule] = {"score": count / num_runs, "ci95": wilson_interval(count, num_runs)}
        rows.append(row)
        arms = " | ".join(percent(row[rule]) for rule in runs[0])
        print(f"| {100 * changed:.0f} % | {'graded' if graded else 'right or wrong'} | {arms} |", flush=True)
    ok = all(row["referee"]["ci95"][1] <= ALPHA for row in rows)
    finish(
        {"bench": "referee_null", "quick": arguments.quick, "runs": num_runs, "rows": rows, "ok": ok}, arguments.json
    )


if __name__ == "__main__":
    main()
