"""Who proposes the next action. One interface, six planners: self, chat, rules, random, scripted, replay."""

from collections.abc import Callable
from pathlib import Path

from agent.planners.base import Choice, Decision, InvalidDecision, Planner
from agent.planners.chat import ChatPlanner
from agent.planners.fixed import RandomPlanner, RulesPlanner, ScriptedPlanner
from agent.planners.replay import ReplayPlanner
from agent.planners.self_planner import SelfPlanner
from tools.contract import Jobs

__all__ = ["Choice", "Decision", "InvalidDecision", "Planner", "make_planner"]


def make_planner(name: str, seed: int, jobs: Jobs, champion_dir: Callable[[], Path | None], blank: str) -> Planner:
    """Return the planner of that name.

    champion_dir gives the weights that the self planner thinks with (None = base); blank is the situation's text with
    its values blanked. Raises ValueError when its file, key or package is missing.
    """
    if name == "self":
        return SelfPlanner(jobs, champion_dir, blank)
    if name == "random":
        return RandomPlanner(seed)
    if name.startswith("scripted:"):
        return ScriptedPlanner(Path(name.removeprefix("scripted:")))
    if name.startswith("replay:"):
        return ReplayPlanner(Path(name.removeprefix("replay:")))
    if name.startswith("chat:"):
        return ChatPlanner(name)
    assert name == "rules", f"the configuration lets only known planners through, not {name!r}"
    return RulesPlanner()
