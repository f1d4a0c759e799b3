"""The planner over chat models: an endpoint played by a real HTTP server on loopback, and LangChain's own fakes."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda

from agent.planners.base import Choice, InvalidDecision, check_decision, menu_schema
from agent.planners.chat import (
    ChatPlanner,
    EndpointChat,
    LangChainChat,
    answer_schema,
    menu_text,
    parse_decision,
)
from tools.engines.chat_endpoint import ChatEndpoint

MENU = [
    Choice(
        tool="generate", description="Ask the model\nfor answers.", arguments={"num_items": [64, 128], "hot": [True]}
    ),
    Choice(tool="train", description="Train.", arguments={"rate": [1e-4, 2e-4], "data": ["d1", None]}),
    Choice(tool="finish", description="End the run.", arguments={}),
]
GOOD = {"tool": "generate", "arguments": {"num_items": 128, "hot": True}}


def fake_render(name: str, **values: str) -> str:
    return "\n".join([name, *(f"{key}={value}" for key, value in values.items())])


class FakeServer:
    """Says `thought` without a schema and `answer` with one (or always, where it refuses schemas)."""

    def __init__(self) -> None:
        """Listen on a free port of this machine."""
        self.thought, self.answer = "Data is short. ", json.dumps({"decision": GOOD})
        self.refuse: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda body: None
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                server.authorizations.append(self.headers.get("Authorization"))
                status, data = server.refuse(body) or (200, server.say(body))
                self.send_response(status)
                self.send_header("Content-Length", str(len(data.encode())))
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def say(self, body: dict[str, Any]) -> str:
        """Return a chat answer that cost 100 tokens."""
        deciding = body["messages"][1]["content"].startswith("planner_decide")
        message = {"content": self.answer if deciding else self.thought}
        usage = {"prompt_tokens": 90, "completion_tokens": 10}
        return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def make_planner(server: FakeServer) -> ChatPlanner:
    return ChatPlanner(f"chat:{server.url}#judge", fake_render)


def test_two_passes_give_one_legal_action(server: FakeServer) -> None:
    decision = make_planner(server).decide("bank: empty", MENU, step=3)
    assert decision == {
        "tool": "generate",
        "args": {"num_items": 128, "hot": True},
        "decided_by": "model",
        "reasoning": "Data is short.",
        "logprob": None,
        "alternatives": [{"tool": "train", "logprob": None}, {"tool": "finish", "logprob": None}],
        "usage": {"tokens": 200.0, "input_tokens": 180.0, "cost_usd": 0.0},
    }
    reason, decide = server.bodies
    assert "response_format" not in reason
    assert decide["response_format"]["json_schema"]["schema"] == answer_schema(MENU)
    assert [body["model"] for body in server.bodies] == ["judge", "judge"]
    assert reason["messages"][0] == {"role": "system", "content": "planner_system"}
    assert reason["messages"][1]["content"] == f"planner_reason\nsituation=bank: empty\nmenu={menu_text(MENU)}"
    assert decide["messages"][1]["content"].endswith("reasoning=Data is short.")


def test_asking_again_uses_another_seed(server: FakeServer) -> None:
    planner = make_planner(server)
    planner.decide("s", MENU, step=1)
    planner.decide("s", MENU, step=1)
    assert server.bodies[0]["seed"] != server.bodies[2]["seed"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            '{"tool": "delete_everything", "arguments": {}}',
            r"'delete_everything' is not legal now; legal: generate, train",
        ),
        ('{"tool": "generate", "arguments": {"num_items": 100, "hot": true}}', r"num_items=100 .* legal: \[64, 128\]"),
        ("I would rather train a little more.", "no JSON object"),
        ("", "no JSON object"),
        ('{"tool": "finish", "arguments": {}} or {"tool": "train", "arguments": {}}', "2 different JSON objects"),
    ],
)
def test_what_is_not_on_the_menu_never_comes_out(server: FakeServer, answer: str, words: str) -> None:
    server.answer = answer
    with pytest.raises(InvalidDecision, match=words) as caught:
        make_planner(server).decide("s", MENU, step=1)
    assert caught.value.usage == {"tokens": 200.0, "input_tokens": 180.0, "cost_usd": 0.0}


def test_a_server_without_schemas_is_asked_for_plain_json(server: FakeServer) -> None:
    server.refuse = lambda body: (400, "what is this?") if "response_format" in body else None
    server.answer = f"Let me see.\n```json\n{json.dumps(GOOD)}\n```"
    planner = make_planner(server)
    for _ in range(2):
        assert planner.decide("s", MENU, step=1)["args"] == GOOD["arguments"]
    assert ["response_format" in body for body in server.bodies] == [False, True, False, False, False]
    assert all("temperature" in body for body in server.bodies)


def test_a_failing_endpoint_is_a_connection_error_with_the_cure(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANNER_API_KEY", "sk-secret-of-the-planner")
    server.refuse = lambda body: (401, "bad key sk-secret-of-the-planner")
    with pytest.raises(ConnectionError, match="export PLANNER_API_KEY") as caught:
        make_planner(server).decide("s", MENU, step=1)
    assert server.authorizations == ["Bearer sk-secret-of-the-planner"]
    assert "sk-secret" not in str(caught.value)


def test_an_endpoint_that_is_gone_is_a_connection_error(server: FakeServer) -> None:
    chat = EndpointChat(ChatEndpoint(server.url, None, timeout_s=5, retry_waits_s=[0.0]), "judge")
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(ConnectionError, match="check that the server runs"):
        ChatPlanner("chat:gone", fake_render, chat).decide("s", MENU, step=1)


def test_the_key_of_openai_is_not_given_to_others(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANNER_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    make_planner(server).decide("s", MENU, step=1)
    assert set(server.authorizations) == {None}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("chat:", "is not understood"),
        ("chat:openai", "is not understood"),
        ("chat:openai:gpt-x", "export OPENAI_API_KEY="),
        ("chat:anthropic:claude-x", "export ANTHROPIC_API_KEY="),
        ("chat:https://api.openai.com/v1#gpt-x", "export OPENAI_API_KEY="),
        ("chat:https://?", "plain address"),
    ],
)
def test_a_spec_that_cannot_work_says_the_cure(spec: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=words):
        ChatPlanner(spec, fake_render)


@pytest.mark.skipif(find_spec("langchain") is not None, reason="langchain is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match="pip install langchain langchain-ollama"):
        ChatPlanner("chat:ollama:llama", fake_render)


def test_the_name_of_a_planner_has_no_credentials() -> None:
    assert ChatPlanner("chat:http://me:secret@127.0.0.1:9/v1#m").name == "chat:http://127.0.0.1:9/v1#m"
    assert ChatPlanner("chat:any:thing", chat=LangChainChat(FakeListChatModel(responses=[]))).name == "chat:any:thing"


def test_a_provider_is_opened_through_its_langchain_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "langchain" in sys.modules:
        pytest.skip("the real langchain is loaded")
    package = tmp_path / "langchain"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "chat_models.py").write_text(
        "from langchain_core.language_models import FakeListChatModel\n"
        "def init_chat_model(model, model_provider):\n"
        "    if model_provider != 'openai': raise ImportError('no langchain_groq')\n"
        f"    return FakeListChatModel(responses=['because ' + model, {json.dumps(GOOD)!r}])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("GROQ_API_KEY", "gsk")
    try:
        decision = ChatPlanner("chat:openai:gpt-x", fake_render).decide("s", MENU, step=1)
        with pytest.raises(ValueError, match="pip install langchain langchain-groq"):
            ChatPlanner("chat:groq:m", fake_render)
    finally:
        for name in ("langchain", "langchain.chat_models"):
            sys.modules.pop(name, None)
    assert (decision["tool"], decision["reasoning"]) == ("generate", "because gpt-x")


class StructuredModel(FakeListChatModel):
    """Takes schemas, and answers with what the test gives: a decision, or an error to raise."""

    outcome: Any

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **_: Any) -> Runnable[Any, Any]:
        """Return what LangChain's models return with include_raw."""

        def answer(_: Any) -> dict[str, Any]:
            if isinstance(self.outcome, Exception):
                raise self.outcome
            usage = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
            raw = AIMessage("the raw text", usage_metadata=usage)
            return {"raw": raw, "parsed": self.outcome, "parsing_error": None}

        return RunnableLambda(answer)


