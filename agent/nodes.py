"""What happens in each node of the loop. A node knows the services, never the next node."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from langgraph.runtime import Runtime

from agent.budget import Budget, Shortage
from agent.collapse import collapse_sign, plateau_sign
from agent.config import RunConfig
from agent.console import Console
from agent.disk import free, freeable, freed_text
from agent.history import Outcome, outcomes_of
from agent.metering import MeteredJobs
from agent.planners import Choice, Decision, InvalidDecision, Planner
from agent.planners.base import check_decision
from agent.planners.fixed import RulesPlanner, decision
from agent.referee import Door, Referee
from agent.situation import build_menu, build_situation, situation_text, told_calls, too_dear
from agent.state import State, StopReason
from agent.tool_host import ToolHost
from agent.trace import Event, Trace
from agent.trace_view import call_text
from memory.records import content_id, read_json, write_json
from memory.store import RunStore, candidate_of, policy_candidate
from tools.contract import Json, ToolError

BESIDE = ("gpu_seconds", "usd", "gib")
"""Units of the budget that a call's cost tells beside time and tokens; disk only where it is limited."""
INVALID_LIMIT = 2
"""Invalid decisions in a row after which the rules decide, marked as fallback."""
REJECTIONS_LIMIT = 4
MOST_OUTCOME = 300
"""Characters of a tool's outcome that the planner reads: more would crowd out the rest of the situation."""
REFUSALS_LIMIT = 5
"""Refused calls in a row after which nothing useful is left on the menu."""


@dataclass
class Services:
    """Everything a node uses; made anew in each process, never stored."""

    config: RunConfig
    store: RunStore
    jobs: MeteredJobs
    referee: Referee
    tools: ToolHost
    planner: Planner
    budget: Budget
    trace: Trace
    console: Console
    lessons: list[str]
    earlier: dict[str, Outcome] = field(default_factory=dict)
    """What each tool brought in earlier runs of the same task."""
    stop_requested: list[bool] = field(default_factory=list)
    """Not empty once the user asked to stop (Ctrl-C)."""
    answer: Json | None = None
    """A person's answer to the question at which the run stopped (see agent/approval.py)."""
    begun: dict[str, dict[str, float]] = field(default_factory=dict)
    """What was spent when each call first began, of calls that an earlier process began."""
    question: Json | None = None
    """What the run stops to ask a person, for the report."""


def observe(state: State, runtime: Runtime[Services]) -> State:
    """Read the situation from files and compute the menu; stop when it is empty."""
    services = runtime.context
    step = state.get("step", 0) + 1
    situation = build_situation(services.store, services.budget, state.get("last"), services.lessons)
    offers = services.tools.offers()
    told = told_calls(state.get("told", []), state.get("last"), offers)
    outcomes = outcomes_of(services.store, services.earlier)
    menu = build_menu(offers, services.store, services.budget, told, outcomes)
    # A call that was just refused would be refused again: nothing has changed since.
    refused = state.get("last") or {}
    if refused.get("refused"):
        menu = [choice for choice in menu if choice["tool"] != refused["tool"]] or menu
    # Without the descriptions, which no choice changes: a few kB at most.
    legal = [{name: value for name, value in choice.items() if name != "description"} for choice in menu]
    lacking = None if menu else too_dear(offers, services.store, services.budget, told)
    services.trace.emit(
        "observed", step=step, situation=situation, menu=legal, **{"too_dear": lacking} if lacking else {}
    )
    services.console.observed(step, situation)
    update: State = {"step": step, "situation": situation, "menu": [dict(choice) for choice in menu], "told": told}
    if not menu:
        update["stop_reason"] = (StopReason.BUDGET if lacking else StopReason.NO_ACTION).value
    return update


