"""Which rows the training of a model read, and which models a row reached: what `follow` tells, as plain values.

The rehearsed rows are drawn again by the very function that drew them (tools/optimize/rehearsal.py).
"""

from collections import Counter
from typing import Any, NamedTuple

from memory.store import BASE, Record, RunStore
from tools.evaluate.costs import REHEARSAL_SHARE
from tools.optimize.prefer_answers import likelihood
from tools.optimize.rehearsal import rehearsal
from tools.select.curate_data import ANSWERS

Json = dict[str, Any]
NEW, AGAIN, REHEARSED, CHATS = "new", "read again", "rehearsed", "general chats"
"""Parts of what a training reads: its newest dataset, earlier ones in full, some rows of earlier ones, chats."""
CHAT = "general_chats"
"""Kind of the dataset of general chats."""
UNKNOWN = "not known"
PAIRED = ("preferences", "kto")
"""Objectives that also train on a wrong answer to a row's question."""
ONLY_QUESTIONS = ("grpo", "self-distillation")
"""Objectives that train on the model's own answers to a row's question."""


class Part(NamedTuple):
    """Rows that a training read."""

    name: str
    """NEW, AGAIN, REHEARSED or CHATS."""
    datasets: list[str]
    """That they are of: one, except where it is not known which rows were drawn."""
    rows: list[Json] | None
    """None = nothing in the run's files tells any more which rows of the datasets were drawn."""
    num_rows: int


def is_combined(model: Record) -> bool:
    """Whether a model was made of other models' weights, without training: an average or a scaled update."""
    return "members" in model


def _how(part: Part, row_id: str | None) -> str:
    """Return how a part of a training read a row (None = its dataset), "" when it did not."""
    if part.rows is None:
        return f"may have rehearsed it ({part.num_rows} rows of {', '.join(part.datasets)} were drawn)"
    verb = {NEW: "trained on", AGAIN: "trained again on", REHEARSED: "rehearsed", CHATS: "read"}[part.name]
    if row_id is None:
        return f"{verb} {part.num_rows} rows of it"
    times = sum(row["id"] == row_id for row in part.rows)
    return f"{verb} it{f' {times} times' if times > 1 else ''}" if times else ""


def first_ids(ids: list[str], most: int = 5) -> str:
    """Return "rows a, b, c, d, e and 7 more (all with --json)"."""
    more = f" and {len(ids) - most} more (all with --json)" if len(ids) > most else ""
    return f"rows {', '.join(ids[:most])}{more}"


