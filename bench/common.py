"""What the benchmarks share: the machine in words, runs through the command line, the last JSON line, medians."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Json = dict[str, Any]


BF16 = {"amx_bf16": "bf16 matrix units (AMX)", "avx512_bf16": "bf16 vector units (AVX-512)"}


def machine() -> str:
    """Return processor, cores and memory in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    units = next((told for flag, told in BF16.items() if flag in flags), "no bf16 units")
    return f"{name}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {units}"


def start_run(**options: Any) -> Json:
    """Run `run_agent.py start --json` with these options and return its report; the run's lines go to the terminal.

    A list is an option that is given several times.
    """
    code, report = try_run(options)
    if code != 0:
        raise SystemExit(f"the run ended with exit code {code}: {options}")
    return report


def try_run(options: Json) -> tuple[int, Json]:
    """Return the exit code and the report ({} without one) of such a run."""
    given = [(name, one) for name, value in options.items() for one in (value if isinstance(value, list) else [value])]
    flags = [part for name, value in given for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(ROOT / "run_agent.py"), "start", "--json", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}


def fresh_folder() -> str:
    """Return a new folder below runs/ for one run: otherwise it would recall the lessons of others."""
    (ROOT / "runs").mkdir(exist_ok=True)
    return tempfile.mkdtemp(prefix="bench-", dir=ROOT / "runs")


def percent(arm: Json) -> str:
    """Return "48.0 % [43.1, 52.9]" of a score with its interval."""
    return f"{100 * arm['score']:.1f} % [{100 * arm['ci95'][0]:.1f}, {100 * arm['ci95'][1]:.1f}]"


def points(gain: float, interval: Sequence[float]) -> str:
    """Return "+4.0 [+1.0, +7.0]" of a difference of shares with its interval, in points."""
    low, high = (100 * end for end in interval)
    return f"{100 * gain:+.1f} [{low:+.1f}, {high:+.1f}]"


def finish(figures: Json, as_json: bool) -> None:
    """Print the figures as the last line when asked, and exit 1 when the bench's own target was missed."""
    if as_json:
        print(json.dumps(figures))
    raise SystemExit(0 if figures["ok"] else 1)


__all__ = ["ROOT", "finish", "fresh_folder", "machine", "median", "percent", "points", "start_run", "try_run"]
