"""The options of a task spec: `name?key=value&key=value`, with error messages that name the nearest valid word."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple
from urllib.parse import quote, unquote


class SpecParts(NamedTuple):
    """A task spec cut at its first question mark."""

    name: str
    options: dict[str, str]


def split_spec(spec: str, what: str = "task") -> SpecParts:
    """Cut a spec into its name and its percent-decoded options (a plus sign stays a plus sign).

    what: how errors call it.
    """
    name, _, query = spec.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        key = unquote(key)
        if not equals or not key:
            raise ValueError(f"{what} {spec!r}: option {part!r} is not of the form key=value")
        if key in options:
            raise ValueError(f"{what} {spec!r}: option {key!r} is given twice; give it once")
        options[key] = unquote(value)
    return SpecParts(name, options)


def join_spec(name: str, options: dict[str, str]) -> str:
    """Return the one text of a name and its options: options sorted, special characters percent-encoded."""
    query = "&".join(f"{key}={quoted(options[key])}" for key in sorted(options))
    return f"{name}?{query}" if query else name


def quoted(value: str) -> str:
    """Return an option's value as it stands in a spec."""
    return quote(value, safe="/:,.[]+-")


def read_switch(name: str, value: object) -> bool:
    """Read an option that is true or false; text will do. Raises ValueError for anything else."""
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name}={value!r} is neither true nor false")
    return text == "true"


def check_name(name: str, valid: Iterable[str], what: str) -> None:
    """Raise ValueError unless `name` is one of `valid`; the text names the nearest one and then all of them."""
    valid = sorted(valid)
    if name not in valid:
        nearest = get_close_matches(name, valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}valid: {', '.join(valid) or 'none'}")
