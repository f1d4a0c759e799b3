"""The managed vLLM server: how it is started, asked, ended and started again, with a program that plays it.

The slow test needs `make vllm` and asks the real one.
"""

import json
import os
import signal
import stat
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from agent.config import RunConfig
from tools.engines import vllm_engine
from tools.engines.base import Sampling, build_messages
from tools.engines.chat_endpoint import EngineError
from tools.engines.vllm_engine import PYTHON, VllmEngine
from tools.jobs.worker import Resident

GREEDY = Sampling(max_new_tokens=8)
HELLO = [build_messages("hello", [])]

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "--port" not in sys.argv:
    print("0.0.1")
    sys.exit()
DIED = os.path.join(os.path.dirname(__file__), "died")
told = dict(zip(sys.argv[1:], sys.argv[2:]))
with open(os.path.join(os.path.dirname(__file__), "starts.jsonl"), "a") as starts:
    seen = os.environ.get
    told_of = {"weights": told["--model"], "path": seen("PYTHONPATH"), "secret": seen("SOME_API_KEY")}
    print(json.dumps(told_of), file=starts)
if "broken" in told["--model"]:
    sys.exit("ValueError: these weights are broken")

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        known = self.headers.get("Authorization") == "Bearer " + os.environ["VLLM_API_KEY"]
        status, answer = 200, {}
        if not known:
            status = 401
        elif "die" in str(body.get("messages")) and not os.path.exists(DIED):
            open(DIED, "w").close()
            os._exit(1)
        elif "fail" in str(body.get("messages")) and not os.path.exists(DIED):
            open(DIED, "w").close()
            status = 500
        elif self.path == "/v1/chat/completions":
            text = body["model"] + " of " + os.path.basename(told["--model"])
            message = {"role": "assistant", "content": text}
            answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
            answer["usage"] = {"prompt_tokens": 7, "completion_tokens": 2}
            answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 4}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    do_GET = do_POST
    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(told["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[VllmEngine]:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{textwrap.dedent(SERVER)}")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "base").mkdir()
    engine = VllmEngine(tmp_path / "base", "float32", tmp_path / "vllm.log", python)
    yield engine
    engine.close()


def starts(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def said(engine: VllmEngine) -> str:
    return engine.generate(HELLO, GREEDY)[0][0].text


def adapter(folder: Path) -> Path:
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_one_server_serves_base_and_adapters_and_another_full_weights(engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    assert engine.pid is None, "nothing is started before the first question"
    assert said(engine) == "base of base"
    engine.use_model(adapter(tmp_path / "candidate"))
    answer = said(engine)
    assert answer.startswith("candidate-") and answer.endswith(" of base")
    engine.use_model(None)
    assert said(engine) == "base of base"
    assert len(starts(tmp_path)) == 1
    engine.use_model(tmp_path / "full")
    assert said(engine) == "base of full"
    assert [Path(start["weights"]).name for start in starts(tmp_path)] == ["base", "full"]
    assert engine.tokens_processed == 4 * (7 + 2 - 4), "what the server took from its cache was not computed"


def test_a_training_ends_the_server_and_the_next_question_starts_another(engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_text("{}")
    resident = Resident(tmp_path)
    resident.make_room()  # no engine yet
    resident.__dict__["engine"] = engine
    said(engine)
    first = engine.pid
    resident.make_room()
    assert first is not None and engine.pid is None and not psutil.pid_exists(first)
    assert said(engine) == "base of base" and engine.pid != first
    assert engine.tokens_processed == 2 * (7 + 2 - 4)


@pytest.mark.parametrize("word", ["die", "fail"])
def test_a_server_that_dies_or_fails_is_started_again(word: str, engine: VllmEngine, tmp_path: Path) -> None:
    engine.use_model(adapter(tmp_path / "candidate"))
    [[answer]] = engine.generate([build_messages(word, [])], GREEDY)
    assert answer.text.startswith("candidate-")
    assert len(starts(tmp_path)) == 2


def test_a_server_that_was_killed_in_between_is_started_again(engine: VllmEngine, tmp_path: Path) -> None:
    said(engine)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert said(engine) == "base of base"
    assert len(starts(tmp_path)) == 2


def test_its_processor_time_counts_as_the_workers(engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_text("{}")
    resident = Resident(tmp_path)
    resident.__dict__["engine"] = engine
    said(engine)
    alone, together = engine.cpu_s, resident.cpu_s
    assert 0 < alone < together
    engine.close()
    assert engine.cpu_s >= alone, "what an ended server took stays counted"


def test_a_server_that_cannot_start_says_why(engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    engine.use_model(tmp_path / "broken")
    with pytest.raises(
        EngineError, match=r"ended while starting: ValueError: these weights are broken; see .*vllm\.log"
    ):
        said(engine)
    assert engine.pid is None


def test_the_server_sees_nothing_of_our_packages(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SOME_API_KEY", "secret")
    said(engine)
    assert starts(tmp_path)[0] == {"weights": str(tmp_path / "base"), "path": None, "secret": None}
    assert engine.identity() == {"engine": "vllm", "vllm": "0.0.1", "dtype": "float32", "device": vllm_engine.device()}


def test_without_vllm_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make vllm"):
        vllm_engine.check_installed(tmp_path / "python")
    with pytest.raises(ValueError, match="make vllm"):
        VllmEngine(tmp_path, "auto", tmp_path / "log", tmp_path / "python").identity()
    assert RunConfig(engine="vllm").engine == "vllm"
    with pytest.raises(ValueError, match="use transformers, vllm or openai:"):
        RunConfig(engine="vlm")


def test_the_greatest_adapter_fits() -> None:
    from tools.optimize.sft_worker import LORA_RANK

    assert LORA_RANK <= vllm_engine.MAX_LORA_RANK


@pytest.mark.slow
def test_vllm_answers_as_transformers_does(default_model: Path, tmp_path: Path) -> None:
    """Base and an adapter just trained, greedy, both in float32: on this many answers at most one may differ."""
    if not PYTHON.exists():
        pytest.skip("vLLM is not installed; `make vllm`")
    from tests.test_training import make_run, reversals, train_toy

    run_dir = make_run(tmp_path / "run", default_model)
    resident = Resident(run_dir)
    train_toy(run_dir, resident=resident, learning_rate=0.001, epochs=4)
    prompts = [build_messages(row["prompt"], []) for row in reversals(64)]
    engine = VllmEngine(default_model, "float32", tmp_path / "vllm.log")
    try:
        for folder in (None, run_dir / "models" / "m1"):
            resident.local_engine.use_model(folder)
            engine.use_model(folder)
            ours, theirs = (one.generate(prompts, GREEDY) for one in (resident.local_engine, engine))
            num_equal = sum(a.text.strip() == b.text.strip() for [a], [b] in zip(ours, theirs, strict=True))
            assert num_equal >= len(prompts) - 1, f"{num_equal} of {len(prompts)} answers of {folder} are equal"
        long = [build_messages(f"{'word ' * 200}{number}", []) for number in range(24)]
        drawn = engine.generate(long, Sampling(8, num_samples=4, temperature=1.0))
        assert all(len(samples) == 4 and all(one.logprob < 0 for one in samples) for samples in drawn)
        assert engine.tokens_processed > 0
        for path in ("health", "adapters", "v1/models", "invocations"):
            assert httpx.post(f"{engine.url}/{path}", json={}).status_code == 401, "only who has the key is answered"
    finally:
        engine.close()
