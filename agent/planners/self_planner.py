"""The model under training plans its own next step: reasoning, then one legal action, decoded in the worker."""

from collections.abc import Callable
from pathlib import Path

from agent.decision_text import chances
from agent.planners.base import Choice, Decision, InvalidDecision, check_decision, menu_schema
from agent.planners.chat import menu_text
from prompts import render
from tools.contract import Jobs, ToolError


class SelfPlanner:
    """Plans with the champion's own weights (see tools/engines/constrained.py for how it decides)."""

    name = "self"

    def __init__(self, jobs: Jobs, champion_dir: Callable[[], Path | None], blank: str) -> None:
        self.jobs = jobs
        self.champion_dir = champion_dir
        self.blank = blank

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return the action whose calibrated log-probability is highest; always one of the menu.

        Raises InvalidDecision when the prompt is longer than the model's context or no whole decision came out.
        """
        options = menu_text(menu)
        system = render("planner_system")
        question = render("planner_reason", situation=situation_text, menu=options)
        schemas = {choice["tool"]: schema for choice, schema in zip(menu, menu_schema(menu)["anyOf"], strict=True)}
        folder = self.champion_dir()
        args = {
            "model_dir": None if folder is None else f"models/{folder.name}",
            "reason": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "decide": render("planner_decide", menu=options, situation=situation_text, reasoning="{reasoning}"),
            "blank": render(
                "planner_decide", menu=menu_text(menu, outcomes=False), situation=self.blank, reasoning="{reasoning}"
            ),
            "system": system,
            "schemas": schemas,
        }
        try:
            thought, _ = self.jobs.run("tools.engines.constrained:deliberate", args, {"step": step})
        except ToolError as problem:
            raise InvalidDecision(str(problem)) from problem
        tool, args = check_decision(thought["decision"], menu)
        decision = Decision(
            tool=tool,
            args=args,
            decided_by="model",
            reasoning=thought["reasoning"],
            logprob=thought["logprob"],
            alternatives=thought["alternatives"],
            usage={"tokens": thought["tokens"], "cost_usd": 0.0},
        )
        if "argument_logprobs" in thought:  # absent from a job that an earlier version finished
            decision["argument_logprobs"] = thought["argument_logprobs"]
            legal = next(choice["arguments"] for choice in menu if choice["tool"] == tool)
            decision["probabilities"] = chances(decision, legal)
        return decision
