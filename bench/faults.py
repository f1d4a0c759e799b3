"""What happens to a run when something breaks: what a person sees, what is lost, and whether it ends all the same.

    .venv/bin/python -m bench.faults [--quick] [--json] [--only WORD]

Real runs of a tiny model (see tiny.py), two rounds through all tools, each resumed with one fault from the second round
on until it ends, and compared with what the same run came to without: verdicts, decisions, scores, tokens, every row
and every weight. (That a kill changes nothing, bench/kill.py shows.)
Faults come from outside: signals, limits, other processes, damaged files, a bad endpoint, and bench/broken, which
breaks a library in the worker. With less memory a sum is made in another order, so there the weights may differ in
rounding; a loss that is not a number is told to the planner, who then decides something else.
--quick: two faults (about a minute on two free cores). About 15 s a fault.
"""

import argparse
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bench.common import Json, finish, machine
from bench.driven import outcome
from bench.endpoint import Endpoint
from bench.faulty import FaultyRun, Row, shown
from bench.kill import tiny_scenario
from memory.records import write_jsonl
from memory.store import RunStore

ROUND_TWO, LAST_STEP = 6, 9
"""Faults come from the second round on, after the first verdict; the last step is the second verdict."""
LOCK_S = 5.0
DAY_S = 86_400.0


class Stage(NamedTuple):
    """A run that was killed when its second round began, and what becomes of it without a fault."""

    options: Json
    snapshot: Path
    reference: Json
    about: str

    def run(self) -> FaultyRun:
        """Return the run as it was then."""
        return FaultyRun(self.options, self.snapshot)


Case = Callable[[Stage], Row]


def make_stage(options: Json, folder: Path) -> Stage:
    """Run to the second round, keep that, and run to the end."""
    began = time.monotonic()
    run = FaultyRun(options)
    run.go(until=lambda: run.started(ROUND_TWO))
    folder.mkdir()
    run.keep(folder)
    run.to_the_end()
    assert run.run_dir is not None and not run.problems, run.problems
    reference = outcome(run.run_dir)
    accepted = ["accepted" if row["accepted"] else "rejected" for row in reference["verdicts"]]
    shutil.rmtree(run.runs_dir)
    about = f"without a fault: {len(reference['decisions'])} steps, {accepted}, {time.monotonic() - began:.0f} s"
    return Stage(options, folder, reference, about)


def worker_killed(stage: Stage) -> Row:
    """SIGKILL to the worker while it samples."""
    run = stage.run()

    def kill() -> bool:
        worker = run.parts().get("tools.jobs.worker") if run.started(ROUND_TWO) else None
        if worker is not None:
            worker.kill()
        return worker is not None

    run.go(meanwhile=kill)
    return run.row("worker killed", stage.reference, needs="is done again: the worker ended (-9)")


def stopped_orphan(stage: Stage) -> Row:
    """SIGSTOP to the worker while it samples, then SIGKILL to the agent: such a worker does not end by itself."""
    run = stage.run()

    def stop() -> bool:
        worker = run.parts().get("tools.jobs.worker") if run.started(ROUND_TWO) else None
        if worker is not None:
            worker.suspend()
            run.process.kill()
        return worker is not None

    run.go(meanwhile=stop)
    return run.row("agent killed, its worker stopped", stage.reference)


def out_of_memory(where: str) -> Case:
    """More is asked for than the memory holds."""

    def case(stage: Stage) -> Row:
        run = stage.run()
        run.go(fault=f"no_memory_in_{where}")
        needs = "out of memory; done with batches of 1/2"
        return run.row(f"out of memory in {where}", stage.reference, ("stop reason",), needs)

    return case


def nan_loss(stage: Stage) -> Row:
    """The loss of a training is no number."""
    run = stage.run()
    run.go(fault="nan_loss")
    return run.row("loss is NaN", stage.reference, (), "choose a lower one")


def hung_job(stage: Stage) -> Row:
    """A job waits for ever."""
    run = stage.run()
    run.go(fault="hung_job", options=("--heartbeat-minutes", "0.5", "--accept-changes"))
    return run.row("job hangs (heartbeat 30 s)", stage.reference, needs="is done again: no sign of life")


def full_disk(stage: Stage) -> Row:
    """No file can grow beyond 200 kB."""
    run = stage.run()
    run.go(file_bytes=200_000)
    return run.row("no file may grow beyond 200 kB", stage.reference, needs="File too large")


