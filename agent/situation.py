"""The situation: what the planner decides from, built anew from files each step, and the menu of legal actions."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

from agent.budget import Budget, Shortage
from agent.disk import needed_gib
from agent.history import Outcome, changed_items
from agent.planners.base import Choice
from agent.views import FIGURE
from memory.regions import most_in
from memory.store import BASE, GREEDY, RunStore, candidate_of
from tools.acquire.teacher import expected_tokens, num_asked
from tools.contract import Json
from tools.evaluate.costs import base_record, final_tokens
from tools.select.curate_data import num_unused_items

BLANK = "?"
QUESTION_CHARS, ANSWER_CHARS = 40, 20
"""Of an example of an error: what the planner's small context has room for."""
WORK_OF_STAGE = {"optimize": "training", "evaluate": "evaluation"}
"""The kind of work that most of a stage's tokens go into: tokens of training take longer than those of evaluation."""


def build_situation(store: RunStore, budget: Budget, last: Json | None, lessons: list[str]) -> Json:
    """Return the situation as plain values; None where something does not exist yet."""
    champion = store.champion()
    score, policy = store.champion_score(), store.champion_policy()
    return {
        "champion": champion,
        "score": None if score is None else {key: score[key] for key in FIGURE if key in score},
        "policy": store.policy(policy)["kind"],
        "few_shot_score": _few_shot_score(store),
        "weakest": None if score is None else score["diagnosis"]["weakest"],
        "errors": None if score is None else score["diagnosis"]["errors"],
        "error_example": _error_example(store, score),
        "verdicts": ["accepted" if verdict["accepted"] else "rejected" for verdict in store.verdicts()],
        "unused_right_answers": num_unused_items(store, "not_too_easy"),
        "waiting_dataset": next((dataset["num_examples"] for dataset in store.untrained_datasets()), None),
        "waiting_candidate": store.candidate() is not None,
        "last_sampling": _last_sampling(store),
        "last_change": _last_change(store),
        "regions": most_in(store),
        "tokens_per_point": _tokens_per_point(store, budget),
        "budget_left_percent": round(100 * budget.share_left()),
        "last_action": last,
        "lessons": lessons,
    }


def told_calls(told: list[list[Any]], last: Json | None, offers: list[Json]) -> list[list[Any]]:
    """Return the calls, [tool, args] each, that cost nothing and were made since something else was done.

    They would say the same again: a planner that likes one would call it for ever. told: the same before `last`.
    """
    if last is None or last.get("refused"):
        return told
    free = [offer["tool"] for offer in offers if not any(offer["tokens"])]
    return [*told, [last["tool"], last["args"]]] if last["tool"] in free else []


def calls_of(offer: Json) -> list[Json]:
    """Return the arguments of all calls of an offer, in the order of its "tokens"."""
    return [dict(zip(offer["grid"], values, strict=True)) for values in product(*offer["grid"].values())]


def build_menu(
    offers: list[Json],
    store: RunStore,
    budget: Budget,
    told: Sequence[list[Any]] = (),
    outcomes: Mapping[str, Outcome] = MappingProxyType({}),
) -> list[Choice]:
    """Return what is affordable of the legal actions (see `tools.host.offers`), without the calls that were told.

    An argument value stays when some affordable call uses it. Of a tool that is offered twice the first offer counts of
    which something is affordable.
    """
    menu: list[Choice] = []
    for offer in offers:
        affordable = [
            call
            for call, shortage in _projected(offer, store, budget)
            if shortage is None and [offer["tool"], call] not in told
        ]
        if affordable and all(choice["tool"] != offer["tool"] for choice in menu):
            arguments = _largest_box(offer["grid"], affordable)
            outcome = outcomes[offer["tool"]].text() if offer["tool"] in outcomes else ""
            menu.append(Choice(tool=offer["tool"], description=offer["summary"], arguments=arguments, outcome=outcome))
    return menu


def too_dear(offers: list[Json], store: RunStore, budget: Budget, told: Sequence[list[Any]]) -> Json | None:
    """Return the legal action that comes nearest to being affordable, and what it lacks; None when nothing is legal.

    {"tool", "args"} and the fields of a Shortage.
    """
    lacking = [
        {"tool": offer["tool"], "args": call} | shortage._asdict()
        for offer in offers
        for call, shortage in _projected(offer, store, budget)
        if shortage and [offer["tool"], call] not in told
    ]
    return min(lacking, key=lambda action: action["needed"] / budget.limits[action["unit"]], default=None)


def _projected(offer: Json, store: RunStore, budget: Budget) -> Iterator[tuple[dict[str, Any], Shortage | None]]:
    """Yield each call of an offer with what the budget lacks for it."""
    reserved = _kept_back(offer["tool"], final_tokens(store))
    kind, on_disk = WORK_OF_STAGE.get(offer["stage"]), "gib" in budget.limits
    for call, tokens in zip(calls_of(offer), offer["tokens"], strict=True):
        gib = needed_gib(store, offer["stage"], call.get("method", "lora")) if on_disk and tokens else 0.0
        usd = _teacher_usd(store, budget, call["num_items"]) if offer["tool"] == "distil_answers" else 0.0
        yield call, budget.shortage(tokens, reserved, kind, gib, usd)


