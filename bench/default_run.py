"""The default run (`make run`): final scores over seeds, with baselines, overhead and memory.

    .venv/bin/python -m bench.default_run [--quick] [--json] [--seeds 0 1 2]

Each seed takes the ten minutes of the default budget. --quick: one seed, 75 seconds, no target.
"""

import argparse

from bench.common import finish, fresh_folder, machine, median, percent, start_run

TARGET = 0.65
MOST_OVERHEAD = 0.15
MOST_MEMORY_GIB = 6.0


def main() -> None:
    """Run the seeds one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 75 seconds")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", default="auto", help="as in run_agent.py start")
    arguments = parser.parse_args()
    minutes = 1.25 if arguments.quick else 10
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    # A folder of its own: lessons of other runs would be recalled, and seeds would help each other.
    runs = [
        start_run(seed=seed, budget_minutes=minutes, runs_dir=fresh_folder(), dtype=arguments.dtype) for seed in seeds
    ]
    print(f"machine: {machine()}; dtype {arguments.dtype}")
    print("| seed | base zero-shot | base six-shot | champion | n | wall s | tokens | overhead | peak GiB | steps |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed, run in zip(seeds, runs, strict=True):
        final = run["final"]
        print(
            f"| {seed} | {percent(final['base_zero_shot'])} | {percent(final['base_few_shot'])} | "
            f"{percent(final['champion'])} | {final['n']} | {run['wall_s']:.0f} | {run['tokens']} | "
            f"{100 * run['overhead_share']:.1f} % | {run['peak_rss_gib']:.2f} | {run['steps']} |"
        )
    scores = [run["final"]["champion"]["score"] for run in runs]
    overhead = max(run["overhead_share"] for run in runs)
    memory = max(run["peak_rss_gib"] for run in runs)
    print(f"median champion {100 * median(scores):.1f} % (target {100 * TARGET:.0f} %)")
    print(f"worst overhead {100 * overhead:.1f} %, peak memory {memory:.2f} GiB")
    reached = median(scores) >= TARGET and overhead <= MOST_OVERHEAD and memory <= MOST_MEMORY_GIB
    figures = {
        "bench": "default_run",
        "quick": arguments.quick,
        "machine": machine(),
        "scores": scores,
        "median": median(scores),
        "overhead_share": overhead,
        "peak_rss_gib": memory,
        "runs": runs,
        "ok": bool(arguments.quick or reached),
    }
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
