"""Scorers that read the text alone: exact, numeric, regex, choice."""

import json
import math
import re
from decimal import Decimal
from typing import Any

from tools.tasks.base import Item, Verdict, normalise
from tools.tasks.options import check_name
from tools.tasks.verdicts import Scorer, binary, malformed, plain

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


def make_exact() -> Scorer:
    """The answer, but for case, white space and end punctuation."""

    def score(item: Item, answer: str) -> Verdict:
        return binary(plain(answer) == plain(item.answer)) if answer.strip() else malformed()

    return score


def read_tolerance(value: Any) -> float:
    """Read an option; text will do. Raises ValueError unless it is a finite number of 0 or more."""
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
    return malformed() if found is None else binary(abs(found - wanted) <= tolerance)


def make_numeric(tolerance: float = 0.0) -> Scorer:
    """The last number of the text, within `tolerance` (absolute; 0 = exactly)."""
    allowed = Decimal(str(read_tolerance(tolerance)))

    def score(item: Item, answer: str) -> Verdict:
        return _same_number(answer, item.answer, allowed)

    return score


def make_regex(pattern: str = "", compare: str = "exact", tolerance: float = 0.0) -> Scorer:
    """What the one group of `pattern` matches last, compared as `exact` or `numeric` do."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"scorer 'regex': the pattern {pattern!r} is not valid ({error})") from error
    if compiled.groups != 1:
        raise ValueError(f"scorer 'regex': pattern={pattern!r} must have exactly one group, for example 'answer: (.+)'")
    check_name(compare, ("exact", "numeric"), "value of the regex scorer's option 'compare'")
    allowed = Decimal(str(read_tolerance(tolerance)))

    def read(text: str) -> str | None:
        found = compiled.findall(text)
        return found[-1] if found and found[-1].strip() else None

    def score(item: Item, answer: str) -> Verdict:
        wanted, given = read(item.answer), read(answer)
        if wanted is None:
            raise ValueError(f"the reference answer {item.answer!r} does not match the pattern {pattern!r}")
        if given is None:
            return malformed()
        if compare == "numeric":
            return _same_number(given, wanted, allowed)
        return binary(plain(given) == plain(wanted))

    return score


def read_list(text: str) -> list[str]:
    """Read an option that is a JSON list."""
    try:
        return json.loads(text)  # make_choice checks what it is
    except json.JSONDecodeError as error:
        raise ValueError(f'options={text!r} is not a JSON list such as ["yes", "no"]') from error


def make_choice(options: list[str] | None = None) -> Scorer:
    """One option and no other, named by its letter or its text."""
    if options is not None and not _are_options(options):
        raise ValueError(f"scorer 'choice': options={options!r} is not a list of 2 to 26 different texts")

    def score(item: Item, answer: str) -> Verdict:
        texts = _options(item, options)
        wanted, given = _chosen(item.answer, texts), _chosen(answer, texts)
        if len(wanted) != 1:
            raise ValueError(f"the reference answer {item.answer!r} names {len(wanted)} of the options {texts}")
        return binary(given == wanted) if len(given) == 1 else malformed()

    return score


def _are_options(value: object) -> bool:
    if not isinstance(value, list) or not 2 <= len(value) <= 26:
        return False
    return all(isinstance(text, str) and text.strip() for text in value) and len(set(map(plain, value))) == len(value)


def _options(item: Item, options: list[str] | None) -> dict[str, str]:
    """Return letter -> text of the row, the scorer's option or the question; else letters A to D without text."""
    given = item.metadata.get("options", options)
    if given is not None:
        if not _are_options(given):
            raise ValueError(f'"options" of {item.question[:80]!r} is not a list of 2 to 26 different texts: {given!r}')
        return {chr(ord("A") + index): plain(text) for index, text in enumerate(given)}
    listed = {letter: plain(text) for letter, text in _OPTION_LINE.findall(item.question)}
    return listed if len(listed) >= 2 else dict.fromkeys("ABCD", "")


def _chosen(text: str, options: dict[str, str]) -> set[str]:
    """Return the letters of the options that a text names, by letter or by text."""
    whole = plain(text)
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
