"""What an exported model carries of its inference policy: policy.json, examples.jsonl, a section of the model card."""

from pathlib import Path

from memory.records import write_json, write_jsonl
from memory.store import GREEDY, RunStore
from tools.refine.few_shot import training_rows
from tools.refine.policy import datasets_of, how_to_use


def write_policy(store: RunStore, folder: Path) -> list[str]:
    """Write the champion's policy, with the rows that it uses, into a folder; returns the file names."""
    policy = store.policy(store.champion_policy())
    write_json(folder / "policy.json", {name: policy[name] for name in ("id", "kind", "settings")})
    if not (datasets := dict(datasets_of(policy["settings"]))):
        return ["policy.json"]
    rows = training_rows(store, datasets).values()
    write_jsonl(folder / "examples.jsonl", [{"question": row["prompt"], "answer": row["completion"]} for row in rows])
    return ["policy.json", "examples.jsonl"]


def policy_section(store: RunStore, model_id: str) -> list[str]:
    """Return the lines of the model card about the champion's policy, its cost and how to use it."""
    policy = store.policy(store.champion_policy())
    lines = ["", "## Inference policy", ""]
    if policy["id"] == GREEDY:
        return [*lines, "Greedy answers, zero-shot: nothing to add to the question (`policy.json`)."]
    record, base = store.score(model_id, policy=policy["id"]), store.score("base")
    assert record is not None and base is not None, "champions were measured under their policy"
    cost, greedy = record["tokens_per_question"], base["tokens_per_question"]
    return [
        *lines,
        f"The scores of the champion hold for policy `{policy['id']}` ({policy['kind']}; `policy.json`), which takes "
        f"{cost:.1f} tokens a question, {cost / greedy:.1f} times what greedy zero-shot answers of the base take.",
        "",
        *(f"- {line}" for line in how_to_use(policy["settings"])),
    ]
