"""A task as the worker and the tools may see it: what is held out for evaluation is not in it.

A generator's task is the same for all, because nobody else can draw its evaluation items (see agent/sealing.py). Of a
task made of rows the worker gets a copy without the rows that are held out, and no way to the file itself.
"""

from pathlib import Path

from memory.records import write_jsonl
from tools.tasks.base import Item, Splits, Task
from tools.tasks.jsonl_task import JsonlTask
from tools.tasks.options import join_spec, split_spec


def write_training_view(task: Task, splits: Splits, folder: Path) -> str:
    """Write the rows to train on into `folder`, and return the spec of the task that they make.

    The seed examples stay seed examples. A row from the same template parameters as a held-out one is left out too.
    """
    if not isinstance(task, JsonlTask):
        return task.spec
    held_out = {key for items in splits for item in items for key in item.keys}
    items = [item for item in task.items if held_out.isdisjoint(item.keys)]
    rows = [_row(item, False) for item in items] + [_row(item, True) for item in task.examples]
    write_jsonl(folder / "train.jsonl", rows)
    options = split_spec(task.spec).options | {"max_new_tokens": str(task.max_new_tokens)}
    if task.scorer["name"] == "python":
        options["scorer"] = f"python:{task.scorer['file']}"
    return join_spec(f"jsonl:{folder.resolve() / 'train.jsonl'}", options)


def source_files(task: Task) -> list[Path]:
    """Return the files that hold the task's items with their answers."""
    return [task.path.resolve()] if isinstance(task, JsonlTask) else []


def _row(item: Item, seed: bool) -> dict[str, object]:
    return item.metadata | {
        "question": item.question, "answer": item.answer, "difficulty": item.difficulty, "seed": seed,
    }  # fmt: skip
