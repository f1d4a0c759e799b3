"""Training on the model's own samples: the questions with their reference answers, and sampling while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memory.store import RunStore
from tools.contract import Json, ToolError
from tools.engines.base import Completion, Message, build_messages
from tools.jobs.job import Job
from tools.optimize import row_attention
from tools.optimize.collate import IGNORED, tokenise
from tools.tasks.base import Item

LEAST_ITEMS = 64


def items_of(job: Job, rows: list[Json]) -> list[Item]:
    """Return the items of training rows, once each, as the training stream of their generation gave them.

    Rows that the user brought come from no stream: their own answer is the reference. Raises ToolError when there are
    too few items to train on and to hold some out.
    """
    store, task = RunStore(job.run_dir), job.resident.task
    known: dict[str, Item] = {}
    for generation in dict.fromkeys(row["generation"] for row in rows):
        made = store.get("data", generation) or {}
        if made.get("kind") == "samples":
            stream = task.stream(made["start"], made["next_index"] - made["start"], made["seed"])
            known |= {item.id: item for item in stream}
    for row in rows:
        if row["item_id"] not in known and "source" in row:
            known[row["item_id"]] = Item(row["prompt"], row["completion"], row.get("difficulty", "all"))
    items = {row["item_id"]: known[row["item_id"]] for row in rows if row["item_id"] in known}
    if len(items) < LEAST_ITEMS:
        raise ToolError(f"only {len(items)} items to sample on (at least {LEAST_ITEMS}); call finetune_model")
    return list(items.values())


@contextmanager
def sampling_with(engine: Any, model: Any) -> Iterator[None]:
    """Let the engine generate with a PEFT model in training, whose attention is the engine's meanwhile."""
    base, before = model.get_base_model(), engine.model
    base.set_attn_implementation("key_value_tree")
    engine.model = base.eval()
    try:
        yield
    finally:
        engine.model = before
        base.set_attn_implementation(row_attention.NAME)
        base.train()


def completion_ids(tokenizer: Any, answer: Completion) -> list[int]:
    """Return an answer's tokens as training sees them: with the stop token when the model ended it."""
    tokens = tokenise(tokenizer, build_messages("", []), answer.text)
    ids = tokens.input_ids[tokens.labels.count(IGNORED) :]
    return ids if answer.finish == "stop" or len(ids) == 1 else ids[:-1]


def chat(job: Job, item: Item, shots: list[tuple[str, str]] | None = None) -> list[Message]:
    """Return the messages by which this run asks an item's question."""
    return build_messages(item.question, shots or [], job.resident.settings["system_prompt"])
