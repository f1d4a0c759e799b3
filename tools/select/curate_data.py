"""From the samples of all generations to one frozen training set, through the vector memory.

In order: the candidates without duplicates (pool.py), a selector's choice of them (selector.py), overlap with an
evaluation item (the referee, see contamination.py).
Writes data/<id>/train.jsonl (TRL's prompt and completion columns) and rejected.jsonl, each row with its reason.
Old data is replayed by the training itself: it rehearses a share of what the model learned before (sft_worker.py).
"""

from typing import Any, Literal

from memory.records import content_id
from memory.store import BASE, RunStore
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.evaluate.costs import answer_tokens, new_set_tokens
from tools.select.selector import DEFAULT, SELECTORS, Pool, choose, offered

LEAST_FIRST_EXAMPLES = 48
"""Enough to teach the answer's form, after which sampling succeeds far more often."""
LEAST_EXAMPLES = 192
"""Later gains are smaller, and what fewer examples bring is mostly too little for the referee to prove."""
HIGHEST_PASS_RATE = {"not_too_easy": 0.9, "hard": 0.6}
"""What the champion solves more often than this teaches it nothing (few-shot answers of the base always teach form)."""
OVERLAPS = tuple(f"evaluation_{kind}" for kind in ("exact", "reordered", "template", "ngram", "paraphrase"))
"""Reasons of the referee: what a training question is to an evaluation item."""
RULED_OUT = ("near_duplicate", "semantic_duplicate", *OVERLAPS)
"""Reasons that stay true; a row rejected for another one may be chosen later."""
ANSWERS = ("samples", "imported")
"""Kinds of datasets that hold answers to choose from."""
INTERMEDIATE = ("pool", "regions")
"""Kinds of datasets that curation makes on its way, and nothing is trained on."""
SIZES = (512, 1024, 2048)
POOL = 2
"""Candidates for each row of a set: what lies beyond these is easier than anything that should still be chosen."""
ORIGIN = ("item_id", "generation", "model", "pass_rate", "difficulty")


def least_examples(store: RunStore) -> int:
    """Return how many examples a training set needs: few while the base model is the champion, then more."""
    return LEAST_FIRST_EXAMPLES if store.champion() == BASE else LEAST_EXAMPLES


def num_unused_items(store: RunStore, keep: str) -> int:
    """Return how many items have an unused right answer and are hard enough."""
    return len({row["item_id"] for row in unused_right(store) if row["pass_rate"] <= HIGHEST_PASS_RATE[keep]})


def unused_right(store: RunStore) -> list[Json]:
    """Return the right samples that no frozen dataset holds and no filter has ruled out for good."""
    used: set[str] = set()
    for dataset in store.all("data"):
        if dataset["kind"] in ("train", "refused"):
            used |= {row["id"] for row in store.rows("data", dataset["id"], "train.jsonl")}
            rejected = store.rows("data", dataset["id"], "rejected.jsonl")
            used |= {row["id"] for row in rejected if row["reason"] in RULED_OUT}
    return [
        row
        for dataset in store.all("data")
        if dataset["kind"] in ANSWERS
        for row in store.rows("data", dataset["id"], "right.jsonl")
        if row["example_id"] not in used
    ]


def legal_curation(context: ToolContext) -> list[Grid] | None:
    """Enough unused right answers, and no dataset or candidate waits."""
    if context.store.untrained_datasets() or context.store.candidate():
        return None
    least = least_examples(context.store)
    unused = {keep: num_unused_items(context.store, keep) for keep in HIGHEST_PASS_RATE}
    enough = [keep for keep, num_items in unused.items() if num_items >= least]
    if not enough:
        return None
    if unused["not_too_easy"] <= SIZES[0]:  # all of them: there is nothing to choose
        grid: Grid = {"keep": enough, "size": [SIZES[0]], "choice": [DEFAULT]}
    else:
        # The first size that takes all of them is the last one.
        sizes = [size for size in SIZES if size / 2 < unused["not_too_easy"]]
        grid = {"keep": enough, "size": sizes, "choice": offered(context)}
    return [grid, grid | {"size": [LEAST_EXAMPLES], "choice": [DEFAULT]}]


def training_tokens(context: ToolContext, size: int, choice: str, **_: Any) -> int:
    """Tokens of the choice, and of the least training on the set and the verdict, without which it is of no use."""
    num_unused = num_unused_items(context.store, "not_too_easy")
    reading = SELECTORS[choice].reads * min(POOL * size, num_unused) * sum(answer_tokens(context.store))
    return int(reading + new_set_tokens(context, min(size, num_unused)))