class StatusError(Exception):
    """An error as the providers' clients raise it."""

    def __init__(self, status_code: int) -> None:
        """Like openai.APIStatusError."""
        super().__init__(f"status {status_code}")
        self.status_code = status_code


def langchain_planner(outcome: Any) -> ChatPlanner:
    model = StructuredModel(responses=["thought", json.dumps(GOOD)], outcome=outcome)
    return ChatPlanner("chat:any:thing", fake_render, chat=LangChainChat(model))


def test_langchain_with_a_schema() -> None:
    decision = langchain_planner({"decision": GOOD}).decide("s", MENU, step=1)
    assert (decision["args"], decision["usage"]["tokens"]) == (GOOD["arguments"], 42.0)


def test_langchain_without_a_parsed_decision_is_invalid() -> None:
    with pytest.raises(InvalidDecision, match="'the raw text' holds no JSON object"):
        langchain_planner(None).decide("s", MENU, step=1)


def test_langchain_model_that_refuses_the_schema_is_asked_for_plain_json() -> None:
    assert langchain_planner(StatusError(400)).decide("s", MENU, step=1)["tool"] == "generate"


@pytest.mark.parametrize("error", [StatusError(401), StatusError(503), TimeoutError("slow"), ConnectionResetError()])
def test_langchain_failures_of_the_network_stop_resumably(error: Exception) -> None:
    with pytest.raises(ConnectionError, match="then resume the run"):
        langchain_planner(error).decide("s", MENU, step=1)


