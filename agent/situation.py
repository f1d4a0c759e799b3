"""The situation: what the planner decides from, built anew from files each step, and the menu of legal actions."""

from itertools import product
from typing import Any

from agent.budget import Budget
from agent.planners.base import Choice
from memory.store import BASE, RunStore
from tools.contract import Json, Tool, ToolContext
from tools.evaluate.costs import final_tokens
from tools.select.curate_data import num_unused_items

BLANK = "?"


def build_situation(context: ToolContext, budget: Budget, last: Json | None, lessons: list[str]) -> Json:
    """Return the situation as plain values; None where something does not exist yet."""
    store = context.store
    champion = store.champion()
    score = store.score(champion)
    return {
        "champion": champion,
        "score": None if score is None else {key: score[key] for key in ("score", "ci95", "n")},
        "few_shot_score": _few_shot_score(store),
        "weakest": None if score is None else score["diagnosis"]["weakest"],
        "errors": None if score is None else score["diagnosis"]["errors"],
        "verdicts": ["accepted" if verdict["accepted"] else "rejected" for verdict in store.verdicts()],
        "unused_right_answers": num_unused_items(store, "not_too_easy"),
        "waiting_dataset": next((dataset["num_examples"] for dataset in store.untrained_datasets()), None),
        "waiting_candidate": store.candidate() is not None,
        "last_pass_rate": _last_pass_rate(store),
        "budget_left_percent": round(100 * budget.share_left()),
        "last_action": last,
        "lessons": lessons,
    }


def build_menu(tools: dict[str, Tool], context: ToolContext, budget: Budget) -> list[Choice]:
    """Return the legal and affordable actions. An argument value stays when some affordable call uses it."""
    reserved = final_tokens(context.store)
    menu: list[Choice] = []
    for tool in tools.values():
        grid = tool.legal(context)
        if grid is None:
            continue
        affordable = [
            dict(zip(grid, values, strict=True))
            for values in product(*grid.values())
            if budget.affords(
                tool.estimate_tokens(context, **dict(zip(grid, values, strict=True))), _kept_back(tool, reserved)
            )
        ]
        if affordable:
            arguments = _largest_box(grid, affordable)
            menu.append(Choice(tool=tool.name, description=tool.summary, arguments=arguments))
    return menu


def _kept_back(tool: Tool, reserved: float) -> float:
    # An action that costs nothing (a lesson, finishing) is legal to the very end.
    return 0.0 if tool.name in ("finish_run", "note_lesson") else reserved


def _largest_box(grid: dict[str, list[Any]], affordable: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return argument values of which every combination is affordable, dropping the dearest values first."""
    box = {
        name: [value for value in values if any(call[name] == value for call in affordable)]
        for name, values in grid.items()
    }
    while any(dict(zip(box, values, strict=True)) not in affordable for values in product(*box.values())):
        # The value that stands in the fewest affordable calls is what makes combinations too dear.
        name, value = min(
            ((name, value) for name, values in box.items() if len(values) > 1 for value in values),
            key=lambda pair: sum(call[pair[0]] == pair[1] for call in affordable),
        )
        box[name] = [entry for entry in box[name] if entry != value]
        affordable = [call for call in affordable if call[name] != value]
    return box


def situation_text(situation: Json | None) -> str:
    """Return the situation in words; None gives the same words with every value blanked (for calibration)."""
    lines = {
        "score of the champion": _score_text(situation and situation["score"]),
        "base model with examples": _score_text(situation and situation["few_shot_score"]),
        "weakest": _weakest_text(situation and situation["weakest"]),
        "verdicts so far": situation and (" ".join(situation["verdicts"][-6:]) or "none"),
        "unused right answers": situation and situation["unused_right_answers"],
        "dataset waiting for training": situation and (situation["waiting_dataset"] or "none"),
        "candidate waiting for evaluation": situation and ("yes" if situation["waiting_candidate"] else "none"),
        "pass rate of the last sampling": situation and (situation["last_pass_rate"] or "no sampling yet"),
        "budget left": situation and f"{situation['budget_left_percent']} %",
        "last action": _action_text(situation and situation["last_action"]),
        "lesson": situation and (situation["lessons"][0] if situation["lessons"] else "none"),
    }
    return "\n".join(f"- {name}: {BLANK if situation is None else value}" for name, value in lines.items())


def _score_text(score: Any) -> Any:
    return f"{100 * score['score']:.0f} % right (n={score['n']})" if score else "not measured"


def _weakest_text(weakest: Any) -> Any:
    return f"{weakest['difficulty']} ({100 * weakest['score']:.0f} % right)" if weakest else "not measured"


def _action_text(action: Any) -> Any:
    return f"{action['tool']}: {action['outcome']}" if action else "none"


def _few_shot_score(store: RunStore) -> Json | None:
    records = [record for record in store.all("evals") if record["model"] == BASE and record["split"] == "search"]
    found = next((record for record in records if record["shots"] > 0), None)
    return None if found is None else {key: found[key] for key in ("score", "ci95", "n")}


def _last_pass_rate(store: RunStore) -> float | None:
    samples = [dataset for dataset in store.all("data") if dataset["kind"] == "samples"]
    return round(samples[-1]["pass_rate"], 3) if samples else None