@tool(stage="select", section="scoring and filtering", when=legal_curation, estimate_tokens=training_tokens)
def curate_data(
    run: ToolRun,
    size: Literal[192, 512, 1024, 2048] = 1024,
    keep: Literal["not_too_easy", "hard"] = "not_too_easy",
    choice: str = DEFAULT,
) -> Json:
    """Freeze a training set from the right answers that were not used yet: no duplicates, nothing from the evaluation.

    Use it after generating, before training. size is the most it takes. "hard" keeps items that at
    most 60 % of the samples solved, "not_too_easy" at most 90 %; choice says which of these, when there are more.
    Returns the dataset's id and size, and how many rows each filter rejected.
    """
    context, store = run.context, run.context.store
    sources = [dataset["id"] for dataset in store.all("data") if dataset["kind"] in ANSWERS]
    pool, found = open_pool(context, size, keep)
    chosen = [training_row(pool.rows[place]) for place in choose(pool, choice, size)]
    kept, overlapping, num_same_template = context.referee.remove_overlaps(chosen)
    rejected = store.rows("data", pool.dataset, "rejected.jsonl") + [
        row | {"reason": f"evaluation_{row['reason']}", "neighbour": None, "similarity": None} for row in overlapping
    ]
    _check_size(store, kept, rejected, overlapping)
    regions, _ = context.jobs.run("memory.regions:remember", {"pool": pool.dataset, "ids": [row["id"] for row in kept]})
    dataset_id = content_id({"kind": "train", "ids": sorted(row["id"] for row in kept)})
    reasons = [row["reason"] for row in rejected]
    manifest: Json = {"size": size, "keep": keep, "choice": choice, "seed": context.seed} | {
        "kind": "train",
        "num_examples": len(kept),
        "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "num_same_template": num_same_template,
        "sources": sources,
        "pool": pool.dataset,
        "cosine_limits": found["cosine_limits"],
        "regions": regions["counts"],
        "example_ids": [row["id"] for row in kept],
    }
    store.put("data", dataset_id, manifest, {"train.jsonl": kept, "rejected.jsonl": rejected})
    return {"dataset": dataset_id, "num_examples": len(kept), "rejected": manifest["rejected"]}


def open_pool(context: ToolContext, size: int, keep: str) -> tuple[Pool, Json]:
    """Return the candidates for a set of this size, and what `tools.select.pool.make_pool` tells of them."""
    read = ("train", "refused", *ANSWERS)
    inputs = {"datasets": [dataset["id"] for dataset in context.store.all("data") if dataset["kind"] in read]}
    args = {"keep": keep, "most": POOL * size, "seed": context.seed}
    found, _ = context.jobs.run("tools.select.pool:make_pool", args, inputs)
    return Pool(context, context.store.rows("data", found["pool"], "candidates.jsonl"), found["pool"]), found


def _check_size(store: RunStore, kept: list[Json], rejected: list[Json], overlapping: list[Json]) -> None:
    """Raise ToolError when too few rows are left."""
    if len(kept) >= least_examples(store) // 2:
        return
    # The rejections are kept, so that these rows no longer count as unused and more can be generated.
    refused_id = content_id({"kind": "refused", "ids": sorted(row["id"] for row in rejected)})
    store.put("data", refused_id, {"kind": "refused"}, {"train.jsonl": [], "rejected.jsonl": rejected})
    raise ToolError(
        f"only {len(kept)} examples pass the filters (at least {least_examples(store) // 2}); generate more"
        + _template_advice(overlapping, kept)
    )


def _template_advice(overlapping: list[Json], kept: list[Json]) -> str:
    """Return what a person should do whose file of variations was taken for a fixed benchmark; "" otherwise."""
    num_renumbered = sum(row["reason"] == "template" for row in overlapping)
    if num_renumbered <= len(kept):
        return ""
    return (
        f" ({num_renumbered} were removed as evaluation items with other numbers; if the task's rows are variations "
        "of a few templates, start a run with ?generated=true)"
    )


def training_row(row: Json) -> Json:
    """Return the row of train.jsonl: TRL's columns, and where it came from."""
    # "source": of what the user brought; "method": of what another than generate_data made
    source = {key: row[key] for key in (*ORIGIN, "source", "method") if key in row}
    parent = content_id({key: row[key] for key in ("generation", "item_id", "sample")})
    return {
        "id": row["example_id"],
        "example_id": row["example_id"],
        "prompt": row["prompt"],
        "completion": row["completion"],
        "parents": [parent],
    } | source


def rejection(row: Json, reason: str, neighbour: str | None = None, similarity: float | None = None) -> Json:
    """Return the row of rejected.jsonl; neighbour and similarity: of what it repeats, None of any other reason."""
    return training_row(row) | {"reason": reason, "neighbour": neighbour, "similarity": similarity}
