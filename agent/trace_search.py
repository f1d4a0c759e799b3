"""Words in a trace: where a text stands, by step, kind of event and field, with what stands around it."""

from collections.abc import Iterable, Iterator
from typing import Any

from agent.trace import Event
from tools.contract import Json

HEAD = ("seq", "ts", "spent_s", "kind", "span", "parent", "step")
"""Fields of every event, which say where it stands and not what happened."""
AROUND = 60
"""Characters of a snippet on either side of the text."""


def search(events: Iterable[Event], text: str) -> Iterator[Json]:
    """Yield {"seq", "step", "kind", "field", "snippet"} of each field that holds the text, whatever its case.

    A field is read as `name: value`, so that names are found too. Raises ValueError for an empty text.
    """
    if not text.strip():
        raise ValueError("the text to search for is empty; give some words")
    needle = text.lower()
    for event in events:
        for path, value in leaves({name: value for name, value in event.items() if name not in HEAD}):
            field = f"{path[path.rfind('.') + 1 :]}: {value}"
            if needle in field.lower():
                place = {name: event[name] for name in ("seq", "step", "kind")}
                yield place | {"field": path, "snippet": _snippet(field, needle)}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, plain value) of what is inside a JSON value: "result.weakest.n"; "problems[0]" in a list.

    An empty dict or list is a plain value.
    """
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from leaves(entry, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for index, entry in enumerate(value):
            yield from leaves(entry, f"{path}[{index}]")
    else:
        yield path, value


def _snippet(field: str, needle: str) -> str:
    """Return the text on one line with what stands around it."""
    at = max(0, field.lower().find(needle))
    start, end = max(0, at - AROUND), at + len(needle) + AROUND
    cut = " ".join(field[start:end].split())
    return f"{'...' if start else ''}{cut}{'...' if end < len(field) else ''}"


def search_lines(found: Iterable[Json]) -> Iterator[str]:
    """Yield a line for each place: step, kind, field and snippet."""
    none = True
    for place in found:
        none = False
        step = "run" if place["step"] is None else f"step {place['step']}"
        yield f"{step:<9} {place['kind']:<13} {place['field']}\n          {place['snippet']}"
    if none:
        yield "no event holds this text"
