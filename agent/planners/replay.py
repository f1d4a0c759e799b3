"""A planner that repeats the decisions in the trace of a run, step by step (see agent/replay.py)."""

from pathlib import Path

from agent.planners.base import Choice, Decision, InvalidDecision, check_decision
from agent.planners.fixed import decision
from agent.trace import read_events


class ReplayError(RuntimeError):
    """The decision of a step cannot be repeated: a rule's or another planner's instead would be no replay."""


class ReplayPlanner:
    """Repeats what a run did; of a step that was decided several times, the last decision was done."""

    def __init__(self, run_dir: Path) -> None:
        self.name = f"replay:{run_dir}"
        decided = (event for event in read_events(run_dir) if event["kind"] == "decided")
        self.actions = {event["step"]: event["action"] for event in decided}

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return the decision of this step. Raises ReplayError when there was none, or it is not legal here."""
        if step not in self.actions:
            raise ReplayError(f"{self.name} has no decision at step {step}, and this run goes on")
        action = self.actions[step]
        try:
            tool, args = check_decision({"tool": action["tool"], "arguments": action["args"]}, menu)
        except InvalidDecision as problem:
            raise ReplayError(f"the decision of step {step} cannot be repeated: {problem}") from problem
        choice = next(choice for choice in menu if choice["tool"] == tool)
        return decision(choice, args, menu, "replay", f"what step {step} of the trace did")
