"""Does the page of a long run open at once?

    .venv/bin/python -m bench.ui [--quick] [--json]

Made-up runs (bench.trace_scale) of 1,000, 10,000 and 100,000 events, with 100 judged candidates and the files of a job
for every four events, each served by `run_agent.py ui` and opened in headless Chromium. For each page: milliseconds
from asking for it to its first contentful paint, in a server that was started just before and may still read the run
(`first`, with the processor time it took since its start) and again (`again`, median of five). `ok`: the page of the
largest is painted within 2 s at first. --quick: 10,000 events.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from bench.common import ROOT, finish, machine, median
from bench.trace_scale import EVENTS_PER_STEP, RARE, make_run
from memory.records import append_jsonl, read_json, write_json
from memory.store import RunStore

SIZES = (1_000, 10_000, 100_000)
MOST_MS = 2000.0
NUM_CANDIDATES = 100
NUM_AGAIN = 5
PAINTED = """() => new Promise((done) => new PerformanceObserver((list) => {
  const found = list.getEntriesByName("first-contentful-paint")[0];
  if (found) done(found.startTime);
}).observe({type: "paint", buffered: true}))"""


def make_long_run(run_dir: Path, num_events: int) -> None:
    """Write the run: its trace, its candidates with verdicts, and its jobs."""
    make_run(run_dir, num_events, RARE, 276)
    record = read_json(run_dir / "run.json")
    write_json(run_dir / "run.json", record | {"run": run_dir.name, "identity": {}})
    store = RunStore(run_dir)
    score = {"score": 0.38, "ci95": [0.3, 0.47], "n": 128}
    store.put("evals", "base", {"model": "base", "split": "search", "shots": 0} | score)
    for number in range(1, NUM_CANDIDATES + 1):
        model, parent = f"{number:016x}", "base"
        settings = {"method": "lora", "learning_rate": 0.001, "epochs": 1}
        manifest = {"parent": parent, "dataset": "d", "datasets": ["d"], "settings": settings, "seed": 0}
        store.put("models", model, manifest | {"num_examples": 512})
        store.put("evals", f"s{number}", {"model": model, "split": "search", "shots": 0} | score)
        gate = {"model": model, "split": "gate", "shots": 0, "champion": parent, "accepted": False, "n": 600}
        store.put("evals", f"g{number}", gate | {"number": number, "refused_by": []})
        detail = {"candidate": model, "champion": parent, "number": number, "accepted": False, "alpha": 0.0075}
        detail |= {"num_items": 600, "num_fixed": 40, "num_broken": 35, "p_value": 0.3, "level": 0.005}
        detail |= {"alpha_left": 0.04, "gate_items": 600, "looks": [{}], "guards": [], "refused_by": []}
        append_jsonl(run_dir / "referee" / "verdicts.jsonl", [detail])
    for number in range(num_events // EVENTS_PER_STEP):
        folder = run_dir / "jobs" / f"{number:016x}"
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text('{"function": "tools.acquire.generate_data:sample_items", "args": {}}')
        (folder / "status.json").write_text('{"state": "done"}')
        (folder / "result.json").write_text('{"value": {}, "usage": {"wall_s": 1.0, "cpu_s": 1.0, "tokens": 100}}')


def measure(runs: Path, name: str, last_step: int) -> dict[str, Any]:
    """Return {page: {"first_ms", "first_cpu_ms", "again_ms"}}; each `first` in a server of its own."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no chromium on this machine: `apt-get install chromium`")
    pages = {"run": "", "newest decisions": "decisions?page=99999", "step": f"step?n={last_step // 2}"}
    pages |= {"details": "details", "all runs": "../../", "compare": f"../../compare?a={name}&b={name}"}
    found: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for page_name, path in pages.items():
            command = [sys.executable, "run_agent.py", "ui", "--no-browser", "--json", "--runs-dir", str(runs)]
            server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            page = browser.new_page()
            page.goto(address.replace("/?", "/static/icon.svg?"))  # come in
            times, used = [], []
            for _ in range(1 + NUM_AGAIN):
                page.goto(f"{address.split('?')[0]}runs/{name}/{path}")
                times.append(page.evaluate(PAINTED))
                used.append(_cpu_ms(server.pid))
            row = {"first_ms": round(times[0]), "first_cpu_ms": round(used[0])}
            found[page_name] = row | {"again_ms": round(median(times[1:]))}
            page.close()
            server.send_signal(signal.SIGINT)
            server.wait(30)
        browser.close()
    return found


def _cpu_ms(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return 1000 * float(times.user + times.system)


def main() -> None:
    """Make the run, open each page, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 events")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    arguments = parser.parse_args()
    print(f"machine: {machine()}")
    print("| events | page | first, ms | of the server's processor, ms | again, ms |\n|---|---|---|---|---|")
    found = {}
    for num_events in (10_000,) if arguments.quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "20260102-030405"
            make_long_run(run_dir, num_events)
            found[num_events] = measure(Path(folder), run_dir.name, num_events // EVENTS_PER_STEP)
        for page_name, row in found[num_events].items():
            figures = f"{row['first_ms']} | {row['first_cpu_ms']} | {row['again_ms']}"
            print(f"| {num_events:,} | {page_name} | {figures} |", flush=True)
    ok = found[max(found)]["run"]["first_ms"] <= MOST_MS
    finish({"bench": "ui", "machine": machine(), "quick": arguments.quick, "pages": found, "ok": ok}, arguments.json)


if __name__ == "__main__":
    main()
