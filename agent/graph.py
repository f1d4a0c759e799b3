"""The loop: observe -> plan -> approve -> act -> check -> observe ...

Every node reads files and returns only what it changes.
"""

from typing import Any, Literal

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, RetryPolicy

from agent.approval import approve, ask, waiting_text
from agent.nodes import Services, act, check, observe, plan
from agent.state import State, StopReason
from tools.contract import Json

NEVER_RETRY = RetryPolicy(max_attempts=1, retry_on=())
"""A node's work is keyed and resumable; repeating it blindly would hide what went wrong."""


def after_observe(state: State) -> Literal["plan", "__end__"]:
    """End when there is nothing to choose from."""
    return "__end__" if state.get("stop_reason") else "plan"


def after_approve(state: State) -> Literal["act", "plan"]:
    """Plan again when a person rejected the decision."""
    return "act" if state.get("decision") else "plan"


def after_check(state: State) -> Literal["observe", "__end__"]:
    """Go round until there is a reason to stop."""
    return "__end__" if state.get("stop_reason") else "observe"


def build_graph(checkpointer: BaseCheckpointSaver[str] | None = None) -> CompiledStateGraph[State, Services]:
    """Return the compiled loop. Its context is `Services`; run it with durability="sync"."""
    graph = StateGraph(State, context_schema=Services)
    graph.add_node("observe", observe, retry_policy=NEVER_RETRY)
    graph.add_node("plan", plan, retry_policy=NEVER_RETRY)
    graph.add_node("approve", approve, retry_policy=NEVER_RETRY)
    graph.add_node("act", act, retry_policy=NEVER_RETRY)
    graph.add_node("check", check, retry_policy=NEVER_RETRY)
    graph.add_edge(START, "observe")
    graph.add_conditional_edges("observe", after_observe)
    graph.add_edge("plan", "approve")
    graph.add_conditional_edges("approve", after_approve)
    graph.add_edge("act", "check")
    graph.add_conditional_edges("check", after_check)
    return graph.compile(checkpointer=checkpointer)


def run_graph(graph: CompiledStateGraph[State, Services], entry: Any, thread: Any, services: Services) -> StopReason:
    """Run the loop to its end, with a person's answers to its questions; WAITING when nobody is there to answer."""
    if services.answer is not None:
        entry = Command(resume=services.answer)
    state: Any = graph.invoke(entry, thread, context=services, durability="sync")
    while "__interrupt__" in state:
        question: Json = state["__interrupt__"][0].value
        answer = ask(question, services)
        if answer is None:
            services.question = question
            services.console.say(waiting_text(services.store.run_dir.name, question))
            return StopReason.WAITING
        state = graph.invoke(Command(resume=answer), thread, context=services, durability="sync")
    return StopReason(state["stop_reason"])


def served_graph() -> CompiledStateGraph[State, Services]:
    """Return the loop for a LangGraph server, which brings its own checkpointer and passes nothing."""
    return build_graph()