class Rows:
    """The rows of a run's datasets, each file read once."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.models = {model["id"]: model for model in store.all("models")}
        self.datasets = {dataset["id"]: dataset for dataset in store.all("data")}
        self.chats = [name for name, dataset in self.datasets.items() if dataset["kind"] == CHAT]
        self.answers = [name for name, dataset in self.datasets.items() if dataset["kind"] in ANSWERS]
        self.frozen = [name for name, dataset in self.datasets.items() if dataset["kind"] == "train"]
        self._rows: dict[tuple[str, str], list[Json]] = {}
        self._parts: dict[str, list[Part]] = {}

    def rows(self, dataset: str, name: str) -> list[Json]:
        """Return the rows of a dataset's file; [] when the file is not there."""
        if (dataset, name) not in self._rows:
            self._rows[dataset, name] = self.store.rows("data", dataset, name)
        return self._rows[dataset, name]

    def parts(self, model_id: str) -> list[Part]:
        """Return what the training of a model read; [] for the base and for a model made of others' weights."""
        if model_id not in self._parts:
            model = self.models.get(model_id)
            self._parts[model_id] = [] if model is None or is_combined(model) else self._read(model)
        return self._parts[model_id]

    def _read(self, model: Record) -> list[Part]:
        beside = model.get("rehearse", [])
        parts = [self._whole(NEW if name == model["dataset"] else AGAIN, name) for name in model["datasets"]]
        earlier = [name for name in beside if name not in self.chats]
        drawn = rehearsal(
            [row | {"of": name} for name in earlier for row in self.rows(name, "train.jsonl")],
            int(REHEARSAL_SHARE * sum(part.num_rows for part in parts)),
            model["seed"],
        )
        chats = [self._whole(CHATS, name) for name in beside if name in self.chats]
        left = model["num_examples"] - sum(part.num_rows for part in [*parts, *chats])
        # An objective counts what it makes of the rows (pairs, samples), so only without one there is a sum to check.
        if "objective" not in model["settings"] and left != len(drawn):
            return [*parts, Part(REHEARSED, earlier, None, left), *chats] if left > 0 else [*parts, *chats]
        for name in dict.fromkeys(row["of"] for row in drawn):
            rows = [row for row in drawn if row["of"] == name]
            parts.append(Part(REHEARSED, [name], rows, len(rows)))
        return [*parts, *chats]

    def _whole(self, part: str, dataset: str) -> Part:
        rows = self.rows(dataset, "train.jsonl")
        return Part(part, [dataset], rows, len(rows))

    def read_counts(self, model_id: str) -> Json:
        """Count what a training read, by part, source, filter and model, each {name: rows} and all with the same sum.

        source: the dataset of answers that a row is from; filter: the choices of the curation that took it; model: who
        wrote its answer.
        """
        found: dict[str, Counter[str]] = {name: Counter() for name in ("part", "source", "filter", "model")}
        for part in self.parts(model_id):
            found["part"][part.name] += part.num_rows
            found["filter"][self._filter(part)] += part.num_rows
            if part.rows is None:
                found["source"][UNKNOWN] += part.num_rows
                found["model"][UNKNOWN] += part.num_rows
            for row in part.rows or ():
                found["source"][row.get("generation", part.datasets[0])] += 1  # chats have no generation
                found["model"][row.get("model", BASE)] += 1
        return {f"examples_by_{name}": dict(counter.most_common()) for name, counter in found.items()}

    def _filter(self, part: Part) -> str:
        if part.name == CHATS:
            return "no evaluation items"
        if len(part.datasets) != 1:
            return UNKNOWN
        about = self.datasets.get(part.datasets[0], {})
        return ", ".join(about[name] for name in ("keep", "choice") if name in about) or UNKNOWN

    # --- downwards

    def readers(self, dataset: str, row_id: str | None = None) -> dict[str, str]:
        """Return the models whose training read a row of a dataset (None = any of its rows), each with how."""
        found = {}
        for name, model in self.models.items():
            told = [_how(part, row_id) for part in self.parts(name) if dataset in part.datasets]
            if any(told):
                only = model["settings"].get("objective") in ONLY_QUESTIONS
                found[name] = " and ".join(filter(None, told)) + (" (questions only, not the answers)" if only else "")
        return found

    def contrasted(self, sample: Json) -> dict[str, str]:
        """Return the models that were trained to make a wrong answer less likely: as the wrong one of a pair."""
        # Which one is taken of several is tools/optimize/dpo_worker.py's choice: the likeliest that ended.
        wrong = [
            row
            for row in self.rows(sample["generation"], "samples.jsonl")
            if row["item_id"] == sample["item_id"] and not row["right"] and row.get("finish") == "stop"
            and row["completion"]
        ]  # fmt: skip
        if not wrong or max(wrong, key=likelihood)["sample"] != sample["sample"]:
            return {}
        place = sample["generation"], sample["item_id"]
        return {
            name: "trained to make it less likely, as the wrong answer beside a right one"
            for name, model in self.models.items()
            if model["settings"].get("objective") in PAIRED
            and any((row.get("generation"), row.get("item_id")) == place
                    for part in self.parts(name) for row in part.rows or ())
        }  # fmt: skip

    def reached(self, direct: dict[str, str]) -> dict[str, str]:
        """Return the models whose weights something touched, oldest first, each with how.

        direct: those that read it themselves; after them come those that went on from one that it touched.
        """
        found: dict[str, str] = {}
        for name, model in self.models.items():
            touched = [one for one in (model["parent"], *model.get("members", [])) if one in found]
            through = f"went on from {', '.join(dict.fromkeys(touched))}" if touched else ""
            if name in direct:
                found[name] = direct[name] + (f" and {through}, which it had touched" if through else "")
            elif through:
                found[name] = f"{through}, which it had touched"
        return found
