"""From an idea of how to ask the champion to a verdict: what the tools of this folder share.

A proposal changes one part of the champion's policy. It is measured on search items, with its control of equal cost
where there is one; only one that is better there than the champion's policy goes to the gate, where each look counts.
"""

from memory.store import RunStore
from tools.contract import Json, ToolContext
from tools.evaluate.costs import answer_tokens, question_tokens, split_sizes
from tools.refine.policy import kind_of, policy_id


def changed(store: RunStore, **parts: Json | str) -> Json:
    """Return the settings of the champion's policy with these parts in place of its own."""
    settings: Json = store.policy(store.champion_policy())["settings"]
    return settings | parts


def untried(store: RunStore, settings: Json) -> bool:
    """Whether a policy with these settings may still win: not measured yet, or as a control, and better than now."""
    model, policy, now = store.champion(), policy_id(settings), store.champion_score()
    found = store.score(model, policy=policy)
    if found is None or now is None:
        return True
    return store.policy_verdict(model, policy) is None and bool(found["score"] > now["score"])


def add_policy(store: RunStore, settings: Json) -> str:
    """Write a policy, unless it is there, and return its id."""
    name = policy_id(settings)
    about = {"kind": kind_of(settings), "parent": store.champion_policy(), "model": store.champion()}
    if settings:
        store.put("policies", name, about | {"settings": settings})
    return name


def propose(context: ToolContext, settings: Json, control: Json | None = None) -> Json:
    """Let the referee decide on a policy with these settings; returns what the tool tells the planner.

    control: settings of another policy at the same cost, which is measured beside it on search items.
    """
    store, referee = context.store, context.referee
    model, policy = store.champion(), add_policy(store, settings)
    # Killed after its verdict and before its result was written, a call runs again and finds its policy in force.
    verdict = store.policy_verdict(model, policy)
    before_policy = store.champion_policy() if verdict is None else verdict["champion_policy"]
    before = referee.measure(model, "search", 0, before_policy)
    search = referee.measure(model, "search", 0, policy)
    found: Json = {"policy": policy, "kind": kind_of(settings), "model": model}
    found |= {"search_score": search["score"], "ci95": search["ci95"], "n": search["n"]}
    found |= {"gain_on_search": round(search["score"] - before["score"], 4)}
    found |= {"times_the_cost": round(search["tokens_per_question"] / before["tokens_per_question"], 2)}
    if control is not None:
        other = referee.measure(model, "search", 0, add_policy(store, control))
        shown = ("policy", "score", "ci95", "n", "tokens_per_question")
        found |= {"control": {"kind": kind_of(control)} | {name: other[name] for name in shown}}
    if search["score"] <= before["score"]:
        return found | {"told": "no better on search items, so the gate was not asked"}
    told = verdict or referee.judge_policy(policy)
    return found | {"accepted": told["accepted"], "gate_items": told["n"], "refused_by": told["refused_by"]}


def proposal_tokens(context: ToolContext, times_the_cost: float, num_search: int = 1) -> int:
    """Return the tokens of a proposal whose policy costs so many times what greedy zero-shot answers cost.

    num_search: how many policies are measured on search items; one of them goes to the gate and, once accepted, is
    what the final evaluation asks by.
    """
    sizes = split_sizes(context.store)
    mine, now = times_the_cost * sum(answer_tokens(context.store)), question_tokens(context.store)
    return int((num_search * sizes["search"] + sizes["gate"] + sizes["final"]) * mine + sizes["gate"] * now)
