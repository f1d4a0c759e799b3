"""What a question says, however it is written: its words, numbers, formulas and names in one spelling.

"Forty-six plus thirty-eight", "46 + 38 =" and "the sum of 46 and 38" all read as the one token `46+38`. A formula is
one token because the order inside it carries meaning: 3 - 5 is another question than 5 - 3. Case, white space, quotes
and the punctuation after words are lost; every other sign stays a token, so that grids and code stay different.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_NAMED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_SMALL, _TENS = _NAMED.split()[:20], _NAMED.split()[20:]
_VALUES = {word: value for value, word in enumerate(_SMALL)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_DIGIT = "|".join(_SMALL[1:10])
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[ -](?:{_DIGIT})\b)?|{'|'.join(_SMALL[::-1])})"
_BELOW_1000 = rf"(?:(?:{_DIGIT}) hundred(?: (?:and )?{_BELOW_100})?|{_BELOW_100})"
_NUMBER_WORDS = re.compile(rf"\b{_BELOW_1000}(?: thousand(?: (?:and )?{_BELOW_1000})?)?\b")
_NOT_ONE = re.compile(  # "which one", "one of them": a pronoun, no number
    r"\b(?:which|each|any|every|no|this|that|the|another|other|only) one\b"
    r"|(?<!ty )\bone(?= (?:of|by|another|is|word)\b|$)"
)
_N = r"(-?\d+(?:\.\d+)?)"
_ARITHMETIC = [
    *(
        (re.compile(rf"(?:\bthe )?\b{name} (?:of|between) {_N} and {_N}"), rf"\1 {sign} \2")
        for name, sign in (("sum", "+"), ("difference", "-"), ("product", "*"), ("quotient", "/"))
    ),
    (re.compile(rf"\b(?:subtract|take) {_N} (?:away )?from {_N}"), r"\2 - \1"),
    (re.compile(rf"\badd {_N} to {_N}"), r"\2 + \1"),
    (re.compile(rf"\badd {_N} and {_N}"), r"\1 + \2"),
    (re.compile(rf"\bmultiply {_N} (?:by|with|and) {_N}"), r"\1 * \2"),
    (re.compile(rf"\bdivide {_N} by {_N}"), r"\1 / \2"),
    (re.compile(r"(?<=[\d)]) plus (?=[-\d(])"), " + "),
    (re.compile(r"(?<=[\d)]) minus (?=[-\d(])"), " - "),
    (re.compile(r"(?<=[\d)]) (?:times|multiplied by|x) (?=[-\d(])"), " * "),
    (re.compile(r"(?<=[\d)]) divided by (?=[-\d(])"), " / "),
]
_SIGNS = str.maketrans("−–—×·⋅÷", "---***/")  # noqa: RUF001 - the many minus and multiplication signs are meant
_WRITTEN_AWAY = [
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),  # 1,000
    (re.compile("['`‘’](?:s\\b)?|[\"“”]"), ""),  # noqa: RUF001 - typographic quotes; Ann's and "Ann" are Ann
    (re.compile(r"(?<=[a-z]{2})-(?=[a-z])|(?<=[a-z])-(?=[a-z]{2})"), " "),  # forty-six, but x-y stays a formula
    (re.compile(r"(?<=[\w)\]%])[.,;:!?]+(?=[\s)]|$)|(?<==)\s*[?_]+"), " "),
    (re.compile(r"(?<=\d)(?:st|nd|rd|th)\b"), ""),
    (re.compile("%"), " percent "),
    (re.compile(r"\b([ia])(?= \w)"), r"\1_"),  # "I" and "a" are words, and variables only beside a sign
    (re.compile(r"\s+"), " "),
]
_TOKEN = re.compile(r"(?<![\w)])-\d+(?:[.:]\d+)*|\d+(?:[.:]\d+)*|[^\W\d_]\w*|[^\w\s]|_+")
_OPERATORS = "+-*/^=<>"
_DIGITS = re.compile(r"\d+(?:[.:]\d+)*")
_INSIDE_A_SENTENCE = re.compile(r"(?<=[\w,;] )[^\W\d_]+")


def tokens(text: str, spelled_numbers: bool = True) -> list[str]:
    """Return a text's words, numbers and formulas in one spelling, in order, with the signs that are no punctuation.

    spelled_numbers: whether "two" is the number 2 or a word ("the two of them").
    """
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS).lower()
    for pattern, spelling in _WRITTEN_AWAY:
        text = pattern.sub(spelling, text)
    if spelled_numbers:
        text = _NOT_ONE.sub(lambda found: found[0].replace("one", "one_"), text.strip())
        text = _NUMBER_WORDS.sub(_number, text)
    for pattern, formula in _ARITHMETIC:
        text = pattern.sub(formula, text)
    return _join_formulas(_TOKEN.findall(text))


def is_value(token: str) -> bool:
    """Return whether a token is a number or a formula."""
    return token.lstrip("-")[:1].isdigit() or is_formula(token)


def is_formula(token: str) -> bool:
    """Return whether a token has an operator between operands."""
    return any(sign in token[1:-1] for sign in _OPERATORS)


def names_in(texts: Iterable[str]) -> frozenset[str]:
    """Return the names of these texts, in lower case: words that inside sentences mostly begin with a capital."""
    capital, small = Counter[str](), Counter[str]()
    for text in texts:
        for word in _INSIDE_A_SENTENCE.findall(text):
            (capital if word[0].isupper() else small)[word.lower()] += 1
    return frozenset(word for word, count in capital.items() if count > small[word] and word != "i")


def template(words: Sequence[str], names: frozenset[str]) -> str | None:
    """Return the tokens of a text with a slot for every number; None when it has no number.

    Names become slots too where there are two numbers or more: there they dress a calculation. With fewer they are
    what is asked for ("When was Ann born in 1900?").
    """
    num_numbers = sum(len(_DIGITS.findall(word)) for word in words if is_value(word))
    if not num_numbers:
        return None
    slots: list[str] = []
    for word in words:
        slot = "@" if word in names and num_numbers > 1 else _DIGITS.sub("#", word) if is_value(word) else word
        if slot != "@" or slots[-1:] != ["@"]:  # "New York" and "Rome" fill the same slot
            slots.append(slot)
    return " ".join(slots)


def _number(found: re.Match[str]) -> str:
    total = current = 0
    for word in re.findall("[a-z]+", found[0]):
        if word == "hundred":
            current *= 100
        elif word == "thousand":
            total, current = 1000 * current, 0
        else:
            current += _VALUES.get(word, 0)  # "and"
    return str(total + current)


def _join_formulas(parts: list[str]) -> list[str]:
    """Join numbers, single letters, operators and brackets that follow each other to one token a formula."""
    joined: list[str] = []
    run: list[str] = []
    for part in parts:
        operand = _is_operand(part)
        ends = not operand and part not in f"{_OPERATORS}()"
        if ends or (operand and run and _is_operand(run[-1]) and not part.startswith("-")):
            joined += _formula(run)
            run = []
        (joined if ends else run).append(part)
    return joined + _formula(run)


def _is_operand(part: str) -> bool:
    return (part[-1].isdigit() and not part[0].isalpha()) or (len(part) == 1 and part.isalpha())


def _formula(run: list[str]) -> list[str]:
    """Return a run as one token when an operator stands between operands, without "=" at its end and outer brackets."""
    start = next((i for i, part in enumerate(run) if part == "(" or _is_operand(part)), 0)
    end = next((i for i in range(len(run), 0, -1) if run[i - 1] == ")" or _is_operand(run[i - 1])), 0)
    core = run[start:end]
    if not re.search(rf"[\w)][{re.escape(_OPERATORS)}]+[\w(]", "".join(core)):
        return run
    if core[0] == "(" and core[-1] == ")" and core.count("(") == 1:
        core = core[1:-1]
    return [*run[:start], "".join(core), *(part for part in run[end:] if part != "=")]
