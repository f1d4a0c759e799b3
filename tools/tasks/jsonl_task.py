"""Tasks from the user's own rows: a JSONL file of {"question", "answer"} with a scorer, or a TOML file that names both.

A row may also have "difficulty" (a label), "seed" (true: a worked example for prompts, in no split), "parameters" (what
a template was filled with: rows with equal ones are one question in other words) and any other field; the scorer gets
all but the first two in the item's metadata. With `generated=true` the rows are variations of a few templates, so that
one with other numbers is the task itself (see `tools.tasks.base.Task.generated`).
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from memory.records import content_id
from tools.tasks.base import (
    Item,
    Splits,
    SplitSizes,
    answer_token_limit,
    distinct_questions,
    normalise,
    spread_by_difficulty,
)
from tools.tasks.judge import refuse_where_verifiable
from tools.tasks.options import check_name, join_spec
from tools.tasks.scorers import SCORER_OPTIONS, make_spec

MOST_SEED_EXAMPLES = 6
_MOST_LINES_SHOWN = 5
_OWN_FIELDS = ("question", "answer", "difficulty", "seed")
_TASK_OPTIONS = ("scorer", "max_new_tokens", "generated")


@dataclass
class JsonlTask:
    """A task whose items are the rows of a file (see `tools.tasks.base.Task`)."""

    spec: str
    scorer: dict[str, Any]
    max_new_tokens: int
    items: list[Item]
    """Distinct items that are no seed examples."""
    examples: list[Item]
    num_repeats: int
    """Rows left out because an earlier row has the same question and answer."""
    path: Path
    generated: bool

    def seed_examples(self) -> list[Item]:
        """Return the rows marked "seed": true; without any, up to 6 (at most a tenth of the file)."""
        return self.examples

    def splits(self, sizes: SplitSizes, seed: int) -> Splits:
        """Cut the splits from the items in the order of a hash of seed and content; file order does not matter."""
        held_out = sum(sizes)
        items = distinct_questions(_ordered(self.items, seed), self.examples)
        if len(items) < 2 * held_out:
            raise ValueError(
                f"{self.path} has {len(items)} distinct items beside its {len(self.examples)} seed examples, and"
                f" {2 * held_out} are needed: {held_out} for search {sizes.search} + gate {sizes.gate} + final"
                f" {sizes.final}, and at least as many to train on; add rows or lower --search-items, --gate-items or"
                " --final-items"
            )
        cut = sizes.search + sizes.gate
        return Splits(items[: sizes.search], items[sizes.search : cut], items[cut:held_out])

    def stream(self, start: int, count: int, seed: int) -> list[Item]:
        """Return items start..start+count of the file repeated endlessly.

        It begins at the far end of the order that the splits of the same seed are cut from, so each pass gives all
        training items before those in a split, which the caller drops.
        """
        items = _ordered(self.items, seed)[::-1]
        return [items[index % len(items)] for index in range(start, start + count)]


class _Row(NamedTuple):
    line: int
    item: Item
    seed: bool


class _BadRow(ValueError):
    """Why one line cannot be used."""


def load_jsonl_task(path: Path, options: dict[str, Any], base: Path | None = None) -> JsonlTask:
    """Read a JSONL file and its scorer. A file in "python:FILE.py" is relative to `base`, None = the current folder."""
    where = f"task {path}"
    valid = set(_TASK_OPTIONS).union(*SCORER_OPTIONS.values())
    for name in options:
        check_name(name, valid, f"option of {where}")
    if not path.exists():
        raise ValueError(f"{where}: there is no such file")
    if "scorer" not in options:
        raise ValueError(f"{where} names no scorer; append ?scorer=NAME, one of {', '.join(SCORER_OPTIONS)}")
    scorer_options = {key: value for key, value in options.items() if key not in _TASK_OPTIONS}
    scorer = make_spec(str(options["scorer"]), scorer_options, base or Path.cwd())
    if scorer["name"] == "python":  # the canonical spec is read again from any folder
        options = options | {"scorer": f"python:{scorer['file']}"}
    beside = {key: str(((base or Path.cwd()) / options[key]).resolve()) for key in ("gold", "rubric") if key in options}
    options = options | beside
    rows = list(_read_rows(path))
    refuse_where_verifiable(scorer, [row.item for row in rows])
    distinct = _drop_repeats(path, rows)
    items = [row.item for row in distinct if not row.seed]
    examples = [row.item for row in distinct if row.seed]
    if len(examples) > MOST_SEED_EXAMPLES:
        raise ValueError(f'{path} marks {len(examples)} rows with "seed": true; at most {MOST_SEED_EXAMPLES} are used')
    if not examples:
        examples = spread_by_difficulty(_ordered(items, 0), min(MOST_SEED_EXAMPLES, len(items) // 10))
        ids = {item.id for item in examples}
        items = [item for item in items if item.id not in ids]
    if not items:
        raise ValueError(f"{path} has only seed examples; add rows to learn from and to evaluate on")
    return JsonlTask(
        spec=join_spec(f"jsonl:{path.resolve()}", {key: _text(value) for key, value in options.items()}),
        scorer=scorer,
        max_new_tokens=_token_limit(where, options, items + examples),
        items=items,
        examples=examples,
        num_repeats=len(rows) - len(distinct),
        path=path,
        generated=_flag(where, options, "generated"),
    )


def load_toml_task(path: Path) -> JsonlTask:
    """Read a task file: `items` (a JSONL file beside it), `scorer`, the scorer's options and `max_new_tokens`."""
    try:
        options = tomllib.loads(_read_bytes(path).decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid TOML file: {error}") from error
    items = options.pop("items", None)
    if not isinstance(items, str):
        raise ValueError(f'{path} must name its rows, for example items = "my.jsonl" (found {items!r})')
    return load_jsonl_task(path.parent / items, options, base=path.parent)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _token_limit(where: str, options: dict[str, Any], items: list[Item]) -> int:
    given = options.get("max_new_tokens")
    if given is None:
        return answer_token_limit(item.answer for item in items)
    if not str(given).isascii() or not str(given).isdigit() or int(given) < 1:
        raise ValueError(f"{where}: max_new_tokens={given!r} is not a whole number above 0")
    return int(given)


def _flag(where: str, options: dict[str, Any], name: str) -> bool:
    text = _text(options.get(name, False))
    if text not in ("true", "false"):
        raise ValueError(f"{where}: {name}={text!r} is neither true nor false")
    return text == "true"


def _ordered(items: list[Item], seed: int) -> list[Item]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}/{item.id}".encode()).digest())


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file in it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check the path (relative to {Path.cwd()})") from error


