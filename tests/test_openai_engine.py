"""The engine over an OpenAI-compatible endpoint, against a real HTTP server on loopback that plays one."""

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.engines.base import Message, Sampling
from tools.engines.chat_endpoint import EngineError
from tools.engines.openai_engine import OpenAIEngine

KEY = "sk-this-is-a-secret-0123456789"
GREEDY = Sampling(max_new_tokens=8)

Respond = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""(path, request body) -> (status, body): JSON, or text to be sent as it is."""


class FakeServer:
    """Answers with `respond`, and keeps what was asked."""

    def __init__(self) -> None:
        """Listen on a free port of this machine."""
        self.respond: Respond = lambda path, body: (200, chat_answer(body))
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: set[str | None] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                server.requests.append((self.path, body))
                server.authorizations.add(self.headers.get("Authorization"))
                status, answer = server.respond(self.path, body)
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def bodies(self) -> list[dict[str, Any]]:
        """Return the chat requests so far."""
        return [body for path, body in self.requests if path == "/v1/chat/completions"]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def choice(text: str, index: int = 0, logprobs: list[float] | None = None, finish: str = "stop") -> dict[str, Any]:
    entry: dict[str, Any] = {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if logprobs is not None:
        entry["logprobs"] = {"content": [{"token": "t", "logprob": value} for value in logprobs]}
    return entry


def chat_answer(body: dict[str, Any], with_logprobs: bool = True) -> dict[str, Any]:
    """Echo the last message once per sample; 10 prompt tokens, 2 generated ones per sample."""
    text, num = body["messages"][-1]["content"], body.get("n", 1)
    logprobs = [-0.5, -0.25] if with_logprobs else None
    choices = [choice(f"{text}/{index}", index, logprobs) for index in range(num)]
    return {"choices": choices[::-1], "usage": {"prompt_tokens": 10, "completion_tokens": 2 * num}}


def ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def make_engine(server: FakeServer, model: str | None = "base", num_retries: int = 2) -> OpenAIEngine:
    return OpenAIEngine(server.url, model, KEY, timeout_s=10, max_concurrent=4, retry_waits_s=[0.0] * num_retries)


def make_adapter(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_answers_come_in_the_order_of_the_prompts_with_tokens_and_logprobs(server: FakeServer) -> None:
    engine = make_engine(server)
    answers = engine.generate([ask(str(number)) for number in range(20)], GREEDY)
    assert [completions[0].text for completions in answers] == [f"{number}/0" for number in range(20)]
    assert answers[0][0] == ("0/0", 2, -0.75, "stop")
    assert engine.tokens_processed == 20 * 12
    assert server.bodies()[0].keys() == {"model", "messages", "max_tokens", "temperature", "seed", "logprobs"}
    assert server.authorizations == {f"Bearer {KEY}"}
    assert engine.generate([], GREEDY) == []


def test_a_begun_answer_is_continued(server: FakeServer) -> None:
    begun: Message = {"role": "assistant", "content": "So:\n"}
    answers = make_engine(server).generate([[*ask("a"), begun], ask("b")], GREEDY)
    assert [completions[0].text for completions in answers] == ["So:\n/0", "b/0"]
    by_text = {body["messages"][-1]["content"]: body for body in server.bodies()}
    assert by_text["So:\n"]["messages"] == [*ask("a"), begun]
    told = {"continue_final_message": True, "add_generation_prompt": False}
    assert told.items() <= by_text["So:\n"].items() and not told.keys() & by_text["b"].keys()


def test_several_samples_are_one_request(server: FakeServer) -> None:
    engine = make_engine(server)
    [samples] = engine.generate([ask("a")], Sampling(8, num_samples=3, temperature=1.0))
    assert [sample.text for sample in samples] == ["a/0", "a/1", "a/2"]
    assert [body["n"] for body in server.bodies()] == [3]
    assert engine.tokens_processed == 10 + 6


def test_a_server_that_gives_one_choice_is_asked_again_with_other_seeds(server: FakeServer) -> None:
    server.respond = lambda path, body: (200, chat_answer(body | {"n": 1}))
    engine = make_engine(server)
    [samples] = engine.generate([ask("a")], Sampling(8, num_samples=3, temperature=1.0))
    assert len(samples) == 3
    assert len({body["seed"] for body in server.bodies()}) == 3
    assert engine.tokens_processed == 3 * 12


def test_seeds_follow_the_prompt_and_differ_between_equal_prompts(server: FakeServer) -> None:
    def seeds(*texts: str, seed: int = 0) -> dict[str, list[int]]:
        server.requests.clear()
        make_engine(server).generate([ask(text) for text in texts], Sampling(8, temperature=1.0, seed=seed))
        found: dict[str, list[int]] = {}
        for body in server.bodies():
            found.setdefault(body["messages"][0]["content"], []).append(body["seed"])
        return {text: sorted(values) for text, values in found.items()}

    first = seeds("a", "b", "a")
    assert len(set(first["a"])) == 2
    assert seeds("b", "a", "a") == first
    assert seeds("a", "b", "a", seed=1) != first


def test_missing_logprobs_are_nan_and_tokens_still_add_up(server: FakeServer) -> None:
    server.respond = lambda path, body: (200, chat_answer(body, with_logprobs=False))
    [samples] = make_engine(server).generate([ask("a")], Sampling(8, num_samples=3, temperature=1.0))
    assert all(math.isnan(sample.logprob) for sample in samples)
    assert sum(sample.num_tokens for sample in samples) == 6


@pytest.mark.parametrize(
    ("refused", "words"), [("logprobs", "logprobs are not supported"), ("n", "only one choice"), ("logprobs", "no")]
)
def test_an_optional_field_that_is_refused_is_left_out_from_then_on(
    server: FakeServer, refused: str, words: str
) -> None:
    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (400, {"error": {"message": words}}) if refused in body else (200, chat_answer(body))

    server.respond = respond
    engine = make_engine(server)
    sampling = Sampling(8, num_samples=2, temperature=1.0)
    [samples] = engine.generate([ask("a")], sampling)
    assert len(samples) == 2
    assert ("n" in server.bodies()[-1]) == (words == "logprobs are not supported")
    server.requests.clear()
    engine.generate([ask("b")], sampling)
    assert not any(refused in body for body in server.bodies())


def test_the_newer_name_of_max_tokens_is_used_where_the_server_asks_for_it(server: FakeServer) -> None:
    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        refusal = {"error": {"message": "'max_tokens' is not supported, use 'max_completion_tokens'"}}
        return (400, refusal) if "max_tokens" in body else (200, chat_answer(body))

    server.respond = respond
    engine = make_engine(server)
    engine.generate([ask("a")], GREEDY)
    engine.generate([ask("b")], GREEDY)
    assert [body.get("max_completion_tokens") for body in server.bodies()] == [None, 8, 8]
    assert all(body["logprobs"] for body in server.bodies())


def test_a_request_that_is_refused_in_any_form_raises_the_first_refusal(server: FakeServer) -> None:
    server.respond = lambda path, body: (400, f"refusal {len(server.requests)}")
    with pytest.raises(EngineError, match=r"answered 400 \(refusal 1\)"):
        make_engine(server).generate([ask("a")], GREEDY)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_then_fine(server: FakeServer, status: int) -> None:
    server.respond = lambda path, body: (200, chat_answer(body)) if len(server.requests) > 2 else (status, "busy")
    assert make_engine(server).generate([ask("a")], GREEDY)[0][0].text == "a/0"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "num_requests", "cure"),
    [(500, 3, "server's log"), (429, 3, "max_concurrent"), (401, 1, "API key"), (404, 1, "ends in /v1")],
)
def test_lasting_failures_name_endpoint_status_and_cure(
    server: FakeServer, status: int, num_requests: int, cure: str
) -> None:
    server.respond = lambda path, body: (status, f"no, {KEY} is wrong")
    with pytest.raises(EngineError, match=cure) as caught:
        make_engine(server).generate([ask("a")], GREEDY)
    assert f"{server.url}/chat/completions answered {status}" in str(caught.value)
    assert caught.value.status == status
    assert len(server.requests) == num_requests
    assert KEY not in str(caught.value) + caught.value.answer


def test_a_server_that_is_gone(server: FakeServer) -> None:
    engine = make_engine(server)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(EngineError, match="check that the server runs") as caught:
        engine.generate([ask("a")], GREEDY)
    assert caught.value.status is None


@pytest.mark.parametrize(
    "garbage",
    [
        "<html>log in</html>",
        "[]",
        {"choices": []},
        {"choices": [{}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        {"choices": [choice("no usage")]},
        "[" * 5000,
    ],
)
def test_garbage_is_an_error_not_an_answer(server: FakeServer, garbage: Any) -> None:
    server.respond = lambda path, body: (200, garbage)
    with pytest.raises(EngineError, match="OpenAI-compatible endpoint"):
        make_engine(server).generate([ask("a")], GREEDY)


@pytest.mark.parametrize(
    "words", ["maximum context length is 20 tokens", "longer than the maximum model length", "context_length_exceeded"]
)
def test_a_prompt_longer_than_the_context_is_a_value_error(server: FakeServer, words: str) -> None:
    server.respond = lambda path, body: (400, {"error": {"message": words}})
    with pytest.raises(ValueError, match="does not fit the context"):
        make_engine(server).generate([ask("a")], GREEDY)
    assert len(server.requests) == 1


def test_cut_answers_say_so_and_cached_prompt_tokens_are_not_counted(server: FakeServer) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 7}}
    server.respond = lambda path, body: (200, {"choices": [choice("x", finish="length")], "usage": usage})
    engine = make_engine(server)
    [[completion]] = engine.generate([ask("a")], GREEDY)
    assert (completion.finish, completion.num_tokens, engine.tokens_processed) == ("length", 3, 6)


def test_an_adapter_is_loaded_once_per_folder_and_content(server: FakeServer, tmp_path: Path) -> None:
    server.respond = lambda path, body: (200, chat_answer(body) if "messages" in body else "Success: loaded")
    engine = make_engine(server)
    folder, other = (make_adapter(tmp_path / name, name.encode()) for name in ("a", "b"))
    served = []
    for model_dir in (folder, None, other, folder):
        engine.use_model(model_dir)
        engine.generate([ask("x")], GREEDY)
        served.append(server.bodies()[-1]["model"])
    loads = [body for path, body in server.requests if path == "/v1/load_lora_adapter"]
    assert [load["lora_path"] for load in loads] == [str(folder.resolve()), str(other.resolve())]
    first, second = (load["lora_name"] for load in loads)
    assert served == [first, "base", second, first]
    (folder / "adapter_model.safetensors").write_bytes(b"changed")
    engine.use_model(folder)
    assert server.requests[-1][1]["lora_name"] not in served


def test_an_adapter_that_an_earlier_process_loaded_is_used(server: FakeServer, tmp_path: Path) -> None:
    server.respond = lambda path, body: (400, {"error": {"message": "The lora adapter 'x' has already been loaded."}})
    make_engine(server).use_model(make_adapter(tmp_path / "a"))


@pytest.mark.parametrize(
    ("answer", "cure"),
    [
        ((404, {"detail": "Not Found"}), "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ((404, {"error": {"message": "No adapter found for /x"}}), "does not see"),
        ((400, {"error": {"message": "rank 64 is greater than max_lora_rank 16"}}), "max_lora_rank 16"),
    ],
)
def test_an_adapter_that_cannot_be_loaded(
    server: FakeServer, tmp_path: Path, answer: tuple[int, Any], cure: str
) -> None:
    server.respond = lambda path, body: answer
    with pytest.raises(EngineError, match=cure):
        make_engine(server).use_model(make_adapter(tmp_path / "a"))


def test_full_weights_cannot_be_loaded(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        make_engine(server).use_model(tmp_path)
    assert server.requests == []


def test_the_only_base_model_is_found_and_several_are_refused(server: FakeServer) -> None:
    models = [{"id": "base-1b"}, {"id": "some-adapter", "parent": "base-1b"}]
    server.respond = lambda path, body: (200, {"data": models})
    assert make_engine(server, model=None).identity()["model"] == "base-1b"
    models.append({"id": "second"})
    with pytest.raises(ValueError, match="serves 2 models"):
        make_engine(server, model=None).identity()


def test_no_secret_leaves(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = server.url.replace("//", "//user:pass-word-0123@")
    engine = OpenAIEngine(address, "base", None, retry_waits_s=[])
    engine.generate([ask("a")], GREEDY)
    [authorization] = server.authorizations
    assert authorization is not None and authorization.startswith("Basic ")
    assert engine.identity() == {"engine": "openai", "base_url": server.url, "model": "base"}
    make_engine(server).generate([ask("a")], GREEDY)
    with pytest.raises(ValueError, match="copy it again") as caught:
        OpenAIEngine(server.url, "base", KEY + "\n")
    assert "pass-word-0123" not in caplog.text
    assert KEY not in caplog.text + str(caught.value)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000/v1", "ftp://u:secret@x/v1", "http://u:secret@x:port/v1", "http://x/v1?key=secret"]
)
def test_bad_addresses_are_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="plain address") as caught:
        OpenAIEngine(address, "base", None)
    assert "secret" not in str(caught.value)


def test_several_endpoints_share_the_prompts_and_know_each_adapter(server: FakeServer, tmp_path: Path) -> None:
    other = FakeServer()
    for one in (server, other):
        one.respond = lambda path, body: (200, chat_answer(body) if "messages" in body else "loaded")
    try:
        engine = OpenAIEngine(f"{server.url},{other.url}", "base", KEY)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name).write_text("{}")
        engine.use_model(tmp_path)
        words = [f"word {number}" for number in range(5)]
        answers = engine.generate([[{"role": "user", "content": word}] for word in words], GREEDY)
        assert [answer.text for [answer] in answers] == [f"{word}/0" for word in words]
        assert [len(one.bodies()) for one in (server, other)] == [3, 2]
        assert all("/v1/load_lora_adapter" in [path for path, _ in one.requests] for one in (server, other))
        assert len(engine.usages) == 5 and engine.identity()["base_url"] == f"{server.url},{other.url}"
    finally:
        other.http.shutdown()
        other.http.server_close()
