"""An inference policy: how a model is asked, as plain settings. Here (model, policy, question) becomes an answer.

A policy is policies/<id>/policy.json {"id", "order", "kind", "settings", "parent", "model"}; its id is the hash of its
settings, which have up to three parts. A part that is absent is as in the policy that every run begins with: the run's
system prompt, no examples, the greedy answer.

    system   the system prompt, in place of the run's
    shots    {"kind", ...}: worked examples before the question
    choice   {"kind", ...}: how one answer is found

A kind is a module of this folder. One for shots has `examples(shots, asked, questions)`, which returns a list of
(question, answer) for each question; one for a choice has `choose(choice, asked, prompts)`, which returns a Completion
for each prompt. `USE` of either says for the model card how to do the same elsewhere.

What a policy may know of a question is in `Asked`. The answers of evaluation items and their tests are not in the
process that this runs in, and neither task nor scorer are handed on.
"""

import importlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

from memory.records import content_id
from memory.store import GREEDY, RunStore
from tools.contract import Json, ToolError
from tools.engines.base import Completion, Message, Sampling, build_messages

FindFailing = Callable[[list[tuple[int, str]]], list[list[str]]]


class Asked(NamedTuple):
    """What a policy may use beside the questions."""

    policy: str
    engine: Any
    """The `tools.engines.base.Engine`, with the model loaded."""
    memory: Callable[[], Any]
    """Gives the vector memory (`memory.vectors.VectorMemory`)."""
    store: RunStore
    max_new_tokens: int
    failing: FindFailing
    """Gives the public tests that programs fail, each given as (place of its question, program); [] without tests."""
    ask_base: Callable[[list[str]], list[str]]
    """Gives the base model's reply to each prompt; after it the engine answers with the asked model again."""
    taught: Callable[[list[Json], int], AbstractContextManager[None]]
    """Gives a `with` block in which the engine answers with what so many passes over rows make of the model (with the
    model itself when they break it); after it the engine has the base model loaded."""


def policy_id(settings: Json) -> str:
    """Return the id of the policy with these settings."""
    return content_id(settings) if settings else GREEDY


def kind_of(settings: Json) -> str:
    """Return what a policy does, in a few words: the kinds of its parts."""
    system = ["system prompt"] if "system" in settings else []
    return (
        " + ".join([*system, *(settings[name]["kind"] for name in ("shots", "choice") if name in settings)]) or GREEDY
    )


def datasets_of(settings: Json) -> list[tuple[str, str]]:
    """Return the datasets whose rows a policy shows and those it learns from, each with the hash that its rows had."""
    parts = [settings.get(name, {}).get("datasets", {}) for name in ("shots", "choice")]
    return [pair for part in parts for pair in part.items()]


def settings_of(store: RunStore, policy: str) -> Json:
    """Return a policy's settings. Raises ValueError when they are not what its id was made from, or cannot be read."""
    settings: Json = store.policy(policy)["settings"]
    if not _can_be_read(settings):
        raise ValueError(f"policy {policy} has settings that nothing can read; mend the tool that made it")
    if policy_id(settings) != policy:
        raise ValueError(f"policy {policy} was changed after it was made; start a new run without what changed it")
    return settings


def _can_be_read(settings: Any) -> bool:
    if not isinstance(settings, dict) or not settings.keys() <= {"system", "shots", "choice"}:
        return False
    parts = [settings[name] for name in ("shots", "choice") if name in settings]
    if not all(isinstance(part, dict) and isinstance(part.get("kind"), str) for part in parts):
        return False
    pairs = settings.get("shots", {}).get("examples", [])
    texts = all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in pairs)
    datasets = all(isinstance(part.get("datasets", {}), dict) for part in parts)
    return isinstance(settings.get("system", ""), str) and texts and datasets


def answer(
    resident: Any,
    store: RunStore,
    model: str,
    policy: str,
    questions: list[str],
    max_new_tokens: int,
    tests: list[list[Any]] | None = None,
) -> list[Completion]:
    """Return the answer of a model to each question under a policy.

    resident: `tools.jobs.worker.Resident`. tests: of each question, the tests that its asker publishes; None = none.
    """
    settings, asked = prepare(resident, store, model, policy, max_new_tokens, tests)
    prompts = build_prompts(settings, asked, resident.settings["system_prompt"], questions)
    choice = settings.get("choice")
    if choice is None:
        return [samples[0] for samples in asked.engine.generate(prompts, Sampling(max_new_tokens))]
    return list(method(choice["kind"]).choose(choice, asked, prompts))


def prepare(
    resident: Any, store: RunStore, model: str, policy: str, max_new_tokens: int, tests: list[list[Any]] | None = None
) -> tuple[Json, Asked]:
    """Load the model; return the policy's settings and what it may use."""
    resident.engine.use_model(store.model_dir(model))
    failing: FindFailing = _none_failing
    if tests is not None and any(tests):
        from tools.refine.public_tests import finder

        failing = finder(resident.scorer, tests)
    asked = Asked(
        policy, resident.engine, lambda: resident.memory, store, max_new_tokens, failing,
        lambda prompts: _ask_base(resident, store, model, prompts),
        lambda rows, passes: _taught(resident, store, model, rows, passes),
    )  # fmt: skip
    return settings_of(store, policy), asked


def _ask_base(resident: Any, store: RunStore, model: str, prompts: list[str]) -> list[str]:
    replies: list[str] = resident.ask_base(prompts)
    resident.engine.use_model(store.model_dir(model))
    return replies


@contextmanager
def _taught(resident: Any, store: RunStore, model: str, rows: list[Json], passes: int) -> Iterator[None]:
    from tools.jobs.job import Job
    from tools.optimize.throwaway import taught

    folder = store.run_dir / "jobs" / "taught"  # no tool sees it, and a run has one worker
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            stack.enter_context(taught(Job(folder, resident), rows, model, 0, folder / "model", passes))
        except ToolError:  # it diverged: the model answers as it is
            resident.engine.use_model(store.model_dir(model))
        yield


def _none_failing(programs: list[tuple[int, str]]) -> list[list[str]]:
    return [[] for _ in programs]


def build_prompts(settings: Json, asked: Asked, system_prompt: str, questions: list[str]) -> list[list[Message]]:
    """Return the chats that ask the questions; system_prompt: the run's, used where the policy has none."""
    system, shots = settings.get("system", system_prompt), settings.get("shots")
    examples = [[] for _ in questions] if shots is None else method(shots["kind"]).examples(shots, asked, questions)
    return [build_messages(question, shown, system) for question, shown in zip(questions, examples, strict=True)]


def method(kind: str) -> Any:
    """Return the module of a kind. Raises ValueError when there is none."""
    if not kind.isidentifier():
        raise ValueError(f"{kind!r} is no kind of policy; it is the name of a file in tools/refine/")
    try:
        return importlib.import_module(f"tools.refine.{kind}")
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no kind of policy {kind!r}; this run was made by a version that had it") from error


def how_to_use(settings: Json) -> list[str]:
    """Return sentences that say how to do without this program what a policy does."""
    lines = [f"Use this system prompt: `{settings['system']}`"] if "system" in settings else []
    return lines + [method(settings[name]["kind"]).USE for name in ("shots", "choice") if name in settings]
