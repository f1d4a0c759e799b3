"""Train a candidate on a frozen dataset: TRL's SFTTrainer with LoRA or full weights, as a job in the worker."""

from typing import Literal

from memory.records import content_id
from memory.store import BASE, RunStore
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.evaluate.costs import TRAINED_TOKEN_COST, answer_tokens, verdict_tokens


def legal_training(context: ToolContext) -> Grid | None:
    """A frozen dataset waits; the champion as a start is offered once there is one."""
    store = context.store
    if not store.untrained_datasets() or store.candidate() is not None:
        return None
    # On a CPU full weights take twice the time and the memory of a laptop for the same gain.
    measured = store.score(BASE)
    methods = ["lora"] if measured is not None and measured["identity"].get("device") == "cpu" else ["lora", "full"]
    if store.champion() == BASE:
        return {"start_from": ["base"], "method": methods}
    champion = store.get("models", store.champion())
    assert champion is not None, "the champion is a model of this run"
    # An adapter is always an adapter of the base model, so a full champion is trained on in full.
    return {"method": methods if champion["settings"]["method"] == "lora" else ["full"]}


def training_sets(store: RunStore, start_from: str) -> list[str]:
    """Return the datasets to train on: the new one, and from the base also all that made the champion what it is."""
    newest = store.untrained_datasets()[0]["id"]
    if start_from == "champion":
        return [newest]
    lineage: list[str] = []
    model_id = store.champion()
    while model_id != BASE:
        model = store.get("models", model_id)
        assert model is not None, f"model {model_id} is in the lineage of the champion"
        lineage = [name for name in model["datasets"] if name not in lineage] + lineage
        model_id = model["parent"]
    return [*lineage, newest]


def training_tokens(context: ToolContext, start_from: str, epochs: int, **_: object) -> int:
    """Tokens of the training and of the verdict that must follow it."""
    store = context.store
    sizes = {dataset["id"]: dataset["num_examples"] for dataset in store.all("data") if dataset["kind"] == "train"}
    num_examples = sum(sizes[name] for name in training_sets(store, start_from))
    cost = TRAINED_TOKEN_COST * sum(answer_tokens(store))
    return int(num_examples * epochs * cost + verdict_tokens(context))


@tool(stage="optimize", when=legal_training, estimate_tokens=training_tokens)
def finetune_model(
    run: ToolRun,
    start_from: Literal["champion", "base"] = "champion",
    method: Literal["lora", "full"] = "lora",
    learning_rate: Literal[0.0005, 0.001, 0.002] = 0.001,  # type: ignore[valid-type]
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    epochs: Literal[1, 2] = 1,
) -> Json:
    """Train a candidate on the newest frozen dataset with supervised fine-tuning on its right answers.

    Use it when a dataset waits. Starting from the champion is quick and trains on the new data only; from the base it
    trains on all accepted data again. Full training uses a twentieth of the learning rate. Returns the loss and time.
    """
    store = run.context.store
    if not store.untrained_datasets():
        raise ToolError("no frozen dataset waits; call curate_data first")
    settings = {
        "start_from": start_from,
        "method": method,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "epochs": epochs,
    }
    parent = store.champion() if start_from == "champion" else BASE
    datasets = training_sets(store, start_from)
    args = {"settings": settings, "parent": parent, "datasets": datasets, "seed": run.context.seed}
    trained, _ = run.context.jobs.run("tools.optimize.sft_worker:train", args | {"model_id": content_id(args)})
    return dict(trained)
