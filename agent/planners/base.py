"""What a planner promises: one legal action of the menu, with who decided it and what that cost."""

from typing import Any, NotRequired, Protocol, TypedDict

QUOTE_LENGTH = 200
"""Characters of an illegal value that an error quotes: it may be text of a model."""


class Choice(TypedDict):
    """One legal action of the menu."""

    tool: str
    description: str
    """First paragraph of the tool's docstring."""
    arguments: dict[str, list[Any]]
    """Argument name -> its legal values (a constant or a grid); every combination is legal, and all are required."""
    outcome: NotRequired[str]
    """What the tool has brought so far, in a few words; "" before any verdict."""


class Decision(TypedDict):
    """The action that was chosen."""

    tool: str
    args: dict[str, Any]
    decided_by: str
    """"model", "fallback", "scripted", "rules", "random", "only_choice", "person", "forced" or "replay"."""
    reasoning: str
    logprob: float | None
    """Of the chosen tool among the legal ones; None when unknown."""
    argument_logprobs: NotRequired[dict[str, float]]
    """Of each chosen value among the legal ones, given the tool and the arguments before it; absent when unknown.

    Arguments with one legal value are left out. With `logprob` they add up to that of the whole action.
    """
    probabilities: NotRequired[list[dict[str, Any]]]
    """The same for people, with the other legal values (see agent/decision_text.py); absent when unknown."""
    alternatives: list[dict[str, Any]]
    """The legal tools not chosen: [{"tool": ..., "logprob": ...}]."""
    usage: dict[str, float]
    """{"tokens": ..., "cost_usd": ...}; cost_usd is 0 when unknown. An API planner tells its "input_tokens" too."""


class InvalidDecision(Exception):
    """The planner answered something that is not on the menu; the text says what was wrong and what is legal.

    The loop counts it and asks again; after too many the rules decide. `usage` is what the answer cost all the same.
    """

    def __init__(self, message: str, usage: dict[str, float] | None = None) -> None:
        """Without usage nothing was spent."""
        super().__init__(message)
        self.usage: dict[str, float] = usage or {"tokens": 0.0, "cost_usd": 0.0}


class Planner(Protocol):
    """Decides the next step."""

    name: str

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return one action of the menu.

        Raises InvalidDecision when none came out, ConnectionError when the planner cannot be reached.
        """


def menu_schema(menu: list[Choice]) -> dict[str, Any]:
    """Return the JSON schema that exactly the menu's actions satisfy, as {"tool": ..., "arguments": {...}}."""
    return {"anyOf": [_choice_schema(choice) for choice in menu]}


def check_decision(raw: object, menu: list[Choice]) -> tuple[str, dict[str, Any]]:
    """Return the tool and the arguments of a parsed decision, with the values as the menu writes them.

    "arguments" may be left out for a tool without any. Raises InvalidDecision for everything that is not on the menu.
    """
    if not isinstance(raw, dict):
        raise InvalidDecision(f'the decision {_quote(raw)} is not a JSON object {{"tool": ..., "arguments": ...}}')
    if unknown := sorted(set(map(str, raw)) - {"tool", "arguments"}):
        raise InvalidDecision(f'the decision has the unknown keys {_quote(unknown)}; legal: "tool", "arguments"')
    tool, arguments = raw.get("tool"), raw.get("arguments", {})
    if not isinstance(arguments, dict):
        raise InvalidDecision(f"arguments {_quote(arguments)} is not a JSON object of argument names and values")
    problem = f"tool {_quote(tool)} is not legal now; legal: {', '.join(dict.fromkeys(c['tool'] for c in menu))}"
    for choice in menu:
        if choice["tool"] == tool:
            problem = "; ".join(_problems(arguments, choice))
            if not problem:
                return choice["tool"], {name: _legal(arguments[name], choice, name) for name in choice["arguments"]}
    raise InvalidDecision(problem)


def person_action(tool: object, arguments: Any, menu: list[Choice]) -> tuple[str, dict[str, Any]]:
    """Return the action that a person asks for; arguments with one legal value may be left out.

    Raises ValueError that names what is legal.
    """
    legal = next((choice["arguments"] for choice in menu if choice["tool"] == tool), {})
    given = {name: values[0] for name, values in legal.items() if len(values) == 1}
    try:
        return check_decision({"tool": tool, "arguments": given | dict(arguments or {})}, menu)
    except InvalidDecision as problem:
        raise ValueError(str(problem)) from problem


def _choice_schema(choice: Choice) -> dict[str, Any]:
    arguments = {
        name: {"type": _json_types(values), "enum": list(values)} for name, values in choice["arguments"].items()
    }
    return _closed_object({"tool": {"type": "string", "const": choice["tool"]}, "arguments": _closed_object(arguments)})


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json_types(values: list[Any]) -> str | list[str]:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    types = list(dict.fromkeys(names.get(type(value), "null") for value in values))
    return types[0] if len(types) == 1 else types


def _problems(arguments: dict[Any, Any], choice: Choice) -> list[str]:
    """Return all that is wrong with the arguments of this choice, with what is legal; [] when they are legal."""
    legal, tool = choice["arguments"], choice["tool"]
    takes = ", ".join(legal) or "none"
    problems = [f"{tool} has no argument {_quote(name)}; it takes: {takes}" for name in arguments if name not in legal]
    for name, values in legal.items():
        if name not in arguments:
            problems.append(f"{tool} needs the argument {name!r}, one of {values}")
        elif not any(_same(arguments[name], value) for value in values):
            problems.append(f"{tool}: {name}={_quote(arguments[name])} is not legal; legal: {values}")
    return problems


def _legal(value: object, choice: Choice, name: str) -> Any:
    return next(legal for legal in choice["arguments"][name] if _same(value, legal))


def _same(value: object, legal: object) -> bool:
    # In Python True == 1, in JSON they differ; 1.0 and 1 are the same JSON number.
    return isinstance(value, bool) == isinstance(legal, bool) and value == legal


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH] + "..."
