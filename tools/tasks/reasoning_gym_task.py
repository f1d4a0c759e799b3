"""Tasks from reasoning-gym: about 100 generators of questions with exact scorers, e.g. `reasoning_gym:chain_sum`.

Items are drawn from small datasets ("chunks") whose seeds are hashes of the purpose, the run's seed and the chunk's
number: item i is the same whenever it is asked for, and generators that prepare a whole dataset at once stay cheap.
"""

import hashlib
import importlib
import json
import math
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from enum import Enum
from fractions import Fraction
from functools import cached_property
from types import NoneType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from memory.records import canonical_json, content_id
from memory.vectors import carriers
from tools.tasks.base import Item, Splits, SplitSizes, answer_token_limit, spread_by_difficulty
from tools.tasks.options import check_name, join_spec

NUM_SEED_EXAMPLES = 6
CHUNK_SIZE = 100
SAMPLE_SIZE = 64
DRAWS_PER_ITEM = 20
"""How many draws per wanted distinct item before a generator counts as exhausted."""
HASH_ORDERED = {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
"""Datasets (of reasoning-gym 0.1.25) that iterate over sets: their items change with Python's hash seed."""
_SET_BY_US = ("seed", "size")
_ORIGIN = ("source_dataset", "source_index", "source_idx")
"""Metadata that differs between two items that are the same question."""
_MOST_SINGLE_LEVELS = 12
_NUM_BINS = 4


class ReasoningGymTask:
    """One reasoning-gym dataset as a task (see `tools.tasks.base.Task`)."""

    generated = True

    def __init__(self, dataset: str, options: dict[str, str]) -> None:
        """Check the name and the options by the dataset's own configuration and generate one item."""
        if not dataset:
            raise ValueError("task 'reasoning_gym:' names no dataset; write for example reasoning_gym:chain_sum")
        check_name(dataset, dataset_names(), "reasoning_gym dataset")
        if dataset in HASH_ORDERED and sys.flags.hash_randomization:
            raise ValueError(
                f"reasoning_gym:{dataset} makes other items in every process, so held-out items would not stay held"
                " out; set PYTHONHASHSEED=0 in the environment or choose another dataset"
            )
        self.dataset = dataset
        self.config = _parse_options(dataset, options)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.config.items()}
        self.spec = join_spec(f"reasoning_gym:{dataset}", texts)
        self.scorer: dict[str, Any] = {"name": "reasoning_gym", "dataset": dataset, "config": self.config}
        self._chunks: dict[tuple[str, int, int], Any] = {}
        try:
            self._draw_plain("examples", 0, 0)
        except (AssertionError, TypeError, LookupError) as error:
            raise ValueError(f"{self.spec} cannot generate an item with these options: {error!r}") from error

    @cached_property
    def max_new_tokens(self) -> int:
        """Length of the longest of 64 sampled answers in bytes, with room, from 8 to 512."""
        return answer_token_limit(item.answer for item in self._sample)

    @cached_property
    def _sample(self) -> list[Item]:
        items = (self._draw_plain("examples", 0, index) for index in range(SAMPLE_SIZE))
        return list({item.id: item for item in items}.values())

    @cached_property
    def _examples(self) -> list[Item]:
        return spread_by_difficulty(map(self._with_template, self._sample), NUM_SEED_EXAMPLES)

    @cached_property
    def _example_keys(self) -> set[str]:
        return {key for item in self._examples for key in item.keys}

    @cached_property
    def _wording_counts(self) -> bool:
        """Whether equal metadata and answers stand for different questions, told by their numbers and names."""
        carried: dict[str, set[tuple[str, ...]]] = {}
        for item in self._sample:
            carried.setdefault(content_id(_parameters(item)), set()).add(carriers(item.question))
        return any(len(different) > 1 for different in carried.values())

    def _with_template(self, item: Item) -> Item:
        """Return the item with the hash of what the generator filled its template with; as it is when that is unknown.

        That is its metadata and answer, and in datasets whose metadata is no more than a size also the numbers,
        operators and names of the question.
        """
        metadata, answer = _parameters(item)
        if not metadata:
            return item
        wording = carriers(item.question) if self._wording_counts else ()
        return replace(item, template=content_id([self.dataset, metadata, answer, wording]))

    def seed_examples(self) -> list[Item]:
        """Return up to 6 distinct items over the range of difficulty; the same for every run."""
        return list(self._examples)

    def splits(self, sizes: SplitSizes, seed: int) -> Splits:
        """Draw distinct items in generator order: the first are final, the next gate, the last search.

        Where a task has few items of one kind, later draws find fewer of them. The final split comes first, so
        it is the nearest to the task as the generator poses it; gate and search leave every other of the remaining
        items to the training stream, lest evaluation holds all items of a kind and nothing of it can be learned.
        """
        needed = sum(sizes)
        pool: list[Item] = []
        seen = set(self._example_keys)
        num_draws = 0
        while len(pool) < needed and num_draws < DRAWS_PER_ITEM * needed:
            item = self._draw("evaluation", seed, num_draws)
            num_draws += 1
            for_training = len(pool) >= sizes.final and int(item.keys[-1][-1], 16) % 2 == 1
            if seen.isdisjoint(item.keys) and not for_training:
                pool.append(item)
                seen.update(item.keys)
        if len(pool) < needed:
            raise ValueError(
                f"{self.spec} gave only {len(pool)} distinct items for evaluation in {num_draws} draws, and {needed}"
                f" are needed for search {sizes.search} + gate {sizes.gate} + final {sizes.final}: widen the task's"
                " options or lower --search-items, --gate-items or --final-items"
            )
        cut = sizes.final + sizes.gate
        return Splits(search=pool[cut:], gate=pool[sizes.final : cut], final=pool[: sizes.final])

    def stream(self, start: int, count: int, seed: int) -> list[Item]:
        """Return items start..start+count of the endless stream of this seed; only these are generated."""
        return [self._stream_item(index, seed) for index in range(start, start + count)]

    def _stream_item(self, index: int, seed: int) -> Item:
        for attempt in range(DRAWS_PER_ITEM):
            item = self._draw("stream" if attempt == 0 else f"stream again {attempt}", seed, index)
            if self._example_keys.isdisjoint(item.keys):
                return item
        raise ValueError(
            f"{self.spec} makes hardly anything but its {len(self._examples)} seed examples; widen the task's options"
        )

    def _draw(self, purpose: str, seed: int, index: int) -> Item:
        return self._with_template(self._draw_plain(purpose, seed, index))

    def _draw_plain(self, purpose: str, seed: int, index: int) -> Item:
        number, offset = divmod(index, CHUNK_SIZE)
        chunk_seed = _derived_seed(purpose, seed, number)
        key = (purpose, seed, number)
        if key not in self._chunks:
            if len(self._chunks) >= 8:
                self._chunks.clear()
            self._chunks[key] = make_dataset(self.dataset, self.config, chunk_seed)
        with _global_random(chunk_seed + offset):
            entry = self._chunks[key][offset]
        return _item(self.dataset, entry)


