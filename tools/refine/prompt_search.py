"""Search for a better system prompt, as GEPA (arXiv 2507.19457) does: read failures, propose, keep what scores better.

The base model reads wrong answers to search items and writes new instructions; each is a policy that is measured on
search items; the best so far is what the next round starts from. Left out of GEPA: its Pareto front over items and the
merging of two prompts, for which the few prompts of a small budget are too few. Writes data/<id>/tried.jsonl.
"""

from typing import Literal

from memory.records import content_id
from memory.store import BASE, RunStore
from prompts import render
from tools.contract import Grid, Json, ToolContext, ToolRun, tool
from tools.jobs.job import Job
from tools.refine.proposal import add_policy, changed, proposal_tokens, propose

ROUNDS = 2
NUM_FAILURES = 3
"""Wrong answers that the model reads at once."""
NUM_EXAMPLES = 2
PROMPT_TOKENS = 64
MOST_CHARACTERS = 300
SHOWN = 200
"""Characters of a question or an answer that the model reads."""
TEMPERATURE, TOP_K = 1.0, 50


def legal_search(context: ToolContext) -> Grid | None:
    """Nothing waits for a verdict, and no search started from or led to the champion as it is now."""
    store = context.store
    model, policy = store.champion(), store.champion_policy()
    searches = [done for done in store.datasets("prompt_search") if done["model"] == model]
    searched = any(policy in (done["policy"], done["proposed"]) for done in searches)
    return None if store.candidate() is not None or searched else {}


def search_tokens(context: ToolContext, proposals: int) -> int:
    """Tokens of all prompts on search items, one on the gate, and of writing them."""
    return proposal_tokens(context, 1.5, proposals * ROUNDS) + ROUNDS * (600 + proposals * PROMPT_TOKENS)


@tool(stage="refine", section="prompt search", optional=True, when=legal_search, estimate_tokens=search_tokens)
def search_prompt(run: ToolRun, proposals: Literal[2, 4, 8] = 4) -> Json:
    """Look for a system prompt under which the champion is better, from what it got wrong on search items.

    Use it when answers are wrong for how they are written or what was asked. proposals: new prompts a round, of two
    rounds; the best one goes to the gate. Returns how many were tried, the search score, how many times the champion's
    tokens an answer costs, and whether the champion is asked so from now on.
    """
    context = run.context
    store, referee = context.store, context.referee
    model, policy = store.champion(), store.champion_policy()
    for done in store.datasets("prompt_search"):
        # Killed after its verdict and before its result was written, a call runs again under the policy it found.
        if done["model"] == model and done["proposed"] == policy:
            proposed = propose(context, store.policy(policy)["settings"])
            return {"log": done["id"], "num_tried": done["num_tried"]} | proposed
    best = referee.measure(model, "search", 0, policy)
    best_system: str | None = None
    tried: list[Json] = []
    for turn in range(ROUNDS):
        args: Json = {"system": best_system or store.policy(policy)["settings"].get("system", "")}
        args |= {"failures": failures(store, best["id"], turn), "count": proposals, "seed": context.seed + turn}
        told, _ = context.jobs.run("tools.refine.prompt_search:propose_prompts", args)
        # One that quotes a question would teach the test.
        new = [row["prompt"] for row in referee.remove_overlaps([{"prompt": text} for text in told["systems"]]).kept]
        for system in new:
            record = referee.measure(model, "search", 0, add_policy(store, changed(store, system=system)))
            tried.append({"round": turn, "system": system, "policy": record["policy"], "score": record["score"]})
            if record["score"] > best["score"]:
                best, best_system = record, system
    log: Json = {"kind": "prompt_search", "model": model, "policy": policy, "num_tried": len(tried)}
    log["proposed"] = None if best_system is None else best["policy"]
    log = store.put("data", content_id([log, tried]), log, {"tried.jsonl": tried})
    found: Json = {"log": log["id"], "num_tried": len(tried)}
    if best_system is None:
        return found | {"told": "no prompt is better on search items, so the gate was not asked"}
    return found | propose(context, changed(store, system=best_system))


def failures(store: RunStore, evaluation: str, turn: int) -> list[Json]:
    """Return some wrong answers of an evaluation on search items, other ones each turn."""
    rows = [row for row in store.rows("evals", evaluation, "items.jsonl") if row["verdict"] != "right"]
    first = turn * NUM_FAILURES % max(1, len(rows))
    return [{key: row[key] for key in ("question", "answer", "verdict")} for row in rows[first : first + NUM_FAILURES]]


def propose_prompts(job: Job, system: str, failures: list[Json], count: int, seed: int) -> Json:
    """Return {"systems"}: at most `count` different instructions that the base model writes."""
    from tools.engines.base import Sampling, build_messages

    resident = job.resident
    seeds = resident.task.seed_examples()[:NUM_EXAMPLES]
    wrong = [f"Question: {row['question'][:SHOWN]}\nIt said: {row['answer'][:SHOWN]}" for row in failures]
    text = render(
        "propose_system_prompt",
        system=system or "Answer the question.",
        examples="\n".join(f"Question: {item.question[:SHOWN]}\nAnswer: {item.answer[:SHOWN]}" for item in seeds),
        failures="\n".join(f"{line} (wrong)" for line in wrong) or "not known yet",
    )
    resident.engine.use_model(RunStore(job.run_dir).model_dir(BASE))
    sampling = Sampling(PROMPT_TOKENS, 2 * count, TEMPERATURE, seed, TOP_K)
    [samples] = resident.engine.generate([build_messages(text, [], resident.settings["system_prompt"])], sampling)
    cleaned = (" ".join(sample.text.split()).strip(" \"'")[:MOST_CHARACTERS] for sample in samples)
    return {"systems": [one for one in dict.fromkeys(cleaned) if one and one != system][:count]}
