"""What a task is: items, a scorer, disjoint search / gate / final splits, a training stream and a few seed examples."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

from memory.records import content_id


def normalise(text: str) -> str:
    """Return the text that decides whether two questions are the same: lower case, single spaces, no end spaces."""
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class Item:
    """One question of a task. `id` is the hash of its normalised question: equal questions are one item."""

    question: str
    answer: str
    """Reference answer in the task's own format; shown to nobody but the scorer."""
    difficulty: str
    """Short label by which diagnoses group items, for example "2 digits"; "all" when the task has none."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the scorer needs beside question and answer; plain JSON values."""
    template: str | None = None
    """Hash of the parameters that a template was filled with: items with the same one are one question in other words.
    None: not from a template."""

    @property
    def id(self) -> str:
        """Content hash of the normalised question."""
        return content_id(normalise(self.question))

    @property
    def keys(self) -> tuple[str, ...]:
        """By which it is the same question as another: its wording and the parameters of its template."""
        return (self.id,) if self.template is None else (self.id, self.template)

    def to_json(self) -> dict[str, Any]:
        """Return the item as plain JSON values, with its id."""
        return {"id": self.id} | asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Item":
        """Rebuild an item from `to_json`."""
        return cls(row["question"], row["answer"], row["difficulty"], row["metadata"], row.get("template"))


class SplitSizes(NamedTuple):
    """Number of items per evaluation split."""

    search: int
    gate: int
    final: int


class Splits(NamedTuple):
    """The three evaluation splits, disjoint by wording and by template parameters (`Item.keys`)."""

    search: list[Item]
    gate: list[Item]
    final: list[Item]


class Verdict(NamedTuple):
    """What the scorer said of one answer."""

    score: float
    """0.0 (wrong) to 1.0 (right)."""
    kind: str
    """"right", "wrong", "malformed" (no answer can be read from the text), "timeout" or "error" (the scorer failed)."""

    @property
    def right(self) -> bool:
        """Whether the answer counts as verified."""
        return self.kind == "right"


class Task(Protocol):
    """A task. Building one (`tools.tasks.load_task`) is cheap, deterministic for a spec, and imports no torch."""

    spec: str
    """Canonical text of the task: the same task gives the same text."""
    scorer: dict[str, Any]
    """What the scorer process needs: {"name": ..., ...options}; plain JSON values."""
    generated: bool
    """Whether its questions are variations that a generator makes, of which one more with other numbers is the task
    itself; in a fixed benchmark such a one is a copy, and no training item may be one."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, in tokens, that a right answer needs (with some room)."""

    def seed_examples(self) -> list[Item]:
        """Return at most 6 worked items for few-shot prompts; they are in no split and never in the stream."""

    def splits(self, sizes: SplitSizes, seed: int) -> Splits:
        """Return the evaluation splits. Raises ValueError that names the number needed when there are too few items."""

    def stream(self, start: int, count: int, seed: int) -> list[Item]:
        """Return training items start..start+count of the endless training stream (a finite source repeats).

        The stream may hold items that are in a split; the caller drops and counts them.
        """


def distinct_questions(items: Iterable[Item], taken: Iterable[Item] = ()) -> list[Item]:
    """Return the items that share no key with an earlier one or with one of `taken`, in order."""
    seen = {key for item in taken for key in item.keys}
    chosen = []
    for item in items:
        if seen.isdisjoint(item.keys):
            chosen.append(item)
            seen.update(item.keys)
    return chosen


def spread_by_difficulty(items: Iterable[Item], count: int) -> list[Item]:
    """Choose up to `count` items that cover the difficulty labels evenly, the first items of each label first."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.difficulty, []).append(item)
    labels = sorted(groups)
    num_labels = min(count, len(labels))
    chosen = [groups[labels[index * len(labels) // num_labels]] for index in range(num_labels)]
    return [item for turn in zip_longest(*chosen) for item in turn if item is not None][:count]


def answer_token_limit(answers: Iterable[str]) -> int:
    """Return how many new tokens the longest of these answers may need: a token is at least one byte of UTF-8."""
    longest = max((len(answer.encode()) for answer in answers), default=0)
    return min(512, max(6, longest + 3))
