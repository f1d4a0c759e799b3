"""Scorers by name: what an answer is worth. Pure functions; `tools.tasks.scoring` runs them in a bounded child process.

  exact           the answer, but for case, white space and end punctuation
  numeric         the last number of the text, within `tolerance` (absolute; 0 = exactly)
  regex           what the one group of `pattern` matches last, in answer and reference; `compare` = exact or numeric
  choice          a letter or an option's text: `options` (JSON list), the row's "options" or the question's "A) ..."
  math_verify     mathematical equality of the last LaTeX or plain expression, by Hugging Face's math-verify
  code            a python program that passes the row's "tests", run in a sandbox (see code_scorer.py)
  judge:MODEL     a chat model's verdict; MODEL = self or http://HOST/v1#NAME (see judge.py; not in the child process)
  reasoning_gym   the dataset's own `score_answer`
  python:FILE.py  a user's `score(item: dict, answer: str) -> float` from 0 to 1

An answer from which nothing can be read is "malformed".
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory.records import file_sha256
from tools.tasks.code_scorer import make_code
from tools.tasks.judge import JUDGE_OPTIONS, make_judge_spec
from tools.tasks.library_scorers import make_math_verify, make_python, make_reasoning_gym
from tools.tasks.options import check_name, read_switch
from tools.tasks.text_scorers import make_choice, make_exact, make_numeric, make_regex, read_list, read_tolerance
from tools.tasks.verdicts import Scorer

SCORER_OPTIONS: dict[str, tuple[str, ...]] = {
    "exact": (),
    "numeric": ("tolerance",),
    "regex": ("pattern", "compare", "tolerance"),
    "choice": ("options",),
    "math_verify": (),
    "code": ("unsandboxed",),
    "judge:MODEL": JUDGE_OPTIONS,
    "python:FILE.py": ("unsandboxed",),
}
"""The scorers that a JSONL task may name, and their options."""
UNTRUSTED = ("code", "python")
"""Scorers that run code which is not ours: where the machine has no sandbox they need the option `unsandboxed`."""

_BUILDERS: dict[str, Callable[..., Scorer]] = {
    "exact": make_exact,
    "numeric": make_numeric,
    "regex": make_regex,
    "choice": make_choice,
    "math_verify": make_math_verify,
    "code": make_code,
    "reasoning_gym": make_reasoning_gym,
    "python": make_python,
}


def make_spec(name: str, options: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the checked spec of a scorer that a user named; values may be text. Raises ValueError with the cure."""
    options = dict(options)
    if name.startswith("judge:"):
        return make_judge_spec(name, options, base)
    if "tolerance" in options:
        options["tolerance"] = read_tolerance(options["tolerance"])
    if "unsandboxed" in options:
        options["unsandboxed"] = read_switch("unsandboxed", options["unsandboxed"])
    if isinstance(options.get("options"), str):
        options["options"] = read_list(options["options"])
    if name.startswith("python:"):
        for option in options:
            check_name(option, SCORER_OPTIONS["python:FILE.py"], f"option of the scorer {name!r}")
        path = (base / name.removeprefix("python:")).resolve()
        if not path.is_file():
            raise ValueError(f"scorer {name!r}: there is no file {path}")
        return {"name": "python", "file": str(path), "sha256": file_sha256(path)} | options
    check_name(name, SCORER_OPTIONS, "scorer")
    spec = {"name": name} | options
    make_scorer(spec)
    return spec


def make_scorer(spec: dict[str, Any]) -> Scorer:
    """Build the scorer of a spec {"name": ..., ...options}. Raises ValueError when the spec is wrong."""
    options = dict(spec)
    name = options.pop("name", "")
    check_name(name, _BUILDERS, "scorer")
    for option in options:
        check_name(option, inspect.signature(_BUILDERS[name]).parameters, f"option of the scorer {name!r}")
    return _BUILDERS[name](**options)