def _read_rows(path: Path) -> Iterator[_Row]:
    """Yield the rows; raise one ValueError that tells of all unusable lines."""
    broken: list[str] = []
    found = False
    for line, raw in enumerate(_read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        found = True
        try:
            yield _read_row(line, raw)
        except _BadRow as error:
            broken.append(f"line {line}: {error}")
    if not found:
        raise ValueError(f'{path} is empty; write one row per line: {{"question": "2 + 2 =", "answer": "4"}}')
    if broken:
        more = f"\n  and {len(broken) - _MOST_LINES_SHOWN} more" if len(broken) > _MOST_LINES_SHOWN else ""
        lines = "\n  ".join(broken[:_MOST_LINES_SHOWN])
        raise ValueError(f"{path} has {len(broken)} unusable line(s); correct or delete them:\n  {lines}{more}")


def _read_row(line: int, raw: bytes) -> _Row:
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _BadRow(f"is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise _BadRow(f"is not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise _BadRow(f"is not an object with question and answer but {type(row).__name__}")
    question, answer = _field(row, "question"), _field(row, "answer")
    difficulty = _field(row, "difficulty") if "difficulty" in row else "all"
    seed = row.get("seed", False)
    if not isinstance(seed, bool):
        raise _BadRow(f'"seed" must be true or false, not {seed!r}')
    metadata = {key: value for key, value in row.items() if key not in _OWN_FIELDS}
    template = content_id(["parameters", metadata["parameters"]]) if "parameters" in metadata else None
    return _Row(line, Item(question, answer, difficulty, metadata, template), seed)


def _refuse_constant(name: str) -> None:
    raise _BadRow(f"has the value {name}, which is not JSON")


def _field(row: dict[str, Any], name: str) -> str:
    """Return a field's text; a plain number is taken as it is written."""
    if name not in row:
        raise _BadRow(f'has no "{name}" (it has {", ".join(map(repr, row)) or "nothing"})')
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f'"{name}" must be text and not blank, not {value!r}')
    return value


def _drop_repeats(path: Path, rows: list[_Row]) -> list[_Row]:
    """Keep the first row of each question; it is a seed example if any of its repeats is marked as one."""
    kept: dict[str, _Row] = {}
    clashes = []
    for row in rows:
        first = kept.setdefault(row.item.id, row)
        if normalise(first.item.answer) != normalise(row.item.answer):
            answers = f"{first.item.answer!r} and {row.item.answer!r}"
            clashes.append(f"lines {first.line} and {row.line}: {answers} to {row.item.question!r}")
        if row.seed and not first.seed:
            kept[row.item.id] = first._replace(seed=True)
    if clashes:
        lines = "\n  ".join(clashes[:_MOST_LINES_SHOWN])
        raise ValueError(f"{path} answers {len(clashes)} question(s) in two ways; keep the right one:\n  {lines}")
    return list(kept.values())
