"""What we ask of an OpenAI-compatible server: requests with retries, checked answers, errors that name the cure."""

import re
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from tools.engines.base import PromptTooLongError

RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0)
MAX_RETRY_AFTER_S = 60.0
CONNECT_TIMEOUT_S = 10.0
QUOTE_LENGTH = 300
"""Characters of a server's answer that an error quotes."""
_Body = TypeVar("_Body", bound=BaseModel)
_TOO_LONG = re.compile(r"context.(length|window|size)|model.length|max_model_len")


class EngineError(RuntimeError):
    """An endpoint that cannot be used; the text names the endpoint, the status and the cure, never a secret."""

    def __init__(self, message: str, status: int | None, answer: str) -> None:
        """Both texts come redacted."""
        super().__init__(message)
        self.status = status
        """HTTP status; None when no answer came."""
        self.answer = answer
        """What the server said, in full."""


class _Message(BaseModel):
    content: str | None = None  # None when the model refused or only reasoned


class _TokenLogprob(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    content: list[_TokenLogprob] | None = None


class ChatChoice(BaseModel):
    """One sample."""

    message: _Message
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    @property
    def text(self) -> str:
        """The answer; empty for none."""
        return self.message.content or ""

    @property
    def token_logprobs(self) -> list[float]:
        """In order; empty when unknown."""
        content = self.logprobs.content if self.logprobs else None
        return [token.logprob for token in content or []]


class _PromptDetails(BaseModel):
    cached_tokens: int | None = None


class ChatUsage(BaseModel):
    """What was computed, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def computed_tokens(self) -> int:
        """Prompt and generated tokens without those that the server says it took from its cache."""
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        return self.prompt_tokens + self.completion_tokens - (cached or 0)


class ChatReply(BaseModel):
    """The part of a /chat/completions answer that we read; without usage it is refused: tokens must be counted."""

    choices: list[ChatChoice] = Field(min_length=1)
    usage: ChatUsage


class _ServedModel(BaseModel):
    id: str
    parent: str | None = None  # an adapter names its base model


class _ServedModels(BaseModel):
    data: list[_ServedModel]


class ChatEndpoint:
    """An OpenAI-compatible server: requests with retries, optional fields that it may refuse, errors with a cure.

    Secrets go into headers only; whatever a server echoes of them is cut out of the errors.
    """

    def __init__(
        self, base_url: str, api_key: str | None, timeout_s: float, retry_waits_s: Sequence[float] = RETRY_WAITS_S
    ) -> None:
        """Connect to nothing yet. retry_waits_s: seconds before each further try. Raises ValueError for a bad URL."""
        try:
            parsed = httpx.URL(base_url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            shown = str(parsed.copy_with(userinfo=b"", query=None, fragment=None))
            raise ValueError(f"endpoint {shown!r} is not a plain address; write it like http://127.0.0.1:8000/v1")
        self.url = str(parsed.copy_with(userinfo=b"")).rstrip("/")
        """The address without credentials."""
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError(f"the API key for {self.url} has characters that no key has; copy it again")
        self._secrets = [secret for secret in (api_key, parsed.password) if secret]
        self._retry_waits_s = tuple(retry_waits_s)
        self._refused: set[str] = set()
        self.usages: list[ChatUsage] = []  # of all answers so far
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            auth=(parsed.username, parsed.password) if parsed.username and not api_key else None,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            # A proxy of the environment must not get what is meant for this machine.
            trust_env=parsed.host not in ("127.0.0.1", "localhost", "::1"),
        )

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> str:
        """Send one request and return the body; 408, 429, 5xx and broken connections are tried again, then raised."""
        waits_s = iter(self._retry_waits_s)
        while True:
            retry_after = ""
            try:
                response = self._client.request(method, self.url + path, json=payload)
            except httpx.RequestError as error:
                failure = self._failure(path, None, f"{type(error).__name__}: {error}")
            else:
                if response.is_success:
                    return response.text
                failure = self._failure(path, response.status_code, response.text)
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise failure
                retry_after = response.headers.get("Retry-After", "")
            wait_s = next(waits_s, None)
            if wait_s is None:
                raise failure
            time.sleep(min(float(retry_after), MAX_RETRY_AFTER_S) if retry_after.isdecimal() else wait_s)

    def chat(self, request: dict[str, Any], optional: Sequence[str] = ()) -> ChatReply:
        """Ask /chat/completions. A server that refuses optional fields (400, 422) is asked without them from then on.

        The field that the refusal names goes first, else the one earlier in `optional`; the refusal of the
        whole request is raised when the server does not accept it without them either.
        """
        request = dict(request)
        for name in self._refused & request.keys():
            _drop(request, name)
        dropped: set[str] = set()
        first_refusal: EngineError | None = None
        while True:
            try:
                text = self.request("POST", "/chat/completions", request)
                break
            except EngineError as error:
                if error.status not in (400, 422):
                    raise
                if _TOO_LONG.search(error.answer):
                    raise PromptTooLongError(f"a prompt does not fit the context of the model ({error})") from error
                first_refusal = first_refusal or error
                field = _field_to_drop(request, error.answer, optional)
                if field is None:
                    raise first_refusal from None
                _drop(request, field)
                dropped.add(field)
        self._refused.update(dropped)
        reply = self._parse(ChatReply, "/chat/completions", text)
        reply.choices.sort(key=lambda choice: choice.index)
        self.usages.append(reply.usage)
        return reply

    def only_model(self) -> str:
        """Return the name of the one base model that is served. Raises ValueError when there are several."""
        served = self._parse(_ServedModels, "/models", self.request("GET", "/models"))
        names = [model.id for model in served.data if not model.parent]
        if len(names) != 1:
            raise ValueError(f"{self.url} serves {len(names)} models ({', '.join(names)[:QUOTE_LENGTH]}); name one")
        return names[0]

    def _parse(self, body: type[_Body], path: str, text: str) -> _Body:
        try:
            return body.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            what = f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            cure = "is this an OpenAI-compatible endpoint, and does its address end in /v1?"
            message = f"{self.url}{path} answered 200 with {self._quote(text)!r} ({what}); {cure}"
            raise EngineError(message, 200, self._redacted(text)) from None

    def _failure(self, path: str, status: int | None, answer: str) -> EngineError:
        answer = self._redacted(answer)
        said = f"answered {status}" if status else "did not answer"
        return EngineError(f"{self.url}{path} {said} ({self._quote(answer)}); {_cure(status)}", status, answer)

    def _quote(self, text: str) -> str:
        return " ".join(self._redacted(text).split())[:QUOTE_LENGTH]

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text


def _cure(status: int | None) -> str:
    if status is None:
        return "check that the server runs and the address is right; after a time-out, ask for fewer tokens"
    if status in (401, 403):
        return "check the API key"
    if status == 404:
        return "check the address (it usually ends in /v1) and the model; a restarted server forgets its adapters"
    if status == 429:
        return "the service limits requests: lower max_concurrent or wait"
    return "look at the server's log" if status >= 500 else "the server does not accept the request"


def _field_to_drop(request: dict[str, Any], answer: str, optional: Sequence[str]) -> str | None:
    """Return the field to leave out after a refusal, None for none; "max_tokens" is renamed as hosted services ask."""
    if "max_completion_tokens" in answer and "max_tokens" in request:
        return "max_tokens"
    present = [name for name in optional if name in request]
    # A bare "n" occurs in any text.
    named = [name for name in present if len(name) > 1 and name in answer]
    return next(iter(named + present), None)


def _drop(request: dict[str, Any], field: str) -> None:
    value = request.pop(field)
    if field == "max_tokens":
        request["max_completion_tokens"] = value
