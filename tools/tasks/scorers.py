"""Scorers by name: what an answer is worth. Pure functions; `tools.tasks.scoring` runs them in a bounded child process.

  exact           the answer, but for case, white space and end punctuation
  numeric         the last number of the text, within `tolerance` (absolute; 0 = exactly)
  regex           what the one group of `pattern` matches last, in answer and reference; `compare` = exact or numeric
  choice          a letter or an option's text: `options` (JSON list), the row's "options" or the question's "A) ..."
  reasoning_gym   the dataset's own `score_answer`
  python:FILE.py  a user's `score(item: dict, answer: str) -> float` from 0 to 1

An answer from which nothing can be read is "malformed".
"""

import importlib.util
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Real
from pathlib import Path
from tokenize import TokenError
from typing import Any

from memory.records import file_sha256
from tools.tasks.base import Item, Verdict, normalise
from tools.tasks.options import check_name

Scorer = Callable[[Item, str], Verdict]
ScoreBatch = Callable[[list[tuple[Item, str]]], list[Verdict]]

RIGHT_SCORE = 0.99
"""Graded scorers give partial credit; only from here on an answer counts as right."""

SCORER_OPTIONS: dict[str, tuple[str, ...]] = {
    "exact": (),
    "numeric": ("tolerance",),
    "regex": ("pattern", "compare", "tolerance"),
    "choice": ("options",),
}
"""The scorers that a JSONL task may name, beside python:FILE.py, and their options."""

_NUMBER = re.compile(
    r"""(?:(?<![0-9A-Za-z_)])-)?             # the minus of "5-3" is no sign
    (?: [0-9]{1,3}(?:,[0-9]{3})+(?![0-9])    # commas only group thousands
      | [0-9]+ | (?=\.[0-9]) )
    (?:\.[0-9]+)? (?:[eE][+-]?[0-9]{1,3})?""",
    re.VERBOSE,
)
_OPTION_LINE = re.compile(r"(?m)^\s*\(?([A-Z])[).:]\s*(.+?)\s*$")
_LETTER = re.compile(r"(?<![A-Za-z0-9'])([A-Z])(?![A-Za-z0-9'])")
_ARTICLE = re.compile(r"\bA(?= (?!or\b|and\b|but\b|not\b|is\b)[a-z])")
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


