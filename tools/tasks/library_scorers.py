"""Scorers that are other people's code: reasoning-gym's own, Hugging Face's math-verify, and a user's python file."""

import importlib.util
import logging
from pathlib import Path
from tokenize import TokenError
from typing import Any

from memory.records import file_sha256
from tools.tasks.base import Item, Verdict
from tools.tasks.verdicts import Scorer, binary, graded, malformed

_MOST_CHARACTERS_OF_MATHS = 10_000
"""The end of a longer answer is read: its regular expressions take minutes on a huge text."""
_MOST_CHARACTERS_OF_BARE_LATEX = 200
# What reasoning-gym's scorers raise on text that they cannot read.
_UNREADABLE = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TokenError,
)


def make_reasoning_gym(dataset: str, config: dict[str, Any]) -> Scorer:
    """The dataset's own `score_answer`."""
    from tools.tasks.reasoning_gym_task import entry_of, make_dataset

    scorer = make_dataset(dataset, config, seed=0)

    def score(item: Item, answer: str) -> Verdict:
        entry = entry_of(item)
        try:
            score = scorer.score_answer(answer, entry)
        except _UNREADABLE:
            return malformed()
        verdict = graded(score)
        return verdict if verdict.right or answer.strip() else malformed()

    return score


def make_math_verify() -> Scorer:
    r"""Mathematical equality of LaTeX and plain numbers: the last expression of the text, a boxed or final one first.

    LaTeX stands between dollar signs or in \boxed; a reference without them is LaTeX as a whole, and so may an answer
    be. math-verify's own time limits are switched off: they use the alarm signal, which is this process's own limit.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off

    def read(text: str) -> list[Any]:
        found: list[Any] = parse(text, parsing_timeout=None)
        return found

    def score(item: Item, answer: str) -> Verdict:
        wanted = read(f"${item.answer}$" if _is_bare_latex(item.answer) else item.answer)
        if not wanted:
            raise ValueError(f"the reference answer {item.answer!r} has no mathematical expression")
        found = read(answer[-_MOST_CHARACTERS_OF_MATHS:])
        if not found:
            return malformed()
        right = verify(wanted, found, timeout_seconds=None)
        if not right and _is_bare_latex(answer):
            right = verify(wanted, read(f"${answer}$"), timeout_seconds=None)
        return binary(right)

    return score


def _is_bare_latex(text: str) -> bool:
    """Whether a text may be LaTeX as a whole: short, with letters, without marks of where LaTeX begins."""
    marked = any(mark in text for mark in ("$", "\\boxed", "\\(", "\\["))
    return not marked and len(text) <= _MOST_CHARACTERS_OF_BARE_LATEX and any(map(str.isalpha, text))


def make_python(file: str, sha256: str | None = None, unsandboxed: bool = False) -> Scorer:
    """A user's `score(item: dict, answer: str) -> float` from 0 to 1, in one file.

    It sees the standard library and the installed packages; the files beside it are out of reach, because its hash
    alone is what a run's scores are tied to. `unsandboxed` is for the process that calls this.
    """
    del unsandboxed
    path = Path(file)
    if sha256 is not None and file_sha256(path) != sha256:
        raise ValueError(f"the scorer {path} changed since the task was loaded; start a new run for the new scorer")
    spec = importlib.util.spec_from_file_location("user_scorer", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the scorer {path} is not a python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "score", None)
    if not callable(function):
        raise ValueError(f"the scorer {path} has no function score(item, answer)")

    def score(item: Item, answer: str) -> Verdict:
        return graded(function(item.to_json(), answer))

    return score
