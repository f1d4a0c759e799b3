"""A person's yes, no or edit between the planner's decision and the tool: the node `approve` and who asks.

The node stops the graph with LangGraph's `interrupt`, so that the question waits in the checkpoint for days, without a
process. At a terminal it is asked at once; elsewhere the run stops resumably and `run_agent.py approve` answers.

A question: {"step", "call" (in words), "tool", "args", "decided_by", "reasoning", "menu"}.
An answer: {"answer": "yes" | "no" | "edit", "reason", "action" (None, or {"tool", "args"} of an edit)}; one that comes
later also has "to", the question in words (`question_text`): what is asked by then may be another one.
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from agent.config import RunConfig
from agent.nodes import Services, trace_decision
from agent.planners import Choice
from agent.planners.base import person_action
from agent.planners.fixed import decision
from agent.state import State
from agent.trace_facts import facts_of
from agent.trace_view import answer_text, call_text
from agent.views import read_report
from tools.contract import Json

PROMPT = "  approve? [y]es, [n]o and why, [e]dit and the action as JSON: "


def approve(state: State, runtime: Runtime[Services]) -> State:
    """Where a person wants to be asked, wait for the answer to the decision; a forced one is a person's own."""
    services, chosen = runtime.context, state["decision"]
    if not asks(services.config, chosen["tool"]) or chosen["decided_by"] == "forced":
        return {}
    answer = interrupt(_question(state))  # LangGraph runs the node again from its start once there is an answer
    asked = {"tool": chosen["tool"], "args": chosen["args"]}
    told = {"who": "person", "answer": answer["answer"], "action": asked, "edited": answer["action"]}
    told |= {"reason": answer["reason"]}
    services.trace.emit("answered", step=state["step"], **told)
    services.console.observed(state["step"], state["situation"])  # this process may not have seen the step begin
    services.console.say(f"  {answer_text(told)}")
    if answer["answer"] == "no":
        last = asked | {"outcome": f"rejected by a person: {answer['reason']}"}
        last["refused"] = (state.get("last") or {}).get("refused", 0)
        return {"decision": {}, "last": last, "situation": state["situation"] | {"last_action": last}}
    if answer["answer"] == "yes":
        return {}
    menu = [Choice(**choice) for choice in state["menu"]]  # type: ignore[typeddict-item]
    tool, args = person_action(answer["action"]["tool"], answer["action"]["args"], menu)
    choice = next(choice for choice in menu if choice["tool"] == tool)
    edited = decision(choice, args, menu, "person", answer["reason"])
    trace_decision(services.trace, state["step"], edited, [])
    return {"decision": dict(edited)}


def asks(config: RunConfig, tool: str) -> bool:
    """Whether a person wants to be asked before this tool."""
    return config.approve or tool in config.approve_tools


def ask(question: Json, services: Services) -> Json | None:
    """Ask at the terminal until the answer is understood; None when there is no terminal or the person leaves."""
    if not sys.stdin.isatty():
        return None
    with services.budget.paused(), _leaving_at_once():
        while not services.stop_requested:
            try:
                word, _, rest = services.console.ask(PROMPT).strip().partition(" ")
            except (EOFError, KeyboardInterrupt):
                return None
            try:
                return _understood(word.lower(), rest, question)
            except ValueError as problem:
                services.console.say(f"  {problem}")
        return None


def make_answer(question: Json, edit: str | None = None, reject: str | None = None) -> Json:
    """Return the answer: an edit as JSON, a rejection with its reason, else yes. Raises ValueError with the cure."""
    if reject is not None:
        if not reject.strip():
            raise ValueError("say why you reject it: the planner is told")
        menu = question["menu"]
        if len(menu) == 1 and all(len(values) == 1 for values in menu[0]["arguments"].values()):
            raise ValueError(f"{question['call']} is the only legal action: approve it, or leave the run as it is")
        return {"answer": "no", "reason": reject.strip(), "action": None}
    if edit is None:
        return {"answer": "yes", "reason": "", "action": None}
    form = json.dumps({"tool": question["tool"], "arguments": question["args"]})
    try:
        wished = json.loads(edit)
    except json.JSONDecodeError as error:
        raise ValueError(f"the edited action is not valid JSON ({error}); write it like {form}") from error
    if not isinstance(wished, dict) or not isinstance(wished.get("arguments", {}), dict):
        raise ValueError(f"the edited action {edit!r} is not understood; write it like {form}")
    tool, args = person_action(wished.get("tool", question["tool"]), wished.get("arguments"), question["menu"])
    return {"answer": "edit", "reason": "", "action": {"tool": tool, "args": args}}


def question_text(question: Json) -> str:
    """Return which question it is, in words: the step, and the action that is proposed."""
    return f"step {question['step']}: {question['call']}"


def check_asked(meant: str, question: Json | None, run: str) -> None:
    """Raise ValueError when a run asks something else than what an answer was meant for, or nothing."""
    asks_now = "nothing" if question is None else question_text(question)
    if asks_now != meant:
        raise ValueError(f"nothing was answered: the answer is to {meant!r}, but run {run} now asks {asks_now!r}")


def check_still_asked(answer: Json, run_dir: Path) -> None:
    """Check a later answer while the run's lock is held, so that nobody else can answer in between."""
    report = read_report(run_dir) if facts_of(run_dir).ended else None  # without an ending: it went on, and was killed
    check_asked(answer["to"], (report or {}).get("question"), run_dir.name)


def _question(state: State) -> Json:
    chosen = state["decision"]
    asked = {key: chosen[key] for key in ("tool", "args", "decided_by", "reasoning")}
    return {"step": state["step"], "call": call_text(chosen)} | asked | {"menu": state["menu"]}


def _understood(word: str, rest: str, question: Json) -> Json:
    if word in ("y", "yes"):
        return make_answer(question)
    if word in ("n", "no"):
        return make_answer(question, reject=rest)
    if word in ("e", "edit"):
        return make_answer(question, edit=rest)
    raise ValueError(f"{word!r} is no answer; type y, or n WHY, or e JSON (Ctrl-C stops the run, resumably)")


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM leave the question: there is no step under way to finish."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def waiting_text(run: str, question: Json) -> str:
    """Return how to answer a question later."""
    return (
        f"  waits for approval of {question['call']}\n  run_agent.py approve {run} "
        '[--edit \'{"tool": ..., "arguments": ...}\' | --reject WHY]'
    )
