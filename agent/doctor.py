"""The command `doctor`: is the installation as tested, and are a run's files those that were written?"""

import importlib.metadata
import json
import os
import re
import shutil
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent import commands, views
from agent.commands import REPOSITORY, Outcome
from memory.store import MANIFESTS, RunStore
from tools.engines.models import DEFAULT_MODEL, EMBEDDER, PACKAGED_MODELS

FREE_GIB_LEAST = 1.0
FREE_GIB_GOOD = 5.0


class Check(NamedTuple):
    """One thing that the doctor looked at."""

    level: str
    """"ok", "note" (good to know) or "PROBLEM"."""
    what: str
    said: str


def doctor(args: Namespace) -> Outcome:
    """Check the installation and a run's files; exit code 1 when there is a problem."""
    if args.rebuild and args.run is None:
        raise ValueError("--rebuild needs the name of a run: `run_agent.py doctor RUN --rebuild`")
    runs_dir = commands.runs_dir(args)
    checks = [*_check_packages(), *_check_place(runs_dir)]
    for path in views.run_folders(runs_dir):
        if views.is_locked(path):
            checks.append(Check("note", "lock", f"a process works on run {path.name}"))
    if args.run is not None:
        run_dir = commands.run_of(args)
        if args.rebuild:
            checks.append(_rebuild(run_dir))
        checks += _check_run(run_dir)
    text = "\n".join(f"{check.level:<8}{check.what:<11}{check.said}" for check in checks)
    code = int(any(check.level == "PROBLEM" for check in checks))
    return Outcome([text], [check._asdict() for check in checks], code)


def _check_packages() -> Iterator[Check]:
    yield Check("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    names = [re.split(r"[<>=!~\[; ]", line)[0] for line in declared]
    names += [source.package.replace("_", "-") for source in (*PACKAGED_MODELS.values(), EMBEDDER)]
    fine = 0
    for name in names:
        try:
            version = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            yield Check("PROBLEM", "package", f"{name} is not installed; run `make setup`")
            continue
        expected = tested.get(name.lower().replace("_", "-"), version)
        fine += version == expected
        if version != expected:
            yield Check("note", "package", f"{name} is {version}; {expected} is the version that was tested")
    yield Check("ok", "packages", f"{fine} of {len(names)} are installed as tested")


def _check_place(runs_dir: Path) -> Iterator[Check]:
    default = REPOSITORY / "models" / DEFAULT_MODEL
    if (default / "source.json").exists():
        yield Check("ok", "models", f"{DEFAULT_MODEL} is prepared in {default}")
    else:
        yield Check("note", "models", f"{DEFAULT_MODEL} is not prepared yet; `make setup` or the first run does it")
    existing = next(path for path in (runs_dir.resolve(), *runs_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    level = "PROBLEM" if free < FREE_GIB_LEAST else "note" if free < FREE_GIB_GOOD else "ok"
    yield Check(level, "disk", f"{free:.1f} GiB free at {existing}")
    if not os.access(existing, os.W_OK):
        yield Check("PROBLEM", "disk", f"{existing} cannot be written to")


def _check_run(run_dir: Path) -> Iterator[Check]:
    """Read every file of a run. What a kill left half-written is a note: the run passes over it or makes it again."""
    locked = views.is_locked(run_dir)
    try:
        state = views.run_state(run_dir)
    except ValueError:  # a damaged events.jsonl or report.json, named below
        state = "damaged"
    yield Check("ok", "run", f"{run_dir.name} is {state}, {'locked by a process' if locked else 'not locked'}")
    if views.is_locked(run_dir, "worker.lock") and not locked:
        yield Check("note", "worker", "a worker of an earlier process is still ending; the next one waits for it")
    num_files = 0
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.suffix in (".json", ".jsonl") and "checkpoints" not in path.parts:
            num_files += 1
            yield from _check_file(path, name)
        elif path.suffix in (".tmp", ".partial"):
            yield Check("note", "half", f"{name} was being written; it is not used")
    for kind, manifest in MANIFESTS.items():
        for folder in sorted((run_dir / kind).glob("[!.]*")):
            if not (folder / manifest).exists():
                said = f"{kind}/{folder.name} has no {manifest}: it does not exist until it is made again"
                yield Check("note", "half", said)
    yield from _check_contents(run_dir)
    yield Check("ok", "files", f"{num_files} JSON files looked at")


def _check_contents(run_dir: Path) -> Iterator[Check]:
    """Compare rows and weights with the hashes that were taken when they were written."""
    from agent.mending import check_state, check_weights  # with it comes the console

    store = RunStore(run_dir)
    looks: list[Callable[[], object]] = [partial(check_state, run_dir), partial(check_weights, store)]
    for kind in MANIFESTS:
        try:
            records = store.all(kind)
        except ValueError:
            continue  # the manifest that cannot be read is named by _check_file
        looks += [
            partial(store.rows, kind, record["id"], name) for record in records for name in record.get("hashes", {})
        ]
    for look in looks:
        try:
            look()
        except ValueError as problem:
            yield Check("PROBLEM", "damaged", str(problem))


def _check_file(path: Path, name: str) -> Iterator[Check]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
            return
        *lines, last = text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                yield Check("PROBLEM", "damaged", f"{name} line {number}: {error}")
        if last:
            said = f"{name} ends in a torn line: left out when read, cut off when the next one is written"
            yield Check("note", "half", said)
    except FileNotFoundError:
        return  # replaced by a live run meanwhile
    except (OSError, ValueError) as error:
        yield Check("PROBLEM", "unreadable", f"{name}: {error}; restore it from a copy or delete it")


def _rebuild(run_dir: Path) -> Check:
    """Delete the run's vector memory and fill it again from its frozen datasets."""
    filled = commands.in_worker(run_dir, "tools.engines.publish:refill_memory", {})
    counts = f"{filled['num_examples']} examples of {filled['num_datasets']} datasets"
    return Check("ok", "rebuild", f"the vector memory was made again: {counts}")
