"""Planners at equal token budget: self, rules and random, at least two seeds each.

    .venv/bin/python -m bench.planners [--quick] [--json] [--seeds 0 1] [--budget-tokens N]

Prints final scores with intervals and gain over the base model's better baseline per minute. --quick: one seed, a
small budget.
"""

import argparse

from bench.common import finish, fresh_folder, machine, median, percent, start_run

PLANNERS = ("self", "rules", "random")


def main() -> None:
    """Run every planner with every seed, in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a small budget")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget-tokens", type=int, default=300_000)
    arguments = parser.parse_args()
    tokens = 60_000 if arguments.quick else arguments.budget_tokens
    sizes = {"search_items": 40, "gate_items": 100, "final_items": 100} if arguments.quick else {}
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    rows = []
    for seed in seeds:
        for planner in PLANNERS:
            run = start_run(
                planner=planner, seed=seed, budget_tokens=tokens,
                runs_dir=fresh_folder(), **sizes,
            )  # fmt: skip
            final = run["final"]
            better = max(final["base_zero_shot"]["score"], final["base_few_shot"]["score"])
            gain = (final["champion"]["score"] - better) / (run["wall_s"] / 60)
            rows.append({"planner": planner, "seed": seed, "gain_per_minute": gain, "run": run})
    print(f"machine: {machine()}; {tokens} tokens each")
    print("| planner | seed | champion | n | accepted / rejected | steps | wall s | points per minute | decided by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        run = row["run"]
        print(
            f"| {row['planner']} | {row['seed']} | {percent(run['final']['champion'])} | {run['final']['n']} | "
            f"{run['accepted']} / {run['rejected']} | {run['steps']} | {run['wall_s']:.0f} | "
            f"{100 * row['gain_per_minute']:.1f} | {run['decided_by']} |"
        )
    medians = {
        planner: median([row["run"]["final"]["champion"]["score"] for row in rows if row["planner"] == planner])
        for planner in PLANNERS
    }
    print("median champion: " + ", ".join(f"{planner} {100 * score:.1f} %" for planner, score in medians.items()))
    verdict = "above" if medians["self"] > medians["random"] else "not above"
    print(f"self is {verdict} random at this budget ({len(seeds)} seeds: read the intervals)")
    finish(
        {"bench": "planners", "quick": arguments.quick, "tokens": tokens, "medians": medians, "rows": rows, "ok": True},
        arguments.json,
    )


if __name__ == "__main__":
    main()