def _teacher_usd(store: RunStore, budget: Budget, num_questions: int) -> float:
    return budget.teacher_usd(num_questions, num_asked(store), expected_tokens(store))


def _kept_back(tool: str, reserved: float) -> float:
    # An action that costs nothing (a lesson, finishing) is legal to the very end.
    return 0.0 if tool in ("finish_run", "note_lesson") else reserved


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
        "score of the champion": _score_text(situation and situation["score"], situation),
        "base model with examples": _score_text(situation and situation["few_shot_score"]),
        "weakest": _weakest_text(situation and situation["weakest"]),
        "verdicts so far": situation and (" ".join(situation["verdicts"][-6:]) or "none"),
        "unused right answers": situation and situation["unused_right_answers"],
        "dataset waiting for training": situation and (situation["waiting_dataset"] or "none"),
        "candidate waiting for evaluation": situation and ("yes" if situation["waiting_candidate"] else "none"),
        "items of the last sampling": _sampling_text(situation and situation["last_sampling"]),
        "errors of the champion": _errors_text(situation and situation["errors"]),
        "such as": situation and (situation["error_example"] or "none"),
        "last training, search items": _change_text(situation and situation["last_change"]),
        "questions most in updates": situation and _regions_text(situation.get("regions")),
        "tokens per point gained": situation and (situation["tokens_per_point"] or "no gain yet"),
        "budget left": situation and f"{situation['budget_left_percent']} %",
        "last action": _action_text(situation and situation["last_action"]),
        "lesson": situation and (situation["lessons"][0] if situation["lessons"] else "none"),
    }
    return "\n".join(f"- {name}: {BLANK if situation is None else value}" for name, value in lines.items())


def _score_text(score: Any, situation: Any = None) -> Any:
    if not score:
        return "not measured"
    note = f", {score['scorer_note']}" if "scorer_note" in score else ""
    policy = (situation or {}).get("policy", GREEDY)  # trace files of earlier versions have none
    note += "" if policy == GREEDY else f", answered with {policy}"
    return f"{100 * score['score']:.0f} % right (n={score['n']}{note})"


def _weakest_text(weakest: Any) -> Any:
    return f"{weakest['difficulty']} ({100 * weakest['score']:.0f} % of {weakest['n']})" if weakest else "not measured"


def _sampling_text(counts: Any) -> Any:
    if not counts:
        return "no sampling yet"
    shares = ", ".join(f"{100 * counts[name] / counts['n']:.0f} % {name}" for name in ("never", "sometimes", "always"))
    return f"{shares} right"


def _errors_text(errors: Any) -> Any:
    return ", ".join(f"{count} {kind}" for kind, count in (errors or {}).items()) or "none"


def _change_text(change: Any) -> Any:
    return f"{change['fixed']} fixed, {change['broken']} broken" if change else "none yet"


def _action_text(action: Any) -> Any:
    return f"{action['tool']}: {action['outcome']}" if action else "none"


def _regions_text(regions: Any) -> str:
    told = {verdict: _harmless(text)[-QUESTION_CHARS:] for verdict, text in (regions or {}).items() if text}
    return ", ".join(f"{verdict} ...{text}" for verdict, text in told.items()) or "none yet"


def _few_shot_score(store: RunStore) -> Json | None:
    found = base_record(store, few_shot=True)
    return None if found is None else {key: found[key] for key in FIGURE if key in found}


def _error_example(store: RunStore, score: Json | None) -> str | None:
    """Return the champion's answer to the first search item that it gets wrong; None without one.

    Questions and answers may hold anything.
    """
    rows = [] if score is None else store.rows("evals", score["id"], "items.jsonl")
    row = next((row for row in rows if row["verdict"] != "right"), None)
    if row is None:
        return None
    return f"...{_harmless(row['question'])[-QUESTION_CHARS:]} answered {_harmless(row['answer'])[:ANSWER_CHARS]}"


def _harmless(text: str) -> str:
    """Return a text on one line, printable and without the brackets that tokens of chat templates are made of."""
    return "".join(char if char.isprintable() and char not in "<>[]{}|" else " " for char in " ".join(text.split()))


def _last_sampling(store: RunStore) -> Json | None:
    """Return how many items of the newest sampling were never, sometimes and always right."""
    health = [dataset["health"] for dataset in store.all("data") if "health" in dataset]
    if not health:
        return None
    never, always, n = (health[-1][name] for name in ("never_right", "always_right", "num_items"))
    return {"never": never, "sometimes": n - never - always, "always": always, "n": n}


def _last_change(store: RunStore) -> Json | None:
    """Return how many search items the newest judged candidate fixed and broke, against the champion of then."""
    verdict = next(iter(store.verdicts()[-1:]), None)
    if verdict is None:
        return None
    return changed_items(store, candidate_of(verdict), verdict["champion"], verdict)


def _tokens_per_point(store: RunStore, budget: Budget) -> int | None:
    """Return what a point of search score has cost so far; None before any was gained."""
    base, now = store.score(BASE), store.champion_score()
    gained = 100 * (now["score"] - base["score"]) if base and now else 0.0
    return round(budget.used.tokens / gained) if gained > 0 else None
