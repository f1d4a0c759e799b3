"""What a score depends on, hashed when a run starts and checked at each evaluation: a mismatch refuses the score.

The hashes stand in run.json under identity.hashes; those of trained models in referee/models.json from the moment of
their first measurement.
"""

import json
import platform
from importlib import metadata
from pathlib import Path

from agent.moving import file_name, without_folders
from memory.records import content_id, file_sha256, read_json, write_json
from memory.store import BASE, RunStore
from tools.contract import Json, ToolError
from tools.engines.models import IDENTITY_FILES, PROMPT_FILES, WEIGHT_FILES, fingerprint
from tools.jobs.client import REPOSITORY
from tools.refine.policy import datasets_of, settings_of
from tools.tasks.base import Task
from tools.tasks.options import split_spec
from tools.tasks.training_view import source_files

SPLITS = ("search", "gate", "final")
SCORED_LIBRARIES = (
    "torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "safetensors", "numpy", "llguidance",
    "reasoning-gym",
)  # fmt: skip
_SCORER_CODE = ("tools/tasks/*.py",)
_ENGINE_CODE = (
    "tools/engines/*.py",
    "tools/evaluate/*.py",
    "tools/refine/*.py",
    "memory/vectors.py",
    "tools/evaluate/probe_suite.jsonl",
    "tools/select/contamination.py",
    "tools/select/wording.py",
    "agent/referee.py",
    "agent/figures.py",
    "agent/guards.py",
    "agent/statistics.py",
)
SCORED_CODE = (*_SCORER_CODE, *_ENGINE_CODE)
_CURES = {
    "task": "put the task and its file back as they were",
    "items": "put the file back from a copy",
    "training rows": "put task/train.jsonl of the run back from a copy",
    "scorer code": "put the scorer's code back",
    "prompt template": "put the model's tokenizer files, the system prompt and the seed examples back",
    "base weights": "put the base model's files back",
    "engine code": "go on with the version of this program that the run began with",
    "libraries": "install the versions that the run began with",
}


class IdentityError(RuntimeError):
    """What a score depends on has changed since the run began; the score is refused."""


def take_hashes(run_dir: Path, task: Task, model_dir: Path, system_prompt: str) -> Json:
    """Return part -> hash (libraries: name -> version) of all that a score depends on. The splits must be sealed."""
    examples = [(item.question, item.answer) for item in task.seed_examples()]
    scorer = task.scorer.get("file")
    return {
        "task": content_id(
            [*_without_folders(task), task.max_new_tokens, [_hash(path) for path in source_files(task)]]
        ),
        **{f"{split} items": _hash(run_dir / "referee" / f"{split}.jsonl") for split in SPLITS},
        "training rows": _hash(run_dir / "task" / "train.jsonl"),
        "scorer code": content_id([_code(_SCORER_CODE), None if scorer is None else _hash(Path(scorer))]),
        "prompt template": content_id([fingerprint_of(model_dir, PROMPT_FILES), system_prompt, examples]),
        "base weights": fingerprint_of(model_dir, WEIGHT_FILES),
        "engine code": content_id(_code(_ENGINE_CODE)),
        "libraries": {"python": platform.python_version()} | {name: _version(name) for name in SCORED_LIBRARIES},
    }


def check_identity(run_dir: Path, task: Task) -> None:
    """Compare everything with what the run began with. Raises IdentityError that names what changed and the cure."""
    record, settings = read_json(run_dir / "run.json"), read_json(run_dir / "worker.json")
    began = record["identity"].get("hashes")
    if began is None:
        raise IdentityError("this run was begun by a version that recorded no hashes; start a new run")
    now = take_hashes(run_dir, task, Path(settings["model_dir"]), record["config"]["system_prompt"])
    for part, difference, cure in changed_parts(began, now):
        raise IdentityError(
            f"the score is refused: {part} changed since the run began ({difference}); {cure} and resume, or start a "
            "new run"
        )


def changed_parts(began: Json, now: Json) -> list[tuple[str, str, str]]:
    """Return (part, how it differs, the cure) of all that is not what `take_hashes` found when the run began.

    A part that an earlier version of the program did not record is passed over.
    """
    now = {part: value for part, value in now.items() if part in began}
    cures = {part: _CURES["items" if part.endswith("items") else part] for part in now}
    return [
        (part, _difference(began.get(part), now[part]), cures[part]) for part in now if now[part] != began.get(part)
    ]


