"""True gains: how many does the referee promote, and how many gate items does it spend, also on hopeless candidates?

    .venv/bin/python -m bench.referee_power [--quick] [--json] [--runs 2000]

20 % of the answers change (or as many as the gain where that is more). The candidate is the 1st, 5th, 10th or 20th of
its run, all before it rejected; "mean" is over all 20 places. Fixed size: one test on all items at the same level.
`ok`: mean power of at least 90 % for +10 points at 400 items, at most 60 % of the items spent on hopeless ones.
"""

import argparse

import numpy as np

from agent.statistics import alpha_for
from bench.common import finish
from bench.simulated import candidates_of, first_champion, verdict

CHANGED = 0.2
PLACES = 20
SHOWN = (1, 5, 10, 20)
GAINS = (0.2, 0.1, 0.05, 0.0, -0.05)
SIZES = (200, 400, 1000)


def measure(num_items: int, gain: float, num_runs: int, seed: int) -> dict[str, float]:
    """Return power by place, mean power, power at fixed size, and the mean share of the items spent."""
    rng = np.random.default_rng(seed)
    accepted = np.zeros((num_runs, PLACES))
    fixed_size, spent = accepted.copy(), accepted.copy()
    for run in range(num_runs):
        changed = max(CHANGED, abs(gain))
        skill, better = first_champion(rng, num_items)
        worse = candidates_of(rng, skill, better, 1, changed, abs(gain))
        champion, candidate = (better, worse[0]) if gain >= 0 else (worse[0], better)
        for place in range(PLACES):
            alpha = alpha_for([False] * place)
            accepted[run, place], spent[run, place] = verdict(champion, candidate, alpha)
            fixed_size[run, place] = verdict(champion, candidate, alpha, fixed_size=True)[0]
    figures = {f"place_{place}": float(accepted[:, place - 1].mean()) for place in SHOWN}
    spent_share = float(spent.mean() / num_items)
    return figures | {"mean": float(accepted.mean()), "fixed": float(fixed_size.mean()), "spent": spent_share}


def main() -> None:
    """Simulate and print one line for each size and gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 runs a line")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--runs", type=int, default=2000)
    arguments = parser.parse_args()
    num_runs = 300 if arguments.quick else arguments.runs
    rows: list[dict[str, float]] = []
    print(f"{num_runs} runs a line, {100 * CHANGED:.0f} % of the answers changed")
    print("| items | true gain | promoted as 1st | 5th | 10th | 20th | mean | mean, fixed size | items spent |")
    print("|---|---|---|---|---|---|---|---|---|")
    for num_items in SIZES:
        for gain in GAINS:
            row = measure(num_items, gain, num_runs, seed=len(rows))
            rows.append({"items": num_items, "gain": gain} | row)
            shares = " | ".join(f"{100 * value:.1f} %" for value in row.values())
            print(f"| {num_items} | {100 * gain:+.0f} | {shares} |", flush=True)
    wanted = next(row for row in rows if (row["items"], row["gain"]) == (400, 0.1))
    hopeless = [row["spent"] for row in rows if row["gain"] <= 0]
    ok = wanted["mean"] >= 0.9 and max(hopeless) <= 0.6
    finish(
        {"bench": "referee_power", "quick": arguments.quick, "runs": num_runs, "rows": rows, "ok": ok}, arguments.json
    )


if __name__ == "__main__":
    main()
