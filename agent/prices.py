"""What things cost: a small TOML table that the user gives with --prices, in USD.

machine_per_hour = 1.20            # of this machine, while the run works
[tokens."gpt-4o-mini"]             # as in --planner chat:openai:MODEL, --engine openai:URL#MODEL, --teacher URL#MODEL
input = 0.15                       # per million tokens
output = 0.60

A model that the table does not name costs nothing, unless the run is limited by --budget-usd: then it is refused.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config import RunConfig

HEAD = 'write `machine_per_hour = 1.2` and, per million tokens, `[tokens."MODEL"]` with `input` and `output`'


@dataclass(frozen=True)
class Prices:
    """Prices in USD; what nobody named costs nothing."""

    machine_per_s: float = 0.0
    tokens: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Model -> price of an input and of an output token."""

    def of_tokens(self, model: str, num_input: float, num_output: float) -> float:
        """Return what a model's tokens cost."""
        price_input, price_output = self.tokens.get(model, (0.0, 0.0))
        return num_input * price_input + num_output * price_output


def paid_models(config: RunConfig) -> dict[str, str]:
    """Return the models behind endpoints, by setting: "planner", "engine" and "teacher", each when it is one."""
    models = {}
    if config.planner.startswith("chat:"):
        rest = config.planner.removeprefix("chat:")
        models["planner"] = rest.partition("#")[2] if "://" in rest else rest.partition(":")[2]
    if config.engine.startswith("openai:"):
        models["engine"] = config.engine.partition("#")[2]
    if config.teacher:
        models["teacher"] = config.teacher.partition("#")[2]
    return models


def load_prices(config: RunConfig) -> Prices:
    """Read the table. Raises ValueError for one that is missing, not understood, or silent on a model of a paid run."""
    if config.prices is None:
        return Prices()
    path = Path(config.prices)
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        per_hour = float(table.pop("machine_per_hour", 0.0))
        tokens = {
            model: (float(price.pop("input")) / 1e6, float(price.pop("output")) / 1e6)
            for model, price in table.pop("tokens", {}).items()
        }
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--prices {path} is not understood ({type(error).__name__}: {error}); {HEAD}") from error
    if table or min([per_hour, *(price for pair in tokens.values() for price in pair)]) < 0:
        what = f"unknown: {', '.join(table)}" if table else "a price is below 0"
        raise ValueError(f"--prices {path} is not understood ({what}); {HEAD}")
    for setting, model in paid_models(config).items():
        if config.budget_usd is not None and model not in tokens:
            named = f"no price of {model!r}" if model else "and the setting names no model; write it behind #"
            raise ValueError(f'--budget-usd: {path} has {named} (--{setting}); add [tokens."MODEL"], 0 when it is free')
    return Prices(per_hour / 3600, tokens)
