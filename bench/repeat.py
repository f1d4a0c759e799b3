"""Two runs with the same seed and token budget: the same decisions and the same final score?

    .venv/bin/python -m bench.repeat [--quick] [--json] [--planner self] [--seed 0] [--budget-tokens N]

--quick: small splits and a small budget.
"""

import argparse
from pathlib import Path
from typing import Any

from bench.common import finish, fresh_folder, machine, percent, start_run
from memory.records import read_jsonl


def decisions(runs_dir: str) -> list[dict[str, Any]]:
    """Return the actions of the one run in a folder, in order."""
    (events,) = Path(runs_dir).glob("*/events.jsonl")
    return [event["action"] for event in read_jsonl(events) if event["kind"] == "decided"]


def main() -> None:
    """Run twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small splits and a small budget")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--planner", default="self")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-tokens", type=int, default=200_000)
    arguments = parser.parse_args()
    tokens = 80_000 if arguments.quick else arguments.budget_tokens
    sizes = {"search_items": 40, "gate_items": 100, "final_items": 100} if arguments.quick else {}
    options = {"planner": arguments.planner, "seed": arguments.seed, "budget_tokens": tokens} | sizes
    folders = [fresh_folder(), fresh_folder()]
    runs = [start_run(runs_dir=folder, **options) for folder in folders]
    first, second = map(decisions, folders)
    same_score = runs[0]["final"] == runs[1]["final"]
    print(f"machine: {machine()}; planner {arguments.planner}, seed {arguments.seed}, {tokens} tokens")
    for run, actions in zip(runs, (first, second), strict=True):
        final = run["final"]
        print(f"{len(actions)} decisions, {run['wall_s']:.0f} s, champion {percent(final['champion'])} n={final['n']}")
    print(f"same decisions: {first == second}; same final scores: {same_score}")
    figures = {"bench": "repeat", "quick": arguments.quick, "tokens": tokens, "machine": machine(), "runs": runs}
    finish(figures | {"same_decisions": first == second, "ok": first == second and same_score}, arguments.json)


if __name__ == "__main__":
    main()
