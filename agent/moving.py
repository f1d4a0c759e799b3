"""Where the files lie that a run needs: found to be missing, and named anew when they were moved (`resume --moved`)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from agent.config import RunConfig
from tools.tasks.options import quoted, split_spec

Places = Mapping[str, str]
"""Absolute path that was -> the one that is; a folder stands for all in it."""
_PATH = re.compile(r"([a-z_]+:)?(/.*)", re.DOTALL)
"""A path, or one behind its kind: jsonl:/..., python:/..., scripted:/..."""


def read_places(pairs: list[str]) -> dict[str, str]:
    """Read OLD=NEW pairs. Raises ValueError, with the form, for others."""
    places = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        old = old.rstrip("/")
        if not sign or not old.startswith("/") or not new:
            raise ValueError(f"--moved {pair!r}: write OLD=NEW, the absolute path that was and where it is now")
        places[old] = str(Path(new).expanduser().resolve())
    return places


def moved_record(record: Any, places: Places) -> Any:
    """Return a run's record with all paths as they are now, keys too. Raises ValueError for a place that none names."""
    for old in places:
        if _renamed(record, {old: ""}) == record:
            raise ValueError(f"--moved {old}=...: nothing that this run needs was there; see the paths in its run.json")
    return _renamed(record, places)


def check_places(name: str, config: RunConfig) -> None:
    """Raise ValueError, with the cure, for a file or folder that a run needs and that is not on this machine."""
    for path in _needed(config):
        if path.startswith("/") and not Path(path).exists():
            raise ValueError(
                f"{path}, which run {name} needs, is not there; put it back, or say where it is now (say, on another "
                f"machine): `resume {name} --moved {path}=PATH`, once for each file or folder (with all in it)"
            )


def without_folders(spec: str, files: list[str]) -> Any:
    """Return a task's spec in parts, files by their names alone."""
    name, options = split_spec(spec)
    return [file_name(name, files), {key: file_name(value, files) for key, value in options.items()}]


def file_name(text: Any, files: list[str]) -> Any:
    """Return what ends with one of these paths with the file's name instead; anything else as it is."""
    known = next((file for file in files if isinstance(text, str) and text.endswith(file)), "")
    return text.removesuffix(known) + Path(known).name if known else text


def _needed(config: RunConfig) -> Iterator[str]:
    yield from (config.model, config.prices or "", *config.tools)
    yield str(Path(config.models_dir).parent)  # models are converted again, where the program still is
    yield config.planner.removeprefix("scripted:")
    name, options = split_spec(config.task)
    yield name.removeprefix("jsonl:")
    yield options.get("scorer", "").removeprefix("python:")
    yield from (options.get(key, "") for key in ("gold", "rubric"))


def _renamed(record: Any, places: Places) -> Any:
    if isinstance(record, dict):
        return {_renamed(name, places): _renamed(value, places) for name, value in record.items()}
    if isinstance(record, list):
        return [_renamed(value, places) for value in record]
    if not isinstance(record, str):
        return record
    name, mark, query = record.partition("?")
    return _at(name, places) + mark + "&".join(_renamed_option(part, places) for part in query.split("&"))


def _renamed_option(part: str, places: Places) -> str:
    key, sign, value = part.partition("=")
    plain = unquote(value)
    return part if (now := _at(plain, places)) == plain else f"{key}{sign}{quoted(now)}"


def _at(text: str, places: Places) -> str:
    found = _PATH.fullmatch(text)
    if found is None:
        return text
    kind, path = found[1] or "", found[2]
    olds = [old for old in places if path == old or path.startswith(f"{old}/")]
    return text if not olds else kind + places[max(olds, key=len)] + path.removeprefix(max(olds, key=len))
