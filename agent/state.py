"""The state of the loop (plain values only) and the reasons for which a run ends."""

from enum import StrEnum
from typing import Any, TypedDict


class StopReason(StrEnum):
    """Why a run ended; `sentence` is what the user reads."""

    GOAL = "goal"
    PLATEAU = "plateau"
    BUDGET = "budget"
    STEPS = "steps"
    NOTHING_VERIFIABLE = "nothing_verifiable"
    COLLAPSE = "collapse"
    NO_ACTION = "no_action"
    PLANNER_FINISHED = "planner_finished"
    WAITING = "waiting"
    USER_STOPPED = "user_stopped"
    FAILED = "failed"

    @property
    def sentence(self) -> str:
        """One sentence for the trace and the exit line."""
        return _SENTENCES[self]

    @property
    def resumable(self) -> bool:
        """Whether the run was cut off rather than ended: the final split stays closed."""
        return self in (StopReason.WAITING, StopReason.USER_STOPPED, StopReason.FAILED)


_SENTENCES = {
    StopReason.GOAL: "The champion reached the goal on the search split.",
    StopReason.PLATEAU: (
        "Training no longer helps: the last four candidates were rejected, or the newest gains are too small for what "
        "is left (the trace says which)."
    ),
    StopReason.BUDGET: "The budget does not afford another action beside the final evaluation.",
    StopReason.STEPS: "The run took all the steps it may (--max-steps).",
    StopReason.NOTHING_VERIFIABLE: (
        "The model gave no right answer at all in two generations; try an easier setting of the task, seed examples "
        "that show the answer's format, or a larger model."
    ),
    StopReason.COLLAPSE: (
        "The model's own samples show that more rounds would not help (the trace says how); the champion is kept."
    ),
    StopReason.NO_ACTION: "No tool has anything left to do, or five calls in a row were refused (see the trace).",
    StopReason.PLANNER_FINISHED: "The planner finished the run.",
    StopReason.WAITING: "The next action waits for a person's approval; `run_agent.py approve` answers.",
    StopReason.USER_STOPPED: "Stopped by the user; `run_agent.py resume` goes on.",
    StopReason.FAILED: "The run failed; nothing that was finished is lost, and `run_agent.py resume` goes on.",
}


class State(TypedDict, total=False):
    """What the checkpoint keeps between nodes. Everything else is read from the run's files."""

    step: int
    situation: dict[str, Any]
    menu: list[dict[str, Any]]
    decision: dict[str, Any]
    """Empty once a person has rejected it."""
    last: dict[str, Any] | None
    """The last action's tool, arguments and outcome in a few words."""
    told: list[list[Any]]
    """See `agent.situation.told_calls`."""
    stop_reason: str | None
