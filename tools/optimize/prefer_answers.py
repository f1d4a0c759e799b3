"""Train a candidate on pairs of right and wrong answers, beside finetune_model: see tools/optimize/dpo_worker.py.

DPO (arXiv 2305.18290). Not on the menu by default: on the default task it does worse than supervised training at the
same cost (bench/preferences.py). `--tools prefer_answers` offers it.
"""

from typing import Literal

from memory.store import BASE
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.evaluate.costs import training_tokens
from tools.optimize.adapters import is_adapter
from tools.optimize.finetune_model import latest_model, num_training_examples, train_candidate

TOKENS_OF_A_PAIR = 2.4
"""Against those of a right answer alone: both answers are trained on, and read once by the reference."""


def legal_preferences(context: ToolContext) -> Grid | None:
    """A frozen dataset waits, and there is an adapter to go on from: the base itself knows no form to prefer."""
    store = context.store
    latest = store.get("models", latest_model(store))
    if not store.untrained_datasets() or store.candidate() is not None or latest is None:
        return None
    return {} if is_adapter(latest) else None


def preference_tokens(context: ToolContext, epochs: int, **_: object) -> int:
    """Tokens of the training and of the verdict that must follow it."""
    num_pairs = num_training_examples(context.store, "latest")
    return int(training_tokens(context, TOKENS_OF_A_PAIR * num_pairs * epochs))


def likelihood(sample: Json) -> float:
    """Return a sample's log-probability; one whose endpoint told none is the least likely."""
    return float("-inf") if sample["logprob"] is None else float(sample["logprob"])


@tool(
    stage="optimize",
    section="preferences",
    optional=True,
    when=legal_preferences,
    estimate_tokens=preference_tokens,
)
def prefer_answers(
    run: ToolRun,
    learning_rate: Literal[0.0001, 0.0005] = 0.0001,  # type: ignore[valid-type]  # grids may hold floats
    epochs: Literal[1, 2] = 1,
) -> Json:
    """Train a candidate to prefer the right answers of the newest frozen dataset over its likeliest wrong ones.

    Use it in place of finetune_model when most items have right and wrong samples. It goes on from the latest model and
    rehearses a little of the old data. Returns the number of pairs, the loss and the time.
    """
    store = run.context.store
    if not store.datasets("train"):
        raise ToolError("there is no frozen dataset; call curate_data first")
    parent = latest_model(store)
    if parent == BASE:
        raise ToolError("there is no trained model to go on from; call finetune_model first")
    settings = {"start_from": "latest", "method": "lora", "objective": "preferences", "learning_rate": learning_rate}
    settings |= {"schedule": "linear", "epochs": epochs}
    return train_candidate(run.context, "tools.optimize.dpo_worker:train", settings, parent)
