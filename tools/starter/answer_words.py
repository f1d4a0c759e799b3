"""A tool of your own: one typed, documented function. `python run_agent.py tools check FILE` tries it.

Then let a run use it: `python run_agent.py start --tools FILE`. The contract is in tools/contract.py.
"""

from statistics import mean
from typing import Literal

from memory.store import RunStore
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool


def evaluations(store: RunStore, prompting: str) -> list[Json]:
    """Return the evaluations that tools may see, oldest first."""
    records = [record for record in store.all("evals") if record["split"] == "search"]
    return [record for record in records if bool(record["shots"]) == (prompting == "few_shot")]


def legal(context: ToolContext) -> Grid | None:
    """Say when the tool is on the menu: None = not now, {} = with all values, {"prompting": [...]} = with these."""
    prompting = [name for name in ("zero_shot", "few_shot") if evaluations(context.store, name)]
    return {"prompting": prompting} if prompting else None


# `@tool` alone means: an "evaluate" tool that is always legal. `estimate_tokens=` is for one that lets a model work.
@tool(stage="evaluate", when=legal)
def answer_words(run: ToolRun, prompting: Literal["zero_shot", "few_shot"] = "zero_shot") -> Json:
    """Tell how many words the newest measured answers have, right and wrong ones apart.

    Use it when many answers are wrong: wrong answers that are much longer than right ones ramble. Returns the counts
    and the mean words of each kind (null: there is none).
    """
    # The planner chooses every argument but `run`: each is a Literal or a bool, so that the menu is finite.
    found = evaluations(run.context.store, prompting)
    if not found:  # a ToolError is for the planner and says what to do instead; anything else stops the run
        raise ToolError(f"no {prompting} evaluation exists yet; choose the other prompting")
    rows = run.context.store.rows("evals", found[-1]["id"], "items.jsonl")
    result: Json = {}  # small plain values; what is long goes into a file under data/ and is named here
    for kind in ("right", "wrong"):
        words = [len(row["answer"].split()) for row in rows if (row["verdict"] == "right") == (kind == "right")]
        result |= {f"num_{kind}": len(words), f"words_{kind}": round(mean(words), 2) if words else None}
    return result
