"""A decision in words: who took it, how probable it was among what was legal, and what its reasoning is."""

from collections.abc import Mapping
from math import exp, prod
from typing import Any

Json = dict[str, Any]
DECIDERS = {"only_choice": "the only legal action", "forced": "a person (fork --force)", "person": "a person"}
"""Words for values of `decided_by`; the others say by themselves who it was."""


def decider(decided_by: str) -> str:
    """Return who decided, in words."""
    return DECIDERS.get(decided_by, decided_by)


def by_decider(counts: dict[str, int]) -> dict[str, int]:
    """Return counts by `decided_by` with these in words."""
    return {decider(name): count for name, count in counts.items()}


def decides_text(decided_by: str) -> str:
    """Return "model decides"; where one action was legal, nobody did."""
    return decider(decided_by) + ("" if decided_by == "only_choice" else " decides")


def why_text(decided_by: str, is_only_tool: bool) -> str:
    """Return what a reasoning is: a model wrote it in a pass of its own, before it chose; others give their reason."""
    if decided_by != "model":
        return "because"
    return f"it wrote before choosing{' the arguments (one tool was legal)' if is_only_tool else ''}"


def chances(decided: Mapping[str, Any], legal: Mapping[str, list[Any]] | None = None) -> list[Json]:
    """Return [{"argument" (None = the tool), "among": [{"values", "probability"}]}], what was chosen first.

    decided: a Decision or a `decided` event. The tool comes first, with the probability None where the planner gave
    none. legal: name -> legal values; of an argument's other values only the sum is known, so they share an entry.
    """
    if "probabilities" in decided:
        return list(decided["probabilities"])
    action = decided.get("action", decided)
    logprobs = {action["tool"]: decided["logprob"]}
    logprobs |= {other["tool"]: other.get("logprob") for other in decided["alternatives"]}
    shares: list[float | None] = [None] * len(logprobs)
    if None not in logprobs.values():
        weights = [exp(logprob - max(logprobs.values())) for logprob in logprobs.values()]
        shares = [round(weight / sum(weights), 4) for weight in weights]
    tools = [{"values": [tool], "probability": share} for tool, share in zip(logprobs, shares, strict=True)]
    found: list[Json] = [{"argument": None, "among": tools}]
    for name, logprob in decided.get("argument_logprobs", {}).items():
        chosen = action["args"][name]
        share = round(min(1.0, exp(logprob)), 4)
        others = [value for value in (legal or {}).get(name, ()) if value != chosen]
        rest = [{"values": others, "probability": round(1 - share, 4)}] if others else []
        found.append({"argument": name, "among": [{"values": [chosen], "probability": share}, *rest]})
    return found


def percent(share: float) -> str:
    """Return a probability in percent; only what is certain reads 0 % or 100 %."""
    digits = ".0f" if share in (0, 1) or 0.01 <= share < 0.995 else ".2g" if share < 0.01 else ".4g"
    return f"{100 * share:{digits}} %"


def sureness_text(decided: Mapping[str, Any]) -> str:
    """Return "probability 56 % (schedule 56 %; tool: only one was legal)"; "" where the planner gave none."""
    tool, *arguments = chances(decided)
    chosen = [part["among"][0]["probability"] for part in (tool, *arguments)]
    if None in chosen:
        return ""
    if "argument_logprobs" not in decided:
        return f"probability {percent(chosen[0])} of the tool alone"
    shares = [f"{part['argument']} {percent(part['among'][0]['probability'])}" for part in arguments]
    is_only_tool = len(tool["among"]) == 1
    parts = [", ".join(([] if is_only_tool else [f"tool {percent(chosen[0])}"]) + shares)]
    parts += ["tool: only one was legal"] if is_only_tool else []
    told = f" ({'; '.join(part for part in parts if part)})" if arguments or is_only_tool else ""
    return f"probability {percent(prod(chosen))}{told}"


def among_texts(decided: Mapping[str, Any]) -> list[str]:
    """Return "instead of: finish_run (18 %)" and "schedule: linear (56 %), cosine (44 %)": what else was legal."""
    tool, *arguments = chances(decided)
    texts = [f"instead of: {', '.join(map(_entry_text, tool['among'][1:]))}"] if tool["among"][1:] else []
    told = (part for part in arguments if part["among"][1:])
    return texts + [f"{part['argument']}: {', '.join(map(_entry_text, part['among']))}" for part in told]


def _entry_text(entry: Json) -> str:
    values, share = entry["values"], entry["probability"]
    if share is None:
        return str(values[0])
    if len(values) == 1:
        return f"{values[0]} ({percent(share)})"
    return f"one of {', '.join(map(str, values))} ({percent(share)} together)"
