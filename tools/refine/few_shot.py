"""Examples before the question: the nearest right training rows, found by the vector memory, or a fixed few.

Nearest neighbours as in arXiv 2101.06804. The rows are those of frozen datasets: answers that the scorer found right,
to questions that are no evaluation items (the referee looks at them again before its verdict).
"""

from typing import Any, Literal

from memory.records import content_id
from memory.store import RunStore
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.jobs.job import Job
from tools.refine.policy import Asked
from tools.refine.proposal import changed, proposal_tokens, propose, untried

COUNTS = (2, 4)
USE = (
    "Put worked examples before the question, as earlier turns of the chat (question by the user, answer by the "
    "assistant): those under `examples` of policy.json or, where it has a `count`, that many rows of examples.jsonl "
    "whose questions are nearest to yours by cosine of all-MiniLM-L6-v2 vectors, the nearest last."
)


def examples(shots: Json, asked: Asked, questions: list[str]) -> list[list[tuple[str, str]]]:
    """Return the examples for each question, the nearest last."""
    if "examples" in shots:
        return [[(question, answer) for question, answer in shots["examples"]] for _ in questions]
    near = nearest_rows(shots["datasets"], shots["count"], asked, questions)
    return [[(row["prompt"], row["completion"]) for row in rows] for rows in near]


def nearest_rows(datasets: Json, count: int, asked: Asked, questions: list[str]) -> list[list[Json]]:
    """Return the `count` training rows whose questions are nearest to each question, the nearest last."""
    rows = training_rows(asked.store, datasets)
    memory, collection = asked.memory(), f"shots-{content_id(datasets)}"
    _fill(memory, collection, rows)
    found = memory.neighbours(collection, memory.embed(questions), count)
    return [[rows[name] for name, *_ in near[::-1]] for near in found]


def training_rows(store: RunStore, datasets: Json) -> dict[str, Json]:
    """Return the rows of some datasets, by id."""
    return {row["id"]: row for name in datasets for row in store.rows("data", name, "train.jsonl")}


def _fill(memory: Any, collection: str, rows: dict[str, Json]) -> None:
    """Put the rows into a collection of their own: one that grows later would change what a policy shows."""
    if memory.count(collection) != len(rows):
        texts = [row["prompt"] for row in rows.values()]
        metadata = [{"item_id": row["item_id"]} for row in rows.values()]
        memory.upsert(collection, list(rows), memory.embed(texts), texts, metadata)


def seed_examples(job: Job) -> Json:
    """Return {"rows"}: the task's worked examples, with question ("prompt") and answer ("completion")."""
    rows = job.resident.task.seed_examples()
    return {"rows": [{"prompt": item.question, "completion": item.answer} for item in rows]}


def nearest(store: RunStore, count: int) -> Json | None:
    """Return the settings of nearest examples from all datasets that may be used, None without any."""
    hashes = usable_datasets(store)
    return changed(store, shots={"kind": "few_shot", "datasets": hashes, "count": count}) if hashes else None


def usable_datasets(store: RunStore) -> dict[str, str]:
    """Return the frozen datasets that were not quarantined, each with the hash of its rows."""
    names = [row["id"] for row in store.datasets("train") if row["id"] not in store.quarantined()]
    return {name: content_id(store.rows("data", name, "train.jsonl")) for name in names}


def legal_examples(context: ToolContext) -> Grid | None:
    """Nothing waits for a verdict; nearest examples need a frozen dataset; each number is tried once for a champion."""
    store = context.store
    if store.candidate() is not None:
        return None
    near = {count: nearest(store, count) for count in COUNTS}
    counts = [count for count, settings in near.items() if settings is not None and untried(store, settings)]
    if counts:
        return {"source": ["nearest"], "count": counts}
    counts = [count for count in COUNTS if count not in _fixed_counts(store)]
    return {"source": ["fixed"], "count": counts} if counts else None


def _fixed_counts(store: RunStore) -> set[int]:
    """Return how many fixed examples the champion was measured with."""
    asked = [row for row in store.all("policies") if not untried(store, row["settings"])]
    return {len(row["settings"].get("shots", {}).get("examples", [])) for row in asked}


def example_tokens(context: ToolContext, source: str, count: int) -> int:
    """Tokens of measuring both kinds of examples on search items and one on the gate."""
    del source
    return proposal_tokens(context, 1.0 + 1.2 * count, 2)


@tool(
    stage="refine", section="examples in the prompt", optional=True, when=legal_examples,
    estimate_tokens=example_tokens,
)  # fmt: skip
def show_examples(run: ToolRun, source: Literal["nearest", "fixed"] = "nearest", count: Literal[2, 4] = 4) -> Json:
    """Let the champion see worked examples before each question, if the referee finds that better.

    Use it when training brings little more. "nearest" takes right answers of earlier datasets to the most similar
    questions, "fixed" the task's own examples, which is also measured as the control. Returns the search score, how
    many times the champion's tokens an answer costs, and whether the champion is asked so from now on.
    """
    context = run.context
    told, _ = context.jobs.run("tools.refine.few_shot:seed_examples", {})
    rows = context.referee.remove_overlaps(told["rows"]).kept[:count]
    if source == "fixed" and len(rows) < count:
        raise ToolError(f"the task has {len(rows)} examples that may be shown; ask for fewer, or for nearest ones")
    fixed = [[row["prompt"], row["completion"]] for row in rows]
    control = changed(context.store, shots={"kind": "few_shot", "examples": fixed}) if fixed else None
    settings = control if source == "fixed" else nearest(context.store, count)
    if settings is None:
        raise ToolError("there is no frozen dataset to take examples from; generate and curate data first")
    return propose(context, settings, None if source == "fixed" else control)
