"""Planners that need no model: a fixed schedule, uniform chance, and a script for tests, dry runs and replays."""

import json
import random
from pathlib import Path
from typing import Any

from agent.planners.base import Choice, Decision, InvalidDecision, check_decision

RULES: dict[str, dict[str, Any]] = {
    "evaluate_model": {"target": "candidate"},
    "finetune_model": {
        "start_from": "latest",
        "method": "lora",
        "learning_rate": 0.001,
        "schedule": "linear",
        "epochs": 3,
    },
    "import_data": {},
    "curate_data": {"size": 1024, "keep": "not_too_easy", "choice": "diverse"},
    "generate_data": {"num_items": 1024, "samples_per_item": 32, "temperature": 1.2, "prompting": "zero_shot"},
    "note_lesson": {},
    "finish_run": {},
}
"""The fixed schedule: the first of these tools that is legal, with these arguments or the nearest legal ones."""


def decision(choice: Choice, args: dict[str, Any], menu: list[Choice], decided_by: str, reasoning: str) -> Decision:
    """Return a decision that cost nothing and has no probabilities."""
    others = [{"tool": other["tool"], "logprob": None} for other in menu if other is not choice]
    return Decision(
        tool=choice["tool"],
        args=args,
        decided_by=decided_by,
        reasoning=reasoning,
        logprob=None,
        alternatives=others,
        usage={"tokens": 0, "cost_usd": 0},
    )


class RulesPlanner:
    """Evaluate what was trained, train on what was curated, curate what was generated, else generate."""

    name = "rules"

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return the first legal action of the schedule."""
        by_tool = {choice["tool"]: choice for choice in menu}
        chosen = next((by_tool[name] for name in RULES if name in by_tool), menu[0])
        wished = RULES.get(chosen["tool"], {})
        args = {name: _nearest(wished.get(name), values) for name, values in chosen["arguments"].items()}
        return decision(chosen, args, menu, "rules", "the fixed schedule's next action")


class RandomPlanner:
    """A uniformly random legal action with uniformly random legal arguments: the control arm of every planner."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return a random action; the same seed and step give the same draw from the same menu."""
        generator = random.Random(f"{self.seed}/{step}")
        chosen = generator.choice(menu)
        args = {name: generator.choice(values) for name, values in chosen["arguments"].items()}
        return decision(chosen, args, menu, "random", "chance")


class ScriptedPlanner:
    """Plays a JSONL file of {"tool", "arguments"} lines, one a step; where it has no legal one, the rules decide."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"--planner scripted:{path}: there is no such file; write one JSON decision a line")
        self.name = f"scripted:{path}"
        try:
            self.lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(f"--planner scripted:{path}: not one JSON decision a line ({error})") from error
        if not self.lines:
            raise ValueError(f"--planner scripted:{path}: the file is empty; write one JSON decision a line")

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return the line of this step (from 1). Raises InvalidDecision when it is not legal now or is missing."""
        if step > len(self.lines):
            raise InvalidDecision(f"the script has {len(self.lines)} lines, this is step {step}")
        tool, args = check_decision(self.lines[step - 1], menu)
        chosen = next(choice for choice in menu if choice["tool"] == tool)
        return decision(chosen, args, menu, "scripted", f"line {step} of the script")


def _nearest(wished: Any, values: list[Any]) -> Any:
    if wished in values:
        return wished
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if isinstance(wished, int | float) and numbers:
        return min(numbers, key=lambda value: abs(value - wished))
    return values[0]