def full_file_system(stage: Stage) -> Row:
    """The run's file system has 400 kB left, and then more (a tmpfs, so for root alone)."""
    run = stage.run()
    aside = run.runs_dir.with_name(f"{run.runs_dir.name}-aside")
    run.runs_dir.rename(aside)
    run.runs_dir.mkdir()
    run.log = aside.with_suffix(".log")  # what it says finds no room in the run's file system
    subprocess.run(["mount", "-t", "tmpfs", "none", run.runs_dir], check=True)
    try:
        shutil.copytree(aside, run.runs_dir, dirs_exist_ok=True)
        shutil.rmtree(aside)
        run.finished.clear()  # known by inode
        run.remember_finished()
        size = shutil.disk_usage(run.runs_dir).used + 400_000
        subprocess.run(["mount", "-o", f"remount,size={size}", run.runs_dir], check=True)
        run.go()
        subprocess.run(["mount", "-o", "remount,size=1g", run.runs_dir], check=True)
        run.to_the_end()
        shutil.copytree(run.runs_dir, aside)
    finally:
        subprocess.run(["umount", run.runs_dir], check=True)
    run.runs_dir.rmdir()
    aside.rename(run.runs_dir)
    run.log = run.log.rename(run.runs_dir / "said.log")
    return run.row("file system is full", stage.reference, needs="are free at")


def locked_database(stage: Stage) -> Row:
    """Another process locks the checkpoints."""
    run = stage.run()
    assert run.run_dir is not None
    with closing(sqlite3.connect(run.run_dir / "state.sqlite")) as connection:
        connection.execute("begin exclusive")
        resumed: list[float] = []

        def release() -> bool:
            if run.resumed() and not resumed:
                resumed.append(time.monotonic())
            if resumed and time.monotonic() - resumed[0] > LOCK_S:
                connection.rollback()
                return True
            return False

        run.go(meanwhile=release)
    return run.row(f"SQLite locked for {LOCK_S:.0f} s", stage.reference)


def clock_jump(stage: Stage) -> Row:
    """The clock is set between two processes of a run."""
    run = stage.run()
    run.go(fault=f"clock:{DAY_S}", until=lambda: run.started(ROUND_TWO + 1))
    run.go(fault=f"clock:{-DAY_S}")
    return run.row("clock a day ahead, then a day behind", stage.reference)


def vector_memory(how: str) -> Case:
    """The folder of the vector memory is gone or full of rubbish when the run goes on."""

    def case(stage: Stage) -> Row:
        run = stage.run()
        assert run.run_dir is not None
        if how == "deleted":
            shutil.rmtree(run.run_dir / "memory")
        else:
            for path in (path for path in (run.run_dir / "memory").rglob("*") if path.is_file()):
                _rubbish(path)
        if how == "rubbish, doctor":
            run.go("doctor")
        return run.row(f"Chroma folder {how}", stage.reference)

    return case


def damaged_checkpoint(stage: Stage) -> Row:
    """A bit of the newest checkpoint of a killed training is another one."""
    run = stage.run()

    def checkpoints() -> list[Path]:
        return sorted(run.runs_dir.glob("*/jobs/*/checkpoints/checkpoint-*/trainer_state.json"))

    run.go(fault="often_checkpoints", until=lambda: len(checkpoints()) > 1)
    for path in checkpoints()[-1:]:
        _flip(path.with_name("optimizer.pt"))
    return run.row("newest trainer checkpoint damaged", stage.reference)


