"""A tool of your own: one typed, documented function. `python run_agent.py tools check FILE` tries it.

Then let a run use it: `python run_agent.py start --tools FILE`. The contract is in tools/contract.py.
"""

from typing import Literal

from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool


def legal(context: ToolContext) -> Grid | None:
    """Say when the tool is on the menu: None = not now, {} = with all its values, {"shots": [0]} = with these."""
    measured = {bool(record["shots"]) for record in context.store.all("evals") if record["split"] == "search"}
    prompting = [name for name, shots in (("zero_shot", False), ("few_shot", True)) if shots in measured]
    return {"prompting": prompting} if prompting else None


# `stage` groups the tool in `tools list`. `estimate_tokens` tells what a call will cost; reading files costs nothing.
@tool(stage="evaluate", when=legal, estimate_tokens=lambda context, **args: 0)
def answer_words(run: ToolRun, prompting: Literal["zero_shot", "few_shot"] = "zero_shot") -> Json:
    """Tell how many words the newest measured answers have, right and wrong ones apart.

    Use it when many answers are wrong: wrong answers that are much longer than right ones ramble. Returns the counts
    and the mean words of each kind (null: there is none).
    """
    # Every argument is a Literal or a bool, so that the menu is finite; `run` is not on it.
    store = run.context.store
    records = [record for record in store.all("evals") if record["split"] == "search"]
    records = [record for record in records if bool(record["shots"]) == (prompting == "few_shot")]
    if not records:  # a ToolError is for the planner and says what to do instead; anything else stops the run
        raise ToolError(f"no {prompting} evaluation exists yet; choose the other prompting")
    words: dict[bool, list[int]] = {True: [], False: []}
    for row in store.rows("evals", records[-1]["id"], "items.jsonl"):
        words[row["verdict"] == "right"].append(len(row["answer"].split()))
    # Small plain values; what is large goes into a file under data/ and is named here.
    means = {right: round(sum(counts) / len(counts), 2) if counts else None for right, counts in words.items()}
    counts = {"num_right": len(words[True]), "num_wrong": len(words[False])}
    return counts | {"words_right": means[True], "words_wrong": means[False]}