def plan(state: State, runtime: Runtime[Services]) -> State:
    """Ask the planner for one action; after repeated invalid answers the rules decide, and the trace says so."""
    services, step = runtime.context, state["step"]
    menu = [Choice(**choice) for choice in state["menu"]]  # type: ignore[typeddict-item]
    text = situation_text(state["situation"])
    chosen = only_choice(menu)
    problems: list[str] = []
    wasted = {"tokens": 0.0, "input_tokens": 0.0}
    while chosen is None:
        try:
            chosen = services.planner.decide(text, menu, step)
        except InvalidDecision as problem:
            problems.append(str(problem))
            wasted = {name: count + problem.usage.get(name, 0.0) for name, count in wasted.items()}
            if len(problems) >= INVALID_LIMIT:
                chosen = RulesPlanner().decide(text, menu, step) | {"decided_by": "fallback"}
                chosen["reasoning"] = f"{services.planner.name} gave no legal action: {problems[-1]}"
    check_decision({"tool": chosen["tool"], "arguments": chosen["args"]}, menu)
    used = chosen["usage"] | {name: count + chosen["usage"].get(name, 0.0) for name, count in wasted.items()}
    chosen["usage"] = services.budget.add_decision(used)
    trace_decision(services.trace, step, chosen, problems)
    services.console.decided(step, chosen)
    return {"decision": dict(chosen)}


def trace_decision(trace: Trace, step: int, chosen: Decision, problems: list[str]) -> None:
    """Write who decided for what, and the planner's invalid answers before it."""
    action = {"tool": chosen["tool"], "args": chosen["args"]}
    rest = {key: value for key, value in chosen.items() if key not in ("tool", "args")}
    trace.emit("decided", step=step, action=action, problems=problems, **rest)


def only_choice(menu: list[Choice]) -> Decision | None:
    """Return the decision when a single action with single values is legal: there is nothing to think about."""
    if len(menu) > 1 or any(len(values) > 1 for values in menu[0]["arguments"].values()):
        return None
    args = {name: values[0] for name, values in menu[0]["arguments"].items()}
    return decision(menu[0], args, menu, "only_choice", "the only legal action")


def act(state: State, runtime: Runtime[Services]) -> State:
    """Run the chosen tool once; its result is a file, so that a resumed run reads it instead of running it again."""
    services, step = runtime.context, state["step"]
    name, args = state["decision"]["tool"], state["decision"]["args"]
    key = content_id({"step": step, "tool": name, "args": args, "config": services.jobs.fingerprint})
    path = services.store.run_dir / "calls" / f"{step:04d}-{name}-{key}.json"
    spent = services.begun.get(path.stem) or services.budget.spent()  # with what an attempt cost that was killed
    services.trace.emit("tool_started", step=step, tool=name, args=args, job=path.stem, spent=spent)
    services.console.started(step, name, args)
    error: str | None = None
    result: Json = {}
    services.jobs.call = path
    try:
        if path.exists():
            result = read_json(path)["result"]
        else:
            result = services.tools.call(name, args, services.jobs, Door(services.referee))
            check_claim(services.store, result)
            write_json(path, {"tool": name, "args": args, "result": result})
    except ToolError as problem:
        error = str(problem)
    finally:
        services.jobs.call = None
    cost = {unit: now - spent[unit] for unit, now in services.budget.spent().items()}
    usage: Json = {"wall_s": round(cost["seconds"], 2), "cpu_s": round(cost["cpu_seconds"], 2)}
    usage |= {"tokens": cost["tokens"]} | {unit: round(cost[unit], 6) for unit in BESIDE}
    if error is None:
        services.trace.emit("tool_finished", step=step, tool=name, args=args, job=path.stem, result=result, usage=usage)
        _trace_verdict(services, step, result)
        _free_disk(services, step, result)
    else:
        services.trace.emit("tool_failed", step=step, tool=name, args=args, error=error, usage=usage)
    services.console.finished(step, name, result, usage, error)
    outcome = (error or _outcome(name, result))[:MOST_OUTCOME]
    refused = 0 if error is None else 1 + (state.get("last") or {}).get("refused", 0)
    return {"last": {"tool": name, "args": args, "outcome": outcome, "refused": refused}}


def begun_calls(events: Iterable[Event]) -> dict[str, dict[str, float]]:
    """Return what was spent when each call of a trace first began, by UNITS."""
    begun: dict[str, dict[str, float]] = {}
    for event in events:
        if event["kind"] == "tool_started" and "spent" in event:
            begun.setdefault(event["job"], event["spent"])
    return begun


def end_text(reason: StopReason, events: Iterable[Event]) -> str:
    """Return why a run ended; of a spent budget also what it lacked for the action that came nearest."""
    if reason is not StopReason.BUDGET:
        return reason.sentence
    lacking: Json | None = None
    for event in events:
        if event["kind"] == "observed":
            lacking = event.get("too_dear")
    if lacking is None:
        return reason.sentence
    shortage = Shortage(*(lacking[name] for name in Shortage._fields))
    return f"{reason.sentence} The nearest, {call_text(lacking)}, would take {shortage.text()}."