def endpoints(options: Json, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """A run of two steps on an endpoint: when it is well, and when it is not for a while."""
    served = Endpoint()
    script = Path(options["model"]).parent / "endpoint.jsonl"
    write_jsonl(script, [{"tool": tool, "arguments": {}} for tool in ("generate_data", "curate_data")])
    own = options | {"engine": f"openai:{served.url}#letters", "max_steps": 2, "planner": f"scripted:{script}"}
    well = FaultyRun(own)
    well.go(fault="short_timeout")
    assert well.run_dir is not None, well.log.read_text()
    reference = outcome(well.run_dir)
    shutil.rmtree(well.runs_dir)
    for name, (how, num_bad, needs) in ENDPOINTS.items():
        if wanted(name):
            run = FaultyRun(own)
            served.fault, served.num_bad = how, num_bad
            run.go(fault="short_timeout")
            served.num_bad = 0
            yield run.row(f"endpoint {how}, {num_bad} requests", reference, needs=needs, fault_after="short_timeout")
    served.close()


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {}
"""What is damaged -> pattern of the file, how, and what a person is told."""


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rubbish(path: Path) -> None:
    path.write_bytes(b"rubbish" * 1000)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def _fewer_lines(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


REFUSED |= {
    "run.json, half": ("run.json", _half, "not valid JSON"),
    "events.jsonl, a bit": ("events.jsonl", lambda path: _scribble(path), "is damaged"),
    "state.sqlite, rubbish": ("state.sqlite", _rubbish, "is damaged"),
    "state.sqlite, gone": ("state.sqlite", Path.unlink, "is gone"),
    "a dataset's manifest, half": ("data/*/manifest.json", _half, "not valid JSON"),
    "a dataset's rows, one less": ("data/*/train.jsonl", _fewer_lines, "is not what was written"),
    "a model's manifest, half": ("models/*/model.json", _half, "not valid JSON"),
    "the champion's weights, a bit": ("models/*/*.safetensors", _flip, "are not those that were written"),
    "an evaluation's record, half": ("evals/*/record.json", _half, "not valid JSON"),
    "gate items, one less": ("referee/gate.jsonl", _fewer_lines, "gate items"),
    "verdicts, half a line before the last": ("referee/verdicts.jsonl", lambda path: _scribble(path), "is damaged"),
    "rows to train on, one less": ("task/train.jsonl", _fewer_lines, "training rows"),
}


def _scribble(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[0] = lines[0][: len(lines[0]) // 2] + "\n"
    path.write_text("".join(lines))


def damaged_files_case(stage: Stage) -> list[Row]:
    """Damage one kind of file after another on one run: each is refused, and put back; then what is made again."""
    run, rows = stage.run(), []
    assert run.run_dir is not None
    for what, (pattern, damage, told) in REFUSED.items():
        began = time.monotonic()
        path, finished = _victim(run.run_dir, pattern), dict(run.finished)
        beside = [path, *path.parent.glob(f"{path.name}-*")]  # SQLite keeps a journal there
        copies = {place: (place.read_bytes(), place.stat()) for place in beside}
        for place in beside[1:]:
            place.unlink()
        damage(path)
        code = run.go("resume")
        seen = run.said[-1] if run.said else ""
        for place, (data, about) in copies.items():  # in place: what was finished is the same file as before
            place.write_bytes(data)
            os.utime(place, ns=(about.st_atime_ns, about.st_mtime_ns))
        run.finished, run.problems = finished, []
        run.remember_finished()
        ok = code != 0 and told in seen
        rows.append(Row(f"damaged: {what}", seen, list(run.problems), [], ok, round(time.monotonic() - began, 1)))
        print(shown(rows[-1]), flush=True)
    for pattern in ("jobs/*/result.json", "jobs/*/spec.json", "jobs/*/status.json", "calls/0005*.json"):
        path = _victim(run.run_dir, pattern)
        _half(path)
        run.finished.pop(path, None)
        run.finished.pop(path.with_name("result.json"), None)
    run.go()
    what = "damaged: result, spec, status of jobs, a call"
    same = tuple(part for part in stage.reference if part != "tokens")  # what is done again may cost again
    rows.append(run.row(what, stage.reference, same, needs="set aside and made again"))
    print(shown(rows[-1]), flush=True)
    return rows


def _victim(run_dir: Path, pattern: str) -> Path:
    if pattern.startswith("models"):
        return next((run_dir / "models" / RunStore(run_dir).champion()).glob(pattern.rpartition("/")[2]))
    return sorted(run_dir.glob(pattern))[0]


CASES: dict[str, Case] = {
    "worker": worker_killed,
    "orphan": stopped_orphan,
    "memory-training": out_of_memory("training"),
    "memory-generation": out_of_memory("generation"),
    "nan": nan_loss,
    "hung": hung_job,
    "disk": full_disk,
    **({"disk-tmpfs": full_file_system} if os.geteuid() == 0 else {}),
    "sqlite": locked_database,
    "clock": clock_jump,
    "chroma-deleted": vector_memory("deleted"),
    "chroma-rubbish": vector_memory("rubbish"),
    "chroma-doctor": vector_memory("rubbish, doctor"),
    "checkpoint": damaged_checkpoint,
}
ENDPOINTS = {
    "endpoint-short": ("fails", 3, ""),
    "endpoint-long": ("fails", 200, "error:"),
    "endpoint-garbage": ("garbage", 1, "error:"),
    "endpoint-silent": ("silent", 200, "error:"),
}
QUICK = ("memory-training", "chroma-rubbish")


def main() -> None:
    """Run the cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=", ".join(QUICK))
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    known = ", ".join([*CASES, "files", *ENDPOINTS])
    parser.add_argument("--only", metavar="WORD", nargs="+", default=[""], help=f"those with such a word: {known}")
    arguments = parser.parse_args()

    def wanted(name: str) -> bool:
        return any(word in name for word in arguments.only) and (not arguments.quick or name in QUICK)

    rows: list[Row] = []
    print(f"machine: {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        options = tiny_scenario(Path(folder), 0).options | {"max_steps": LAST_STEP}
        if any(map(wanted, [*CASES, "files"])):
            stage = make_stage(options, Path(folder) / "snapshot")
            head = "| fault | what a person sees | lost | ends as undisturbed | wall, s | |"
            print(f"{stage.about}\n{head}\n|---|---|---|---|---|---|", flush=True)
            for name in filter(wanted, CASES):
                rows.append(CASES[name](stage))
                print(shown(rows[-1]), flush=True)
            if wanted("files"):
                rows += damaged_files_case(stage)
        if any(map(wanted, ENDPOINTS)):
            for row in endpoints(options, wanted):
                rows.append(row)
                print(shown(row), flush=True)
    lost, same = sum(len(row.lost) for row in rows), sum(not row.differs for row in rows)
    figures = {"bench": "faults", "quick": arguments.quick, "machine": machine(), "num_faults": len(rows), "lost": lost}
    print(f"{len(rows)} faults: {sum(row.ok for row in rows)} as they should, {lost} losses, {same} ended alike")
    ok = bool(rows) and all(row.ok for row in rows)
    finish(figures | {"same": same, "rows": [row._asdict() for row in rows], "ok": ok}, arguments.json)


if __name__ == "__main__":
    main()
