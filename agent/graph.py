"""The loop: observe -> plan -> act -> check -> observe ... Every node reads files and returns only what it changes."""

import os
from typing import Literal

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"  # read once, when langgraph is imported; keeps classes out of the state

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import RetryPolicy

from agent.nodes import Services, act, check, observe, plan
from agent.state import State

NEVER_RETRY = RetryPolicy(max_attempts=1, retry_on=())
"""A node's work is keyed and resumable; repeating it blindly would hide what went wrong."""


def after_observe(state: State) -> Literal["plan", "__end__"]:
    """End when there is nothing to choose from."""
    return "__end__" if state.get("stop_reason") else "plan"


def after_check(state: State) -> Literal["observe", "__end__"]:
    """Go round until there is a reason to stop."""
    return "__end__" if state.get("stop_reason") else "observe"


def build_graph(checkpointer: BaseCheckpointSaver[str] | None = None) -> CompiledStateGraph[State, Services]:
    """Return the compiled loop. Its context is `Services`; run it with durability="sync"."""
    graph = StateGraph(State, context_schema=Services)
    graph.add_node("observe", observe, retry_policy=NEVER_RETRY)
    graph.add_node("plan", plan, retry_policy=NEVER_RETRY)
    graph.add_node("act", act, retry_policy=NEVER_RETRY)
    graph.add_node("check", check, retry_policy=NEVER_RETRY)
    graph.add_edge(START, "observe")
    graph.add_conditional_edges("observe", after_observe)
    graph.add_edge("plan", "act")
    graph.add_edge("act", "check")
    graph.add_conditional_edges("check", after_check)
    return graph.compile(checkpointer=checkpointer)


def served_graph() -> CompiledStateGraph[State, Services]:
    """Return the loop for a LangGraph server, which brings its own checkpointer and passes nothing."""
    return build_graph()