def make_spec(name: str, options: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the checked spec of a scorer that a user named; values may be text. Raises ValueError with the cure."""
    if name.startswith("python:"):
        if options:
            raise ValueError(f"scorer {name!r} takes no options, but was given {', '.join(options)}")
        path = (base / name.removeprefix("python:")).resolve()
        if not path.is_file():
            raise ValueError(f"scorer {name!r}: there is no file {path}")
        return {"name": "python", "file": str(path), "sha256": file_sha256(path)}
    check_name(name, [*SCORER_OPTIONS, "python:FILE.py"], "scorer")
    spec = {"name": name} | options
    if "tolerance" in options:
        spec["tolerance"] = _tolerance(options["tolerance"])
    if isinstance(options.get("options"), str):
        spec["options"] = _json_list(options["options"])
    make_scorer(spec)
    return spec


def make_scorer(spec: dict[str, Any]) -> Scorer:
    """Build the scorer of a spec {"name": ..., ...options}. Raises ValueError when the spec is wrong."""
    builders: dict[str, Callable[..., Scorer]] = {
        "exact": _make_exact,
        "numeric": _make_numeric,
        "regex": _make_regex,
        "choice": _make_choice,
        "reasoning_gym": _make_reasoning_gym,
        "python": _make_python,
    }
    options = dict(spec)
    name = options.pop("name", "")
    check_name(name, builders, "scorer")
    for option in options:
        check_name(option, inspect.signature(builders[name]).parameters, f"option of the scorer {name!r}")
    return builders[name](**options)


def known_answer_checks(items: list[Item], score: ScoreBatch) -> list[str]:
    """Give a scorer answers whose worth is known; return what it got wrong, as sentences (none: it may be trusted).

    `score` is usually `ScorerProcess.score`. The reference answer must be right, and an empty, a huge and a garbled
    text must not. Another item's answer and the restated question may be right by accident, so they count only when
    that happens for more than a quarter of the items.
    """
    probes: dict[str, Sequence[str | None]] = {
        "the reference answer": [item.answer for item in items],
        "an empty answer": [""] * len(items),
        "a huge text": ["lorem ipsum dolor sit amet " * 4_000] * len(items),
        "garbled unicode": ["\u202e\ufffd\u0000 \u2205\u2603 \U0001f600\u0301"] * len(items),
        "another item's answer": [_other_answer(items, index) for index in range(len(items))],
        "the question restated": [item.question for item in items],
    }
    may_coincide = ("another item's answer", "the question restated")
    failures = []
    for what, answers in probes.items():
        pairs = [(item, text) for item, text in zip(items, answers, strict=True) if text is not None]
        verdicts = score(pairs)
        wanted = what == "the reference answer"
        bad = [(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.right != wanted]
        if bad and (what not in may_coincide or len(bad) > len(pairs) / 4):
            (item, text), verdict = bad[0]
            failures.append(
                f"{what} was judged {verdict.kind!r} for {len(bad)} of {len(pairs)} items, first {text[:80]!r} for"
                f" {item.question[-80:]!r} (reference {item.answer[:80]!r})"
            )
    return failures


def _other_answer(items: list[Item], index: int) -> str | None:
    own = normalise(items[index].answer)
    later = items[index + 1 :] + items[:index]
    return next((item.answer for item in later if normalise(item.answer) != own), None)


def _binary(right: bool) -> Verdict:
    return Verdict(1.0, "right") if right else Verdict(0.0, "wrong")


def _malformed() -> Verdict:
    return Verdict(0.0, "malformed")


def _graded(score: object) -> Verdict:
    """Read a score from foreign code. Raises ValueError unless it is a number from 0 to 1."""
    value = float(score) if isinstance(score, Real) else math.nan
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"the scorer returned {score!r}, which is not a number from 0 to 1")
    return Verdict(value, "right" if value >= RIGHT_SCORE else "wrong")


def _plain(text: str) -> str:
    text = normalise(text)
    return text.strip(" .!\"'`*") or text


def _make_exact() -> Scorer:
    def score(item: Item, answer: str) -> Verdict:
        return _binary(_plain(answer) == _plain(item.answer)) if answer.strip() else _malformed()

    return score


def _tolerance(value: Any) -> float:
    try:
        tolerance = float(value)
    except (TypeError, ValueError):
        tolerance = math.nan
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={value!r} is not a number of 0 or more")
    return tolerance


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text.replace("\u2212", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _same_number(answer: str, reference: str, tolerance: Decimal) -> Verdict:
    wanted, found = _last_number(reference), _last_number(answer)
    if wanted is None:
        raise ValueError(f"the reference answer {reference!r} has no number")
    return _malformed() if found is None else _binary(abs(found - wanted) <= tolerance)


def _make_numeric(tolerance: float = 0.0) -> Scorer:
    allowed = Decimal(str(_tolerance(tolerance)))

    def score(item: Item, answer: str) -> Verdict:
        return _same_number(answer, item.answer, allowed)

    return score


def _make_regex(pattern: str = "", compare: str = "exact", tolerance: float = 0.0) -> Scorer:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"scorer 'regex': the pattern {pattern!r} is not valid ({error})") from error
    if compiled.groups != 1:
        raise ValueError(f"scorer 'regex': pattern={pattern!r} must have exactly one group, for example 'answer: (.+)'")
    check_name(compare, ("exact", "numeric"), "value of the regex scorer's option 'compare'")
    allowed = Decimal(str(_tolerance(tolerance)))

    def read(text: str) -> str | None:
        found = compiled.findall(text)
        return found[-1] if found and found[-1].strip() else None

    def score(item: Item, answer: str) -> Verdict:
        wanted, given = read(item.answer), read(answer)
        if wanted is None:
            raise ValueError(f"the reference answer {item.answer!r} does not match the pattern {pattern!r}")
        if given is None:
            return _malformed()
        if compare == "numeric":
            return _same_number(given, wanted, allowed)
        return _binary(_plain(given) == _plain(wanted))

    return score


def _json_list(text: str) -> list[str]:
    try:
        return json.loads(text)  # _make_choice checks what it is
    except json.JSONDecodeError as error:
        raise ValueError(f'options={text!r} is not a JSON list such as ["yes", "no"]') from error


def _make_choice(options: list[str] | None = None) -> Scorer:
    if options is not None and not _are_options(options):
        raise ValueError(f"scorer 'choice': options={options!r} is not a list of 2 to 26 different texts")

    def score(item: Item, answer: str) -> Verdict:
        texts = _options(item, options)
        wanted, given = _chosen(item.answer, texts), _chosen(answer, texts)
        if len(wanted) != 1:
            raise ValueError(f"the reference answer {item.answer!r} names {len(wanted)} of the options {texts}")
        return _binary(given == wanted) if len(given) == 1 else _malformed()

    return score


def _are_options(value: object) -> bool:
    if not isinstance(value, list) or not 2 <= len(value) <= 26:
        return False
    return all(isinstance(text, str) and text.strip() for text in value) and len(set(map(_plain, value))) == len(value)


def _options(item: Item, options: list[str] | None) -> dict[str, str]:
    """Return letter -> text of the row, the scorer's option or the question; else letters A to D without text."""
    given = item.metadata.get("options", options)
    if given is not None:
        if not _are_options(given):
            raise ValueError(f'"options" of {item.question[:80]!r} is not a list of 2 to 26 different texts: {given!r}')
        return {chr(ord("A") + index): _plain(text) for index, text in enumerate(given)}
    listed = {letter: _plain(text) for letter, text in _OPTION_LINE.findall(item.question)}
    return listed if len(listed) >= 2 else dict.fromkeys("ABCD", "")


def _chosen(text: str, options: dict[str, str]) -> set[str]:
    """Return the letters of the options that a text names, by letter or by text."""
    whole = _plain(text)
    alone = {letter for letter, option in options.items() if whole.strip("()") == letter.lower() or whole == option}
    if alone:
        return alone
    rest = normalise(text)
    chosen = set()
    for letter, option in sorted(options.items(), key=lambda pair: -len(pair[1])):  # "not sure" before "sure"
        if option:
            rest, count = re.subn(rf"(?<!\w){re.escape(option)}(?!\w)", " ", rest)
            chosen |= {letter} if count else set()
    return chosen | {letter for letter in _LETTER.findall(_ARTICLE.sub(" ", text)) if letter in options}


def _make_reasoning_gym(dataset: str, config: dict[str, Any]) -> Scorer:
    from tools.tasks.reasoning_gym_task import entry_of, make_dataset

    scorer = make_dataset(dataset, config, seed=0)

    def score(item: Item, answer: str) -> Verdict:
        entry = entry_of(item)
        try:
            score = scorer.score_answer(answer, entry)
        except _UNREADABLE:
            return _malformed()
        verdict = _graded(score)
        return verdict if verdict.right or answer.strip() else _malformed()

    return score


def _make_python(file: str, sha256: str | None = None) -> Scorer:
    path = Path(file)
    if sha256 is not None and file_sha256(path) != sha256:
        raise ValueError(f"the scorer {path} changed since the task was loaded; start a new run for the new scorer")
    spec = importlib.util.spec_from_file_location("user_scorer", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the scorer {path} is not a python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    function = getattr(module, "score", None)
    if not callable(function):
        raise ValueError(f"the scorer {path} has no function score(item, answer)")

    def score(item: Item, answer: str) -> Verdict:
        return _graded(function(item.to_json(), answer))

    return score
