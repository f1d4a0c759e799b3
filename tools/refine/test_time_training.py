"""Test-time training on nearest neighbours (arXiv 2305.18466): a throw-away adapter for each question.

The model reads the right training rows nearest to a question a few times and answers it; then what it learned is
dropped. Rows are as in few_shot.py. A training for every question costs a hundred times a plain answer or more, so that
only long budgets afford it.
"""

from typing import Literal

from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.engines.base import Completion, Message, Sampling
from tools.evaluate.costs import TRAINED_TOKEN_COST
from tools.refine.few_shot import nearest_rows, usable_datasets
from tools.refine.policy import Asked
from tools.refine.proposal import changed, proposal_tokens, propose, untried

PASSES = 4
USE = (
    "For each question train a LoRA adapter on the `neighbours` rows of examples.jsonl whose questions are nearest to "
    "it by cosine of all-MiniLM-L6-v2 vectors, `passes` times, answer greedily and drop the adapter."
)


def choose(choice: Json, asked: Asked, prompts: list[list[Message]]) -> list[Completion]:
    """Return for each prompt the greedy answer of the model that has read the rows nearest to its question."""
    questions = [prompt[-1]["content"] for prompt in prompts]
    found = []
    for prompt, rows in zip(
        prompts, nearest_rows(choice["datasets"], choice["neighbours"], asked, questions), strict=True
    ):
        with asked.taught(rows, choice["passes"]):
            [[answer]] = asked.engine.generate([prompt], Sampling(asked.max_new_tokens))
        found.append(answer)
    return found


def training_settings(datasets: Json, neighbours: int) -> Json:
    """Return the part of a policy that trains on the nearest rows of datasets (id -> hash of the rows)."""
    return {"kind": "test_time_training", "datasets": datasets, "neighbours": neighbours, "passes": PASSES}


def legal_training(context: ToolContext) -> Grid | None:
    """There is a frozen dataset, the model is in this process, and nothing waits for a verdict."""
    store = context.store
    datasets = usable_datasets(store)
    if store.candidate() is not None or not datasets or not _trainable(context):
        return None
    counts = [count for count in (8, 16) if untried(store, changed(store, choice=training_settings(datasets, count)))]
    return {"neighbours": counts} if counts else None


def _trainable(context: ToolContext) -> bool:
    """Whether the engine that answers is the one that trains; another cannot know a new adapter for each question."""
    identity = (context.store.champion_score() or {}).get("identity", {})
    return bool(identity.get("engine") == "transformers")


def training_tokens(context: ToolContext, neighbours: int) -> int:
    """Tokens of measuring it on search and gate items."""
    return proposal_tokens(context, 1.0 + TRAINED_TOKEN_COST * PASSES * neighbours)


@tool(stage="refine", section="test-time training", optional=True, when=legal_training, estimate_tokens=training_tokens)
def train_on_neighbours(run: ToolRun, neighbours: Literal[8, 16] = 8) -> Json:
    """Let the champion learn from the nearest training rows before it answers each question, and forget them after it.

    Use it at the end of a long run, when questions are of many kinds. Returns the search score, how many times the
    champion's tokens an answer costs, and whether the champion answers so from now on.
    """
    store = run.context.store
    datasets = usable_datasets(store)
    if not datasets:
        raise ToolError("there is no frozen dataset to learn from; generate and curate data first")
    return propose(run.context, changed(store, choice=training_settings(datasets, neighbours)))
