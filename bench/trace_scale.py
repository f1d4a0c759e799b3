"""Does a long trace stay quick to write and to read?

    .venv/bin/python -m bench.trace_scale [--quick] [--json]

Traces of 1,000, 10,000 and 100,000 made-up events, four a step and as large as real ones. For each: the time to write
one more event (fsynced, as a run does) and to read it with `trace show --step`, `trace show --failed`, `trace search`
(a text that stands in the last step) and `trace diff` (against a copy that parts there); and the most memory that the
process held until then. `ok`: writing is not slower in the longest trace than twice the time in the shortest, reading
grows by no more than twice what the number of events does, and one step of the longest is shown within 5 s.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from agent.trace import Event, Trace, read_events
from agent.trace_diff import diff, diff_lines
from agent.trace_search import search, search_lines, search_rows
from agent.trace_select import Filter
from agent.trace_view import tree_lines
from bench.common import finish, machine, median
from memory.records import canonical_json, write_json
from memory.store import RunStore

SIZES = (1_000, 10_000, 100_000)
EVENTS_PER_STEP = 4
NUM_WRITES = 200
NUM_READS = 3
MOST_SECONDS = 5.0
RARE = "a most unusual word"
REASONING = "The bottleneck now is the number of unused right answers, and sampling the base model gives more. " * 3
CONFIG = {"task": "made up", "model": "none", "planner": "self", "seed": 0}
ARGS = {"num_items": 512, "prompting": "few_shot", "samples_per_item": 32, "temperature": 1.0}


def made_up_events(size: int, ending: str, num_right: int) -> Iterator[Event]:
    """Yield events as a run writes them; the last step's reasoning ends in `ending`, its result says `num_right`."""
    score = {"score": 0.38, "ci95": [0.3, 0.47], "n": 128}
    num_steps = size // EVENTS_PER_STEP
    for step in range(1, num_steps + 1):
        reasoning = REASONING + (ending if step == num_steps else "")
        last = {"tool": "generate_data", "args": ARGS, "outcome": f"num_items 512, step {step - 1}", "refused": 0}
        situation: dict[str, Any] = {
            "champion": "b9f6932eda0fa92c",
            "score": score,
            "few_shot_score": score,
            "last_action": last,
        }
        situation |= {"budget_left_percent": 50, "unused_right_answers": step, "verdicts": ["accepted"] * 6}
        action = {"tool": "generate_data", "args": ARGS}
        usage = {"wall_s": 33.5, "cpu_s": 55.1, "tokens": 32678}
        others = [{"tool": "note_lesson", "logprob": -0.8}]
        rest = {"decided_by": "model", "logprob": -0.5, "alternatives": others, "problems": [], "usage": usage}
        call = {"tool": "generate_data", "args": ARGS, "job": f"{step:04d}-generate_data"}
        result = {"dataset": "4aea61570be9d651", "num_items": 512, "pass_rate": 0.0254}
        result["num_right"] = num_right if step == num_steps else 276
        made: list[Event] = [
            {"kind": "observed", "situation": situation, "menu": ["generate_data", "note_lesson"]},
            {"kind": "decided", "action": action, "reasoning": reasoning} | rest,
            {"kind": "tool_started"} | call,
            {"kind": "tool_finished", "result": result, "usage": usage} | call,
        ]
        for index, event in enumerate(made):
            seq = EVENTS_PER_STEP * (step - 1) + index + 1
            head = {"seq": seq, "ts": "2026-01-02T03:04:05.678+00:00", "spent_s": 1.5 * seq, "step": step}
            yield event | head | {"span": f"step-{step}", "parent": "run"}


def make_run(run_dir: Path, size: int, ending: str, num_right: int) -> Path:
    """Write such a run in one go and return its folder."""
    write_json(run_dir / "run.json", {"format": 1, "created": "2026-01-02T03:04:05+00:00", "config": CONFIG})
    with (run_dir / "events.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(canonical_json(event) + "\n" for event in made_up_events(size, ending, num_right))
    return run_dir


def measure(size: int, folder: Path) -> dict[str, Any]:
    """Return the figures of one size: median milliseconds a written event, median seconds a way of reading."""
    run = make_run(folder / f"{size}-a", size, RARE, 276)
    other = make_run(folder / f"{size}-b", size, "", 275)
    last_step = size // EVENTS_PER_STEP
    ways: dict[str, Callable[[], Iterable[str]]] = {
        "show --step": lambda: tree_lines(run, Filter(step=last_step // 2)),
        "show --failed": lambda: tree_lines(run, Filter(failed=True)),
        "search": lambda: search_lines(search(read_events(run), RARE), search_rows(RunStore(run), RARE), run.name),
        "diff": lambda: diff_lines(diff(run, other)),
    }
    expected = {"show --step": f"step {last_step // 2} ", "show --failed": "nothing in run"}
    expected |= {"search": RARE, "diff": f"they part at step {last_step},"}
    seconds = {}
    for name, way in ways.items():
        times = []
        for _ in range(NUM_READS):
            started = time.perf_counter()
            text = "\n".join(way())
            times.append(time.perf_counter() - started)
            assert expected[name] in text, f"{name} did not find what was put there: {text[:200]}"
        seconds[name] = median(times)
    row = {"events": size, "mib": round((run / "events.jsonl").stat().st_size / 2**20, 1), "read_s": seconds}
    return row | {"write_ms": _write_ms(run, last_step), "peak_mib": getrusage(RUSAGE_SELF).ru_maxrss // 1024}


def _write_ms(run: Path, step: int) -> float:
    trace, times = Trace(run), []
    event = {"tool": "generate_data", "args": ARGS, "job": "made-up"}
    for _ in range(NUM_WRITES):
        started = time.perf_counter()
        trace.emit("tool_started", step=step, **event)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


def main() -> None:
    """Measure each size and print one line for it, then how much each figure grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 events")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    arguments = parser.parse_args()
    rows = []
    print(f"machine: {machine()}")
    print("| events | MiB | write one, ms | show --step, s | show --failed, s | search, s | diff, s | memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES[:2] if arguments.quick else SIZES:
            row = measure(size, Path(folder))
            reads = " | ".join(f"{value:.3f}" for value in row["read_s"].values())
            print(f"| {size:,} | {row['mib']} | {row['write_ms']:.2f} | {reads} | {row['peak_mib']} |", flush=True)
            rows.append(row)
    first, last = rows[0], rows[-1]
    events = last["events"] / first["events"]
    growth = {name: last["read_s"][name] / first["read_s"][name] for name in first["read_s"]}
    growth["write one"] = last["write_ms"] / first["write_ms"]
    print(f"{events:.0f} times the events: {', '.join(f'{name} {times:.1f} times' for name, times in growth.items())}")
    linear = all(times <= (2 if name == "write one" else 2 * events) for name, times in growth.items())
    ok = linear and last["read_s"]["show --step"] <= MOST_SECONDS
    figures = {"bench": "trace_scale", "quick": arguments.quick, "machine": machine(), "rows": rows}
    finish(figures | {"growth": growth, "ok": ok}, arguments.json)


if __name__ == "__main__":
    main()
