"""What all tests share: no network, no model hub, and two models (a tiny random one and the real default).

Tiers: default (no network, no GPU), `slow` (real training and servers on the CPU), `gpu`.

Not covered by any test, so check by hand when you touch it:
- systems without Landlock (their runs go on with process separation alone and say so);
- downloads from the Hugging Face hub (only what is said when it cannot be reached);
- `make` on a fresh machine, and the CUDA build of torch it takes there;
- the sandbox on kernels before 6.12 (older Landlock: wider signals) and on other processors than this one's;
- the network of child processes: the guard below holds for the test process alone.
"""

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.tiny import make_tiny_model

REPO = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sockets reach this machine only (loopback and unix sockets); anything else fails the test."""
    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method)))


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise RuntimeError(f"tests reach no network, and this one tried {address}")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the real default model, converted by `make` or, once, here."""
    from tools.engines.models import DEFAULT_MODEL, MODELS_DIR, resolve_model

    return resolve_model(DEFAULT_MODEL, MODELS_DIR)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (2 layers, width 32) and a tokenizer of single bytes. Do not write into it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny model that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"
