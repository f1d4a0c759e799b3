"""What actions will cost, in tokens, projected from what was measured in this run."""

from memory.store import BASE, GREEDY, Record, RunStore
from tools.contract import ToolContext

TRAINED_TOKEN_COST = 3
"""A trained token is processed forward and, twice as dear, backward."""

REHEARSAL_SHARE = 0.25
"""Earlier examples among the new ones when training goes on, as many of each difficulty: new data is hard data, and
what is learned no more is forgotten."""

LARGE_SET = 384

GUARD_TOKENS = 9_000
"""Of the guards on a candidate that passed the gate, as measured with the default model: their prompts are fixed."""


def base_record(store: RunStore, few_shot: bool) -> Record | None:
    """Return the base model's search record, with worked examples or without; None before it was measured."""
    records = [record for record in store.all("evals") if record["model"] == BASE and record["split"] == "search"]
    return next((record for record in records if bool(record["shots"]) == few_shot), None)


def answer_tokens(store: RunStore, few_shot: bool = False) -> tuple[float, float]:
    """Return one item's prompt tokens (beyond a shared prefix) and answer tokens, as the baseline measured them.

    Without examples the base model often never stops; with them its answers are about as long as right ones.
    """
    record = base_record(store, few_shot)
    return (32.0, 8.0) if record is None else (record["prompt_tokens_per_item"], record["answer_tokens_per_item"])


def question_tokens(store: RunStore) -> float:
    """Return what one question takes as the champion is asked now."""
    record = None if store.champion_policy() == GREEDY else store.champion_score()
    return _champion_tokens(store) if record is None else float(record["tokens_per_question"])


def split_sizes(store: RunStore) -> dict[str, int]:
    """Return how many items each split has; none before the baseline."""
    record = base_record(store, few_shot=False)
    return {"search": 0, "gate": 0, "final": 0} if record is None else record["split_sizes"]


def _candidate_tokens(store: RunStore) -> float:
    """Return what one item takes of a trained model, which answers in the form of the examples."""
    return answer_tokens(store)[0] + answer_tokens(store, few_shot=True)[1]


def _champion_tokens(store: RunStore) -> float:
    return sum(answer_tokens(store)) if store.champion() == BASE else _candidate_tokens(store)


def verdict_tokens(context: ToolContext) -> float:
    """Return the tokens that measuring and guarding a candidate takes, a new champion's own gate items with it.

    The referee looks several times: a first candidate is mostly judged at the first look, a later one takes about half
    of the gate's items. A verdict that needs more than the budget pays for ends as a rejection.
    """
    store = context.store
    record = base_record(store, few_shot=False)
    if record is None:
        return 0.0
    sizes, verdicts = record["split_sizes"], store.all_verdicts()
    gate = sizes["gate"] / 2 if verdicts else record.get("first_look", sizes["gate"])
    asked = _candidate_tokens(store) if store.champion_policy() == GREEDY else question_tokens(store)
    new_champion = not verdicts or verdicts[-1]["accepted"]
    champion = new_champion * gate * question_tokens(store)
    return float((sizes["search"] + gate) * asked + champion + GUARD_TOKENS)


def final_tokens(store: RunStore) -> float:
    """Return the tokens of the final evaluation: base zero-shot, base few-shot, champion, one with a policy twice."""
    record = base_record(store, few_shot=False)
    if record is None:
        return 0.0
    each = sum(answer_tokens(store)) + sum(answer_tokens(store, few_shot=True)) + question_tokens(store)
    without_policy = 0.0 if store.champion_policy() == GREEDY else _champion_tokens(store)
    return float(record["split_sizes"]["final"] * (each + without_policy))


def epochs_for(num_new: int) -> list[int]:
    """Return how often training may read so many new examples.

    Examples seen again cost no sampling and, a few times, teach about as much as new ones (bench/RESULTS.md); a small
    set is soon learned by heart.
    """
    return [2, 3, 4] if num_new >= LARGE_SET else [1, 2]


def new_set_tokens(context: ToolContext, num_examples: int) -> float:
    """Return the tokens of the least training on new examples, with the rehearsal beside them, and of the verdict."""
    return training_tokens(context, num_examples * (1 + REHEARSAL_SHARE) * epochs_for(num_examples)[0])


def training_tokens(context: ToolContext, num_examples: float) -> float:
    """Return the tokens of training on so many examples, each pass counted, and of the verdict that must follow.

    An example takes what it took in the newest supervised training; before any, what an item takes.
    """
    store = context.store
    newest = next((model for model in reversed(store.all("models")) if "num_tokens" in model), None)
    each = _candidate_tokens(store)
    if newest is not None and "objective" not in newest["settings"]:
        each = newest["num_tokens"] / (newest["num_examples"] * newest["settings"]["epochs"])
    return TRAINED_TOKEN_COST * num_examples * each + verdict_tokens(context)
