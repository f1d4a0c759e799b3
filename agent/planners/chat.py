"""A planner over a chat model: `chat:<provider>:<model>` through LangChain, or `chat:<address>#<model>` without it.

Two passes: short free reasoning, then the decision as JSON held to the menu's schema where the model can be held to
it. What comes out is checked against the menu in any case. Secrets are read from the environment, never from a spec.
"""

import importlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from agent.planners.base import Choice, Decision, InvalidDecision, check_decision, menu_schema
from tools.engines.chat_endpoint import ChatEndpoint, EngineError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

MAX_REASONING_TOKENS = 512
MAX_DECISION_TOKENS = 1024
"""Room for the white space that models under a schema like to add."""
TEMPERATURE = 0.7
"""Above zero, so that asking again after an invalid decision can bring another one."""
TIMEOUT_S = 120.0

ENDPOINT_KEY = "PLANNER_API_KEY"
PROVIDER_KEYS = {
    "anthropic": "ANTHROPIC_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "google_genai": "GOOGLE_API_KEY",
    "groq": "GROQ_API_KEY",
    "mistralai": "MISTRAL_API_KEY",
    "openai": "OPENAI_API_KEY",
    "xai": "XAI_API_KEY",
}
"""Secrets by LangChain provider; a provider that is not here is left to say itself what it misses."""

Render = Callable[..., str]
"""`prompts.render`: (name, **values) -> text."""


class Reply(NamedTuple):
    """One answer of a chat model."""

    text: str
    num_tokens: int
    """Prompt and answer together; 0 when the model does not tell."""
    num_input: int = 0
    """Of the prompt alone."""


class Chat(Protocol):
    """A chat model, reduced to one question."""

    def ask(self, system: str, question: str, *, schema: dict[str, Any] | None, seed: int) -> Reply:
        """Answer; with a schema as JSON that satisfies it, or as free text where the model cannot be held to it.

        Raises ConnectionError with the cure when the model cannot be reached or does not let us in.
        """


class ChatPlanner:
    """The planner `chat:...`. Raises ValueError with the cure for a spec that cannot work on this machine."""

    def __init__(self, spec: str, render: Render | None = None, chat: Chat | None = None) -> None:
        """Connect to nothing yet. render None = the files in prompts/; chat None = the one that the spec names."""
        self.name = _without_credentials(spec)
        self._render = render
        self._chat = chat or open_chat(spec)
        self._num_asked = 0

    def decide(self, situation_text: str, menu: list[Choice], step: int) -> Decision:
        """Return one action of the menu, decided by the model; see Planner.decide for what is raised."""
        assert menu, "the menu is empty: finishing is always legal"
        render = self._render or _prompts_render()
        self._num_asked += 1
        seed = 1000 * step + self._num_asked % 1000
        system, listing = render("planner_system"), menu_text(menu)
        thought = self._chat.ask(
            system, render("planner_reason", situation=situation_text, menu=listing), schema=None, seed=seed
        )
        reasoning = thought.text.strip()
        question = render("planner_decide", situation=situation_text, menu=listing, reasoning=reasoning)
        answer = self._chat.ask(system, question, schema=answer_schema(menu), seed=seed)
        usage = {"tokens": float(thought.num_tokens + answer.num_tokens), "cost_usd": 0.0}
        usage["input_tokens"] = float(thought.num_input + answer.num_input)
        try:
            tool, args = check_decision(parse_decision(answer.text), menu)
        except InvalidDecision as error:
            raise InvalidDecision(str(error), usage) from None
        others = dict.fromkeys(choice["tool"] for choice in menu if choice["tool"] != tool)
        return Decision(
            tool=tool,
            args=args,
            decided_by="model",
            reasoning=reasoning,
            logprob=None,
            alternatives=[{"tool": other, "logprob": None} for other in others],
            usage=usage,
        )


def open_chat(spec: str) -> Chat:
    """Return the chat model of `chat:...`. Raises ValueError with the cure for a missing package or secret."""
    kind, _, rest = spec.partition(":")
    if kind == "chat" and rest.startswith(("http://", "https://")):
        address, _, model = rest.partition("#")
        return EndpointChat(ChatEndpoint(address, _endpoint_key(address), TIMEOUT_S), model or None)
    provider, _, model = rest.partition(":")
    if kind != "chat" or not provider or not model:
        raise ValueError(
            f"planner {_without_credentials(spec)!r} is not understood; "
            "write chat:<provider>:<model>, like chat:openai:gpt-4o-mini, or chat:<address>#<model>, like chat:http://127.0.0.1:8000/v1#my-model"
        )
    return LangChainChat(_open_langchain(provider, model))


