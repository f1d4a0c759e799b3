"""Words in a run: the events (step, kind, field) and the rows of data that hold a text, with what stands around it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from agent.trace import Event
from memory.store import RunStore
from tools.contract import Json

HEAD = ("seq", "ts", "spent_s", "kind", "span", "parent", "step")
"""Fields of every event, which say where it stands and not what happened."""
AROUND = 60
"""Characters of a snippet on either side of the text."""
ROW_FILES = {"train.jsonl": "id", "samples.jsonl": "example_id"}
"""Files of a dataset whose rows are looked at, and which of a row's fields `follow` takes."""
MOST_ROWS = 20
"""Rows that are told; of the others their number."""


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


def search_rows(store: RunStore, text: str) -> Iterator[Json]:
    """Yield {"id", "dataset", "file", "snippet"} of each training row, then of each sampled answer, that holds a text.

    A row is read as `question -> answer`; answers given several times are told once. `follow` takes the id.
    """
    needle = text.lower()
    for name, key in ROW_FILES.items():
        for dataset in store.all("data"):
            place, told = {"dataset": dataset["id"], "file": name}, set()
            for row in store.each_row("data", dataset["id"], name):
                said = f"{row.get('prompt', '')} -> {row.get('completion', '')}"
                if needle in said.lower() and row.get(key) not in told:
                    told.add(row.get(key))
                    yield {"id": row.get(key)} | place | {"snippet": _snippet(said, needle)}


def first(rows: Iterator[Json]) -> tuple[list[Json], int]:
    """Return the first rows and how many more there are."""
    return list(islice(rows, MOST_ROWS)), sum(1 for _ in rows)


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


def search_lines(found: Iterable[Json], rows: Iterator[Json], run: str) -> Iterator[str]:
    """Yield two lines for each place: step, kind, field or the row's id and dataset, and the snippet."""
    num_found = 0
    for num_found, place in enumerate(found, 1):  # noqa: B007 - the last number is how many there were
        step = "run" if place["step"] is None else f"step {place['step']}"
        yield f"{step:<9} {place['kind']:<13} {place['field']}\n          {place['snippet']}"
    told, num_more = first(rows)
    for row in told:
        yield f"row       {row['id']} of dataset {row['dataset']} ({row['file']})\n          {row['snippet']}"
    if num_more:
        yield f"and {num_more} more rows; a longer text finds fewer"
    if told:
        yield f"go on with `run_agent.py follow {run} {told[0]['id']}`"
    elif not num_found:
        yield "no event and no row of data holds this text"
