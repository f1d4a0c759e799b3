"""What is not as it was when a run began: shown before it goes on, and confirmed with `resume --accept-changes`.

Two kinds. What a score depends on (agent/identity.py: task, items, scorer, model, prompts, evaluating code, libraries)
may never change: scores of different scorers do not compare, so such a resume is refused whatever was accepted.
Everything else is in run.json under "surroundings": the settings that may be given again, the user's files, the rest
of the code and of the libraries. A change there is told, accepted by a person, and becomes an event of the trace.
"""

import platform
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from agent.config import GIVEN_AGAIN, RunConfig
from agent.console import Console
from agent.identity import SCORED_CODE, SCORED_LIBRARIES, changed_parts, take_hashes
from agent.moving import Places
from agent.trace import Trace
from memory.records import ID_LENGTH, file_sha256, write_json
from tools.contract import Json
from tools.engines.models import resolve_model
from tools.jobs.client import REPOSITORY
from tools.tasks import load_task

MOST_NAMES = 8
"""Files of the program that one line names."""
_CODE = ("run_agent.py", "agent/**/*.py", "tools/**/*.py", "memory/**/*.py", "prompts/*")


def take_surroundings(config: RunConfig) -> Json:
    """Return {"revision" (None = no git), "code", "files": path -> hash, "libraries": name -> version}."""
    scored = {path for pattern in SCORED_CODE for path in REPOSITORY.glob(pattern)}
    code = {path for pattern in _CODE for path in REPOSITORY.glob(pattern) if path.is_file()} - scored
    files = [*config.tools, config.prices, config.planner.removeprefix("scripted:")]
    return {
        "revision": _revision(),
        "code": {path.relative_to(REPOSITORY).as_posix(): _hash(path) for path in sorted(code)},
        "files": {name: _hash(Path(name)) for name in files if name and Path(name).is_file()},
        "libraries": {"python": platform.python_version()} | {name: _version(name) for name in _libraries()},
    }


def settle_changes(
    run_dir: Path, record: Json, config: RunConfig, fingerprint: str, accepted: bool, console: Console,
    places: Places,
) -> None:  # fmt: skip
    """Write run.json with the settings to go on with, and what changed as an event; the run's lock is held.

    fingerprint: of the run's jobs, which keep it, so that finished ones stay finished. places: where files went, OLD ->
    NEW, as the record has it already. Raises ValueError for a change with which no run may go on, and for others unless
    they were accepted.
    """
    _refuse(run_dir, record)
    began, now, settings = record.get("surroundings"), take_surroundings(config), config.to_json()
    before = RunConfig().to_json() | record["config"]
    lines = [f"moved: {old} -> {new}" for old, new in places.items()]
    lines += [f"{name}: {before[name]} -> {settings[name]}" for name in GIVEN_AGAIN if before[name] != settings[name]]
    lines += [] if began is None else _difference(began, now)  # None: begun by an earlier version
    if lines:
        told = "\n".join(f"  {line}" for line in lines)
        moved = "".join(f"--moved {old}={new} " for old, new in places.items())
        if not accepted:
            raise ValueError(
                f"not all is as it was when run {run_dir.name} began or last went on:\n{told}\nNo score depends on it. "
                f"To go on with it, repeat this command with --accept-changes (`resume {run_dir.name} "
                f"{moved}--accept-changes`); the trace will say so"
            )
        Trace(run_dir).emit("changes_accepted", changes=lines, revision=now["revision"])
        console.say(f"changed, and accepted:\n{told}")
    write_json(run_dir / "run.json", record | {"config": settings, "surroundings": now, "fingerprint": fingerprint})


def _refuse(run_dir: Path, record: Json) -> None:
    """Raise ValueError when something that a score depends on is not what it was."""
    config, began = record["config"], record["identity"].get("hashes")
    if began is None:
        return  # the first evaluation says what is wrong
    task, models = load_task(config["task"]), Path(config["models_dir"])
    now = take_hashes(run_dir, task, resolve_model(config["model"], models), config["system_prompt"])
    if parts := changed_parts(began, now):
        told = "\n".join(f"  {part} ({difference}): {cure}" for part, difference, cure in parts)
        raise ValueError(
            f"run {run_dir.name} cannot go on, because what its scores depend on changed since it began:\n{told}\n"
            "Scores taken before and after would not compare, so --accept-changes does not cover this. Or start a new "
            "run"
        )


def _difference(began: Json, now: Json) -> list[str]:
    lines = []
    if names := _names(began["code"], now["code"]):
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        revisions = f", revision {began['revision']} -> {now['revision']}"
        lines.append(f"code of this program: {', '.join(names[:MOST_NAMES])}{more}{revisions}")
    for name in _names(began["files"], now["files"]):
        before, after = (str(kept["files"].get(name, "none"))[:12] for kept in (began, now))
        lines.append(f"file {name}: {before} -> {after}")
    for name in _names(began["libraries"], now["libraries"]):
        lines.append(f"library {name}: {began['libraries'].get(name)} -> {now['libraries'].get(name)}")
    return lines


def _names(one: Json, other: Json) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _hash(path: Path) -> str:
    return file_sha256(path)[:ID_LENGTH]


def _libraries() -> list[str]:
    """Return the libraries that the program declares, without those that a score depends on."""
    project: Any = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[<>=!~\[; ]", line)[0] for line in project["dependencies"]]
    return [name for name in names if name not in SCORED_LIBRARIES]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no checkout
