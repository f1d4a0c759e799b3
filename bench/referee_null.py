"""Runs whose candidates are no better than the champion: how many promote any of them?

    .venv/bin/python -m bench.referee_null [--quick] [--json] [--runs 5000]

20 candidates a run, at several shares of changed answers; in the last lines three of them gain 10 points for real and
may become the champion. Graded scores are tested by their direction (runs compare right or wrong). Beside the
referee's rule: accept-if-higher, and a test at 5 % for each candidate. `ok`: in all settings the upper end of the 95 %
interval of the share of runs with any false promotion is at most 5 %.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from agent.statistics import ALPHA, alpha_for, sign_test, wilson_interval
from bench.common import finish, percent
from bench.simulated import candidates_of, first_champion, verdict

NUM_CANDIDATES = 20
NUM_ITEMS = 400
TRULY_BETTER, TRUE_GAIN = (0, 5, 10), 0.1
SETTINGS = [(changed, graded, False) for graded in (False, True) for changed in (0.05, 0.1, 0.2, 0.3)]
SETTINGS += [(changed, False, True) for changed in (0.15, 0.3)]
Rule = Callable[[Any, Any, list[bool]], bool]


def referee(champion: Any, candidate: Any, earlier: list[bool]) -> bool:
    """Decide as a run does: in steps, at the level that the verdicts before leave."""
    return verdict(champion, candidate, alpha_for(earlier))[0]


def each_at_5_percent(champion: Any, candidate: Any, earlier: list[bool]) -> bool:
    """Test each candidate by itself."""
    return sign_test(int((candidate > champion).sum()), int((candidate < champion).sum())) <= ALPHA


def accept_if_higher(champion: Any, candidate: Any, earlier: list[bool]) -> bool:
    """Believe the score."""
    return bool(candidate.sum() > champion.sum())


RULES: tuple[Rule, ...] = (referee, each_at_5_percent, accept_if_higher)


def promotes_wrongly(rng: np.random.Generator, rule: Rule, changed: float, graded: bool, mixed: bool) -> bool:
    """Return whether a run promotes a candidate that is no better; mixed: some before it are, and may be promoted."""
    skill, champion = first_champion(rng, NUM_ITEMS, graded)
    earlier: list[bool] = []
    for number in range(NUM_CANDIDATES):
        better = mixed and number in TRULY_BETTER
        (candidate,) = candidates_of(rng, skill, champion, 1, changed, TRUE_GAIN if better else 0.0, graded)
        accepted = rule(champion, candidate, earlier)
        if accepted and not better:
            return True
        earlier.append(accepted)
        if accepted:
            champion, skill = candidate, np.minimum(1.0, skill + TRUE_GAIN)
    return False


def main() -> None:
    """Simulate and print one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 runs a setting")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--runs", type=int, default=5000)
    arguments = parser.parse_args()
    num_runs = 1000 if arguments.quick else arguments.runs
    rows = []
    print(f"{num_runs} runs a line, {NUM_CANDIDATES} candidates each, {NUM_ITEMS} gate items")
    print("| answers changed | scores | candidates | referee | a test at 5 % each | accept if higher |")
    print("|---|---|---|---|---|---|")
    for seed, (changed, graded, mixed) in enumerate(SETTINGS):
        row: dict[str, Any] = {"changed": changed, "graded": graded, "mixed": mixed}
        for rule in RULES:
            rng = np.random.default_rng(seed)
            count = sum(promotes_wrongly(rng, rule, changed, graded, mixed) for _ in range(num_runs))
            row[rule.__name__] = {"score": count / num_runs, "ci95": wilson_interval(count, num_runs)}
        rows.append(row)
        arms = " | ".join(percent(row[rule.__name__]) for rule in RULES)
        what = f"{'graded' if graded else 'right or wrong'} | {'three are better' if mixed else 'none is better'}"
        print(f"| {100 * changed:.0f} % | {what} | {arms} |", flush=True)
    ok = all(row["referee"]["ci95"][1] <= ALPHA for row in rows)
    finish(
        {"bench": "referee_null", "quick": arguments.quick, "runs": num_runs, "rows": rows, "ok": ok}, arguments.json
    )


if __name__ == "__main__":
    main()