def check(state: State, runtime: Runtime[Services]) -> State:
    """Look for a reason to stop."""
    services = runtime.context
    reason = _stop_reason(state, services)
    return {"stop_reason": reason.value if reason else None}


def _stop_reason(state: State, services: Services) -> StopReason | None:
    store = services.store
    last = state.get("last") or {}
    if last.get("tool") == "finish_run":
        return StopReason.PLANNER_FINISHED
    if last.get("refused", 0) >= REFUSALS_LIMIT:
        return StopReason.NO_ACTION
    score = store.champion_score()
    if services.config.goal is not None and score is not None and score["score"] >= services.config.goal:
        return StopReason.GOAL
    samplings = [dataset for dataset in store.datasets("samples") if "health" in dataset]
    if len(samplings) >= 2 and not any(dataset["num_right"] for dataset in samplings):
        return StopReason.NOTHING_VERIFIABLE
    pending = store.candidate() is not None or store.untrained_datasets()
    sign = None if pending else collapse_sign(samplings)
    if sign is not None:
        services.trace.emit("collapsed", step=state["step"], sign=sign)
        services.console.say(f"  collapse: {sign}")
        return StopReason.COLLAPSE
    sign = None if pending else _plateau(services)
    if sign is not None:
        services.trace.emit("plateau", step=state["step"], sign=sign)
        services.console.say(f"  plateau: {sign}")
        return StopReason.PLATEAU
    if state["step"] >= services.config.max_steps:
        return StopReason.STEPS
    return StopReason.USER_STOPPED if services.stop_requested else None


def _plateau(services: Services) -> str | None:
    verdicts = services.store.verdicts()
    newest = [verdict["accepted"] for verdict in verdicts[-REJECTIONS_LIMIT:]]
    if len(newest) == REJECTIONS_LIMIT and not any(newest):
        return f"the last {REJECTIONS_LIMIT} candidates were rejected"
    left = services.budget.tokens_left()
    if left is None or services.config.planner.startswith("replay:"):  # a replay has no budget of its own
        return None
    looks = [services.referee.verdict_detail(verdict["model"])["looks"][-1] for verdict in verdicts]
    return plateau_sign(looks, services.budget.used.tokens, left)


def check_claim(store: RunStore, result: Json) -> None:
    """Raise ToolError for a result that tells of a verdict which the referee did not give."""
    if "accepted" not in result:
        return
    given = next((verdict for verdict in store.all_verdicts() if candidate_of(verdict) == _judged(result)), None)
    if given is None or any(result[key] != given.get(key) for key in ("accepted", "refused_by") if key in result):
        raise ToolError(f"the tool claims accepted={result['accepted']}, which the referee did not say; it is ignored")


def _trace_verdict(services: Services, step: int, result: Json) -> None:
    if "accepted" not in result:
        return
    detail = services.referee.verdict_detail(_judged(result))
    services.trace.emit("judged", step=step, **detail)
    services.console.judged(detail)


def _free_disk(services: Services, step: int, result: Json) -> None:
    """After a verdict, remove what can matter no more; told first, so that a kill leaves no removal untold."""
    freed = freeable(services.store, services.config.keep_rejected) if "accepted" in result else None
    if freed is not None:
        services.trace.emit("freed", step=step, **freed)
        services.console.say(f"  {freed_text(freed)}")
        free(services.store, services.config.keep_rejected)


def _judged(result: Json) -> str:
    """Return what a result with a verdict is about: a model, or a policy for one."""
    model = str(result.get("model"))
    return policy_candidate(result["policy"], model) if "policy" in result else model


def _outcome(tool: str, result: dict[str, Any]) -> str:
    """Return a tool's result in a few words, for the planner's next situation."""
    if "accepted" in result:
        verdict = "accepted" if result["accepted"] else " ".join(["rejected", *result.get("refused_by", [])])
        gain = result.get("gain_on_search")
        return f"{verdict}, search gain {100 * gain:+.0f}" if isinstance(gain, int | float) else verdict
    shown = {key: value for key, value in result.items() if isinstance(value, int | float) and value is not True}
    return ", ".join(f"{key} {value}" for key, value in list(shown.items())[:3]) or str(result.get("text", "done"))