def _parameters(item: Item) -> tuple[dict[str, Any], str]:
    """Return an item's metadata without what says where it comes from, and its answer."""
    return {name: value for name, value in item.metadata.items() if name not in _ORIGIN}, item.answer


def dataset_names() -> list[str]:
    """Return the names of reasoning-gym's datasets."""
    return list(_registry())


def make_dataset(name: str, config: dict[str, Any], seed: int) -> Any:
    """Construct a reasoning-gym dataset from JSON options. Raises ValueError with its reason when it refuses them."""
    dataset_class, config_class = _registry()[name]
    hints = get_type_hints(config_class)
    values = {key: _as_declared(value, hints[key]) for key, value in config.items()}
    try:
        return dataset_class(config_class(**values, seed=seed, size=CHUNK_SIZE))
    except (AssertionError, ValueError, TypeError) as error:
        given = ", ".join(f"{key}={value}" for key, value in config.items()) or "its default options"
        raise ValueError(f"reasoning_gym:{name} refuses {given}: {error}") from error


def entry_of(item: Item) -> dict[str, Any]:
    """Rebuild reasoning-gym's own entry of an item, as its `score_answer` wants it."""
    return {"question": item.question, "answer": item.answer, "metadata": _unpack(item.metadata)}


def _registry() -> dict[str, tuple[Any, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # cellpylib, a dependency, has invalid escapes in its docstrings
        importlib.import_module("reasoning_gym")
    registry: dict[str, tuple[Any, Any]] = importlib.import_module("reasoning_gym.factory").DATASETS
    return registry


def _derived_seed(purpose: str, seed: int, number: int) -> int:
    # Generators use seed + index, so near seeds would share items; one of them wants seed + index below 2**32.
    digest = hashlib.sha256(f"{purpose}/{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (2**32 - CHUNK_SIZE)


@contextmanager
def _global_random(seed: int) -> Iterator[None]:
    """Make generators that draw from the global `random` (list_functions does) repeatable."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _item(dataset: str, entry: dict[str, Any]) -> Item:
    answer = entry["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(
            f"reasoning_gym:{dataset} gives no reference answer ({answer!r}), so its scorer cannot be checked and no"
            " worked example can be shown; choose another dataset"
        )
    # The ranges of the whole dataset stand in "difficulty"; no scorer reads them.
    metadata = {key: value for key, value in entry["metadata"].items() if key != "difficulty"}
    try:
        packed = _pack(metadata)
        canonical_json(packed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reasoning_gym:{dataset} has metadata that cannot be stored as JSON ({error})") from error
    return Item(entry["question"], answer, _difficulty(entry["metadata"]), packed)


def _pack(value: Any) -> Any:
    """Tag what JSON would change or refuse: tuples, sets, fractions and dictionaries with other keys than text."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _pack(entry) for key, entry in value.items()}
        return {"__dict__": [[_pack(key), _pack(entry)] for key, entry in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(entry) for entry in value]}
    if isinstance(value, set | frozenset):
        return {"__set__": sorted((_pack(entry) for entry in value), key=canonical_json)}
    if isinstance(value, Fraction):
        return {"__fraction__": str(value)}
    if isinstance(value, list):
        return [_pack(entry) for entry in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "__dict__" in value:
        return {_unpack(key): _unpack(entry) for key, entry in value["__dict__"]}
    if "__tuple__" in value:
        return tuple(_unpack(entry) for entry in value["__tuple__"])
    if "__set__" in value:
        return {_unpack(entry) for entry in value["__set__"]}
    if "__fraction__" in value:
        return Fraction(value["__fraction__"])
    return {key: _unpack(entry) for key, entry in value.items()}


def _difficulty(metadata: dict[str, Any]) -> str:
    """Describe the item's own levels of what varies in the dataset ("3 terms, 2 digits"), else its kind, else "all"."""
    spans = metadata.get("difficulty")
    parts = []
    for name, span in spans.items() if isinstance(spans, dict) else ():
        level = metadata.get(name, metadata.get(f"num_{name}"))
        if not _is_number(level) or not isinstance(span, list | tuple) or len(span) != 2:
            continue
        low, high = span
        if _is_number(low) and _is_number(high) and low < high:
            parts.append(_describe_level(name, level, low, high))
    if parts:
        return ", ".join(parts)
    kinds = (metadata.get(name) for name in ("task_type", "task", "problem_type", "task_name"))
    return next((kind for kind in kinds if isinstance(kind, str)), "all")


def _describe_level(name: str, level: float, low: float, high: float) -> str:
    text = f"{level:g}"
    if not float(level).is_integer() or high - low > _MOST_SINGLE_LEVELS:
        width = (high - low) / _NUM_BINS
        number = min(_NUM_BINS - 1, max(0, int((level - low) / width)))
        text = f"{low + number * width:.6g} to {low + (number + 1) * width:.6g}"
    if not name.startswith("num_"):
        return f"{name} {text}"
    noun = name.removeprefix("num_")
    return f"{text} {noun.removesuffix('s') if text == '1' else noun}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse_options(dataset: str, options: dict[str, str]) -> dict[str, Any]:
    """Return the options as JSON values, without those that equal the default."""
    config_class = _registry()[dataset][1]
    hints = get_type_hints(config_class)
    defaults = config_class()
    valid = [field.name for field in fields(config_class) if field.name not in _SET_BY_US]
    config = {}
    for name in sorted(options):
        if name in _SET_BY_US:
            raise ValueError(f"reasoning_gym:{dataset}: {name!r} is set by the run; leave it out of the task")
        check_name(name, valid, f"option of reasoning_gym:{dataset}")
        try:
            value = _parse_value(options[name], hints[name])
        except ValueError as error:
            raise ValueError(f"reasoning_gym:{dataset}: option {name}={options[name]!r} {error}") from error
        if _as_declared(value, hints[name]) != getattr(defaults, name):
            config[name] = value
    return config


def _parse_value(text: str, hint: Any) -> Any:
    """Read an option's text as its declared type says. Raises ValueError with what was expected."""
    choices = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType in get_args(hint):
        return None if text.lower() in ("none", "null") else _parse_value(text, choices[0])
    if get_origin(hint) is Literal:
        return _one_of(text, [str(choice) for choice in choices])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of(text, [str(member.value) for member in hint])
    if hint is bool:
        return _one_of(text.lower(), ["true", "false"]) == "true"
    if hint is str:
        return text
    if hint in (int, float):
        return _parse_number(text, hint)
    if (get_origin(hint) or hint) in (list, tuple, Sequence):
        return _parse_list(text)
    raise ValueError("cannot be written in a task spec; leave it at its default")


def _parse_number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is not a valid {'whole number' if kind is int else 'number'}")
    return value


def _parse_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list):
        raise ValueError('is not a JSON list such as ["a", "b"]')
    return value


def _one_of(text: str, valid: list[str]) -> str:
    if text not in valid:
        raise ValueError(f"is not one of {', '.join(valid)}")
    return text


def _as_declared(value: Any, hint: Any) -> Any:
    if isinstance(value, list) and (get_origin(hint) or hint) is tuple:
        return tuple(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    return value
