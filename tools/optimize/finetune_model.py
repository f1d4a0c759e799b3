"""Train a candidate on a frozen dataset: TRL's SFTTrainer with an adapter or full weights, as a job in the worker."""

from importlib.util import find_spec
from typing import Literal

from memory.records import content_id
from memory.store import BASE, GREEDY, Record, RunStore
from tools.contract import Grid, Json, ToolContext, ToolRun, tool
from tools.evaluate.costs import REHEARSAL_SHARE, epochs_for, training_tokens
from tools.optimize.adapters import is_adapter, suggested_rate
from tools.optimize.rehearsal import general_chats


def legal_training(context: ToolContext) -> list[Grid] | None:
    """A frozen dataset waits. The dearer ways are offered where they may pay: see the comments."""
    store = context.store
    if not store.untrained_datasets() or store.candidate() is not None:
        return None
    parent = latest_model(store)
    latest = store.get("models", parent)
    # All accepted data again from the base: a fresh start for when going on has just failed.
    going_on = latest is not None and store.verdicts()[-1]["accepted"]
    starts = ["base"] if latest is None else ["latest"] if going_on else ["latest", "base"]
    waiting = store.untrained_datasets()[0]
    # From the base a low rate only learns less: there is nothing yet that it could break.
    rates = [0.001] if latest is None else [0.0005, 0.001]
    found = suggested_rate(store, waiting["id"], parent)
    grid: Grid = {
        "start_from": starts,
        "method": _methods(store, latest),
        "epochs": epochs_for(waiting["num_examples"]),
        "learning_rate": sorted({*rates, *([found] if found else [])}),
    }
    return [grid, grid | {"epochs": [1]}]


def _methods(store: RunStore, latest: Record | None) -> list[str]:
    """Return the kinds of training that go on from the latest model (None = the base)."""
    measured = store.score(BASE)
    identity = {} if measured is None else measured["identity"]
    device = identity.get("device")
    # On a CPU full weights take twice the time and the memory of a laptop for the same gain. Endpoints serve adapters.
    full = [] if device == "cpu" or identity.get("engine") == "openai" else ["full"]
    adapters = ["lora"] if device == "cpu" else ["lora", "rslora"]
    if latest is None:
        four_bits = ["qlora"] if device == "cuda" and find_spec("bitsandbytes") else []
        return [*adapters, *four_bits, *full]
    # An adapter is always an adapter of the base model, so a full model is trained on in full.
    return [latest["settings"]["method"], *full] if is_adapter(latest) else ["full"]


def latest_model(store: RunStore) -> str:
    """Return the model to go on from: the champion, or a just rejected candidate that was better on search items.

    Such a candidate may have learned something that its verdict could not prove; with more data it may. One that a
    guard refused has lost something, and would pass that on.
    """
    champion = store.champion()
    last = next(iter(store.verdicts()[-1:]), None)
    if last is None or last["model"] == champion or last.get("refused_by"):
        return champion
    newest = last["model"]
    found, needed = (store.score(model, policy=last.get("policy", GREEDY)) for model in (newest, champion))
    assert found is not None and needed is not None, "every judged model was measured on search items"
    return newest if found["score"] > needed["score"] else champion


def training_sets(store: RunStore, start_from: str) -> list[str]:
    """Return the datasets to train on: the new one, and from the base also all that made the champion what it is."""
    frozen = store.datasets("train")
    # Killed after the training and before its result was written, a call runs again when no dataset waits any more.
    newest = (store.untrained_datasets() or frozen[::-1])[0]["id"]
    return [newest] if start_from == "latest" else [*store.trained_on(store.champion()), newest]


def num_training_examples(store: RunStore, start_from: str) -> int:
    """Return how many examples training from there reads, rehearsed ones included."""
    sizes = {dataset["id"]: dataset["num_examples"] for dataset in store.datasets("train")}
    num_new = sum(sizes[name] for name in training_sets(store, start_from))
    return int(num_new * (1 + REHEARSAL_SHARE)) if start_from == "latest" else num_new


def finetuning_tokens(context: ToolContext, start_from: str, epochs: int, **_: object) -> int:
    """Tokens of the training and of the verdict that must follow it."""
    return int(training_tokens(context, num_training_examples(context.store, start_from) * epochs))


@tool(stage="optimize", section="supervised", when=legal_training, estimate_tokens=finetuning_tokens)
def finetune_model(
    run: ToolRun,
    start_from: Literal["latest", "base"] = "latest",
    method: Literal["lora", "rslora", "qlora", "full"] = "lora",
    # Those but 0.0005 and 0.001 only when find_learning_rate says so: at 0.002 other skills mostly break.
    learning_rate: Literal[0.0001, 0.0002, 0.0005, 0.001, 0.002] = 0.001,  # type: ignore[valid-type]
    schedule: Literal["linear", "cosine"] = "linear",
    epochs: Literal[1, 2, 3, 4] = 2,
) -> Json:
    """Train a candidate on the newest frozen dataset with supervised fine-tuning on its right answers.

    Use it when a dataset waits. The latest model trains on the new data and rehearses a little of the old, the base on
    all accepted data again. Full training uses a twentieth of the learning rate. Returns the loss and time.
    """
    store = run.context.store
    settings = {
        "start_from": start_from,
        "method": method,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "epochs": epochs,
    }
    parent = latest_model(store) if start_from == "latest" else BASE
    beside = general_chats(run.context)
    return train_candidate(run.context, "tools.optimize.sft_worker:train", settings, parent, beside=beside)


def train_candidate(context: ToolContext, worker: str, settings: Json, parent: str, **more: object) -> Json:
    """Let a worker train a candidate on the newest frozen dataset; returns what it tells. more: for this worker alone.

    The candidate's id is the hash of all that goes into it.
    """
    store = context.store
    args: Json = {"settings": settings, "parent": parent, "datasets": training_sets(store, settings["start_from"])}
    args |= {"rehearse": store.trained_on(parent), "seed": context.seed} | more
    trained, _ = context.jobs.run(worker, args | {"model_id": content_id(args)})
    return dict(trained)