def test_langchain_other_errors_are_not_hidden() -> None:
    with pytest.raises(KeyError):
        langchain_planner(KeyError("bug")).decide("s", MENU, step=1)


LEGAL = [GOOD, {"tool": "finish", "arguments": {}}, {"tool": "train", "arguments": {"rate": 0.0001, "data": None}}]
ILLEGAL = [
    {"tool": "generate", "arguments": {"num_items": 128}},
    {"tool": "generate", "arguments": {"num_items": 128, "hot": 1}},
    {"tool": "generate", "arguments": {"num_items": "128", "hot": True}},
    {"tool": "finish", "arguments": {"path": "/"}},
    {"tool": "finish", "arguments": None},
    {"tool": "finish", "arguments": {}, "shell": "rm"},
    {"tool": ["finish"], "arguments": {}},
    {"arguments": {}},
    ["finish"],
    "finish",
    None,
]


@pytest.mark.parametrize("raw", LEGAL)
def test_check_and_schema_take_what_is_legal(raw: Any) -> None:
    assert Draft202012Validator(menu_schema(MENU)).is_valid(raw)
    assert check_decision(raw, MENU) == (raw["tool"], raw["arguments"])


@pytest.mark.parametrize("raw", ILLEGAL)
def test_check_and_schema_refuse_the_rest(raw: Any) -> None:
    assert not Draft202012Validator(menu_schema(MENU)).is_valid(raw)
    with pytest.raises(InvalidDecision):
        check_decision(raw, MENU)


def test_values_come_out_as_the_menu_writes_them() -> None:
    _, args = check_decision({"tool": "generate", "arguments": {"num_items": 64.0, "hot": True}}, MENU)
    assert repr(args) == "{'num_items': 64, 'hot': True}"
    assert check_decision({"tool": "finish"}, MENU) == ("finish", {})


def test_a_tool_may_stand_on_the_menu_twice() -> None:
    menu = [Choice(tool="train", description="", arguments={"data": [name]}) for name in ("d1", "d2")]
    assert check_decision({"tool": "train", "arguments": {"data": "d1"}}, menu)[1] == {"data": "d1"}
    assert check_decision({"tool": "train", "arguments": {"data": "d2"}}, menu)[1] == {"data": "d2"}


def test_a_long_illegal_value_is_quoted_in_part() -> None:
    with pytest.raises(InvalidDecision) as caught:
        check_decision({"tool": "x" * 10_000}, MENU)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        '{"tool": "finish"}',
        ' {"decision": {"tool": "finish"}}   \n\n',
        '<think>{"tool": "train"} maybe {</think> I choose {"tool": "finish"}.',
        '{"tool": "finish"} I said {"tool": "finish"}',
        '{ no {"tool": "finish"}',
    ],
)
def test_one_decision_is_found_in_a_text(text: str) -> None:
    assert parse_decision(text) == {"tool": "finish"}


def test_deep_nesting_is_not_a_crash() -> None:
    with pytest.raises(InvalidDecision):
        parse_decision('{"a":' + "[" * 3000)