class EndpointChat:
    """A chat model behind an OpenAI-compatible endpoint."""

    def __init__(self, endpoint: ChatEndpoint, model: str | None) -> None:
        """Connect to nothing yet. model None = the only one that the endpoint serves."""
        self._endpoint = endpoint
        self._model = model

    def ask(self, system: str, question: str, *, schema: dict[str, Any] | None, seed: int) -> Reply:
        """See Chat.ask."""
        request: dict[str, Any] = {
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "max_tokens": MAX_DECISION_TOKENS if schema else MAX_REASONING_TOKENS,
            "temperature": TEMPERATURE,
            "seed": seed,
        }
        if schema:
            form = {"name": "decision", "schema": schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            self._model = self._model or self._endpoint.only_model()
            reply = self._endpoint.chat(
                request | {"model": self._model}, optional=("response_format", "seed", "temperature")
            )
        except EngineError as error:
            cure = f" (export {ENDPOINT_KEY}=...)" if error.status in (401, 403) else ""
            raise ConnectionError(f"the planner's model cannot be used: {error}{cure}") from error
        num_input = reply.usage.prompt_tokens
        return Reply(reply.choices[0].text, num_input + reply.usage.completion_tokens, num_input)


class LangChainChat:
    """Any LangChain chat model."""

    def __init__(self, model: "BaseChatModel") -> None:
        """The model keeps its own temperature, limits and retries."""
        self._model = model
        self._takes_schema = True

    def ask(self, system: str, question: str, *, schema: dict[str, Any] | None, seed: int) -> Reply:
        """See Chat.ask. LangChain has no common seed, so it is not used."""
        messages = [("system", system), ("user", question)]
        if schema and self._takes_schema:
            try:
                return self._ask_structured(messages, schema)
            except Exception as error:  # the providers' exceptions share no base class
                if not _refuses_schema(error):
                    _raise_if_unreachable(error)
                    raise
                self._takes_schema = False
        try:
            message = self._model.invoke(messages)
        except Exception as error:
            _raise_if_unreachable(error)
            raise
        return Reply(str(message.text), *_num_tokens(message))

    def _ask_structured(self, messages: list[tuple[str, str]], schema: dict[str, Any]) -> Reply:
        answer = self._model.with_structured_output(schema, include_raw=True).invoke(messages)
        raw, parsed = answer["raw"], answer["parsed"]  # type: ignore[index]  # a dict because of include_raw
        return Reply(json.dumps(parsed) if parsed is not None else str(raw.text), *_num_tokens(raw))


def menu_text(menu: list[Choice], outcomes: bool = True) -> str:
    """Return the menu as text: a line per tool with what it brought, then one per argument with its legal values."""
    lines = []
    for choice in menu:
        told = f" So far: {choice['outcome']}." if outcomes and choice.get("outcome") else ""
        lines.append(f"- {choice['tool']}: {' '.join(choice['description'].split())}{told}")
        for name, values in choice["arguments"].items():
            lines.append(f"    {name}: {' | '.join(json.dumps(value, ensure_ascii=False) for value in values)}")
    return "\n".join(lines)


def answer_schema(menu: list[Choice]) -> dict[str, Any]:
    """Return the menu's schema under one key: hosted services want an object, not a choice, at the root."""
    return {
        "title": "decision",
        "description": "The next step: one action of the menu.",
        "type": "object",
        "properties": {"decision": menu_schema(menu)},
        "required": ["decision"],
        "additionalProperties": False,
    }


def parse_decision(text: str) -> object:
    """Return the one decision in a text: a JSON object, bare, under the key "decision", or amid other words.

    The same decision said twice is one. Raises InvalidDecision when there is none, or two different ones.
    """
    found: list[object] = []
    text = text.rpartition("</think>")[2]  # thoughts may quote decisions
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            value = value["decision"] if set(value) == {"decision"} else value
            if value not in found:
                found.append(value)
        start = text.find("{", end)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} different JSON objects" if found else "no JSON object"
    raise InvalidDecision(f'the answer {text[:200]!r} holds {what}; write one: {{"tool": ..., "arguments": {{...}}}}')


def _open_langchain(provider: str, model: str) -> "BaseChatModel":
    key = PROVIDER_KEYS.get(provider)
    if key and not os.environ.get(key):
        raise ValueError(f"planner chat:{provider}:{model} needs a key; export {key}=...")
    package = f"langchain-{provider.replace('_', '-')}"
    cure = f"pip install {package}" if provider == "openai" else f"pip install langchain {package}"
    opened: BaseChatModel
    try:
        if find_spec("langchain"):
            opened = importlib.import_module("langchain.chat_models").init_chat_model(model, model_provider=provider)
        elif provider == "openai" and find_spec("langchain_openai"):
            opened = importlib.import_module("langchain_openai").ChatOpenAI(model=model)
        else:
            raise ValueError(f"planner chat:{provider}:{model} needs LangChain; {cure}")
    except ImportError as error:
        raise ValueError(f"planner chat:{provider}:{model} needs a package ({error}); {cure}") from error
    return opened


def _endpoint_key(address: str) -> str | None:
    """Return the secret for an endpoint; OpenAI's own key is given to OpenAI only, and there it is required."""
    host = urlsplit(address).hostname or ""
    if host == "openai.com" or host.endswith(".openai.com"):
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise ValueError(f"planner chat:{_without_credentials(address)} needs a key; export OPENAI_API_KEY=...")
        return key
    return os.environ.get(ENDPOINT_KEY) or None


def _without_credentials(spec: str) -> str:
    scheme, slashes, rest = spec.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{slash}{path}"


def _num_tokens(message: Any) -> tuple[int, int]:
    """Return the tokens of prompt and answer together, and of the prompt."""
    usage = getattr(message, "usage_metadata", None)
    return (int(usage["total_tokens"]), int(usage.get("input_tokens", 0))) if usage else (0, 0)


def _refuses_schema(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or getattr(error, "status_code", None) in (400, 422)


def _raise_if_unreachable(error: Exception) -> None:
    """Turn a provider's failure to answer into a ConnectionError with the cure; do nothing for other errors."""
    status = getattr(error, "status_code", None)
    causes = [error, error.__cause__, error.__cause__ and error.__cause__.__cause__]
    broken = any(isinstance(c, OSError) or type(c).__module__.startswith(("httpx", "httpcore")) for c in causes)
    if broken or (isinstance(status, int) and (status in (401, 403, 404, 408, 429) or status >= 500)):
        cure = "check the network, the key and the model's name, then resume the run"
        what = f"{type(error).__name__}: {error}"
        raise ConnectionError(f"the planner's model cannot be used ({what}); {cure}") from error


def _prompts_render() -> Render:
    render: Render = importlib.import_module("prompts").render
    return render
