"""What is to be learned: tasks made of items, three evaluation splits, an endless training stream and a scorer.

`load_task` takes one text:
  reasoning_gym:chain_sum?min_terms=2&max_terms=2     a generator of reasoning-gym with options of its configuration
  data/my.jsonl?scorer=numeric&tolerance=0.01         rows {"question", "answer"}, see jsonl_task.py; also jsonl:PATH
  data/my.jsonl?scorer=numeric&generated=true         the rows are variations: training on other numbers is the task
  data/my.toml                                        items = "my.jsonl", scorer = "numeric", and the scorer's options
"""

from pathlib import Path

from tools.tasks.base import Task
from tools.tasks.options import split_spec


def load_task(spec: str) -> Task:
    """Build the task that `spec` names. Raises ValueError with the offending word, the nearest one and the cure."""
    # Imported here so that the adapters' own imports of this package do not run in a circle.
    from tools.tasks.jsonl_task import load_jsonl_task, load_toml_task
    from tools.tasks.reasoning_gym_task import ReasoningGymTask, dataset_names

    name, options = split_spec(spec)
    kind, colon, rest = name.partition(":")
    if colon and kind == "reasoning_gym":
        return ReasoningGymTask(rest, options)
    if colon and kind == "jsonl":
        return load_jsonl_task(Path(rest), options)
    if name.endswith(".jsonl"):
        return load_jsonl_task(Path(name), options)
    if name.endswith(".toml"):
        if options:
            raise ValueError(f"task {spec!r}: a .toml task takes no options after '?'; write them in the file")
        return load_toml_task(Path(name))
    forms = "reasoning_gym:<name>?key=value, <file>.jsonl?scorer=<name> or <file>.toml"
    if name.removeprefix("reasoning-gym:") in dataset_names():
        near = spec.removeprefix("reasoning-gym:")
        raise ValueError(f"unknown task {spec!r}; did you mean 'reasoning_gym:{near}'? A task is {forms}")
    raise ValueError(f"unknown task {spec!r}; a task is {forms}")