def check_model(store: RunStore, model_id: str) -> None:
    """Check a trained model's files against its first measurement, and that it asks as the base model does.

    Raises IdentityError: champion and candidate must differ in their weights alone.
    """
    folder = store.model_dir(model_id)
    if model_id == BASE or folder is None:
        return
    if (store.get("models", model_id) or {}).get("removed"):
        raise ToolError(f"the weights of model {model_id} were removed after its verdict; train a new candidate")
    base = Path(read_json(store.run_dir / "worker.json")["model_dir"])
    own = chat_template(folder)
    if own is not None and own != chat_template(base):
        raise IdentityError(
            f"the score is refused: model {model_id} has another prompt template than the base model, so its score "
            "would not compare with the champion's; train it with the base model's template"
        )
    found, known = fingerprint_of(folder, WEIGHT_FILES), known_weights(store, model_id)
    if known not in (None, found):
        raise IdentityError(
            f"the score is refused: the weights of model {model_id} changed since they were written "
            f"({_difference(known, found)}); put them back and resume, or start a new run"
        )
    write_json(_measured_path(store), _measured(store) | {model_id: found})


def known_weights(store: RunStore, model_id: str) -> str | None:
    """Return the hash that a trained model's weights must have: as first measured, else as trained; None = unknown."""
    trained: str | None = (store.get("models", model_id) or {}).get("weights")
    return _measured(store).get(model_id, trained)


def fingerprint_of(folder: Path, patterns: tuple[str, ...] = IDENTITY_FILES) -> str:
    """Return the fingerprint of a model's folder. Raises ValueError with the cure when its files are gone."""
    try:
        return fingerprint(folder, patterns)
    except ValueError as error:
        raise ValueError(f"{error}; put the model's files back from a copy, or start a new run") from error


def check_policy(store: RunStore, policy: str) -> None:
    """Raise IdentityError when a policy, or a dataset whose rows it uses, is not what it was made as."""
    try:
        used = datasets_of(settings_of(store, policy))
        now = {name: content_id(store.rows("data", name, "train.jsonl")) for name, _ in used}
    except ValueError as problem:
        raise IdentityError(f"the score is refused: {problem}") from problem
    for name, began in used:
        if (found := now[name]) != began:
            raise IdentityError(
                f"the score is refused: dataset {name}, whose rows policy {policy} uses, was changed "
                f"({_difference(began, found)}); put it back and resume, or start a new run"
            )


def chat_template(folder: Path) -> str | None:
    """Return the chat template in a model's folder, None when it has none of its own."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").exists():
        template = read_json(folder / "tokenizer_config.json").get("chat_template")
        return template if template is None or isinstance(template, str) else json.dumps(template)
    return None


def _without_folders(task: Task) -> list[Json]:
    """Return the task's spec and scorer with files by their names: what is in them counts, not where they lie."""
    rubric = split_spec(task.spec).options.get("rubric")
    files = [*map(str, source_files(task)), task.scorer.get("file"), task.scorer.get("gold"), rubric]
    known = [file for file in files if file]
    scorer = {key: file_name(value, known) for key, value in task.scorer.items()}
    return [without_folders(task.spec, known), scorer]


def _measured_path(store: RunStore) -> Path:
    return store.run_dir / "referee" / "models.json"


def _measured(store: RunStore) -> dict[str, str]:
    path = _measured_path(store)
    measured: dict[str, str] = read_json(path) if path.exists() else {}
    return measured


def _difference(began: object, now: object) -> str:
    if isinstance(began, dict) and isinstance(now, dict):
        return ", ".join(f"{name} {began.get(name)} -> {now[name]}" for name in now if began.get(name) != now[name])
    return f"{str(began)[:12]} -> {str(now)[:12]}"


def _hash(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def _code(patterns: tuple[str, ...]) -> dict[str, str]:
    paths = sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern))
    return {path.relative_to(REPOSITORY).as_posix(): file_sha256(path) for path in paths}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
