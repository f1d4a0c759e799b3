"""Copies of questions in other clothes, for bench/contamination.py: exact, re-ordered, reworded by rule, renumbered.

Each function takes a question and returns a copy that asks the same (`renumbered`: the same of other numbers), or None
where the rule does not apply. The rules in SEEN were known while the detector was designed. Those in LOOKED_AT were
held out from that, and of their copies 90.4 % were found at first; the faults that they showed were mended, so they
are no test any more. Those in HELD_OUT were written after that, and nothing was changed once they had been measured.
"""

import random
import re
from collections.abc import Callable

Rule = Callable[[str], str | None]

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "- ten twenty thirty forty fifty sixty seventy eighty ninety"
SEEN_WORDS = {
    "how many": "what number of", "in total": "altogether", "final answer": "result", "find": "determine",
    "what is": "what's", "there are": "there exist", "gives": "hands", "has": "owns", "largest": "biggest",
    "related to": "connected with", "called": "named", "capital": "capital city", "costs": "is priced at",
}  # fmt: skip
LOOKED_AT_WORDS = {
    "state": "give", "following": "next", "problem": "exercise", "count": "work out", "given": "handed",
    "how long": "for what time", "is married to": "is the spouse of", "child": "kid", "children": "kids",
    "provide": "write", "describes": "names", "buys": "purchases", "needs": "requires", "left": "remaining",
    "wrote": "authored", "flows": "runs", "cost": "price", "average": "mean", "begins": "starts",
    "why does": "for what reason does", "people": "persons", "country": "nation", "baby": "young", "sea": "ocean",
}  # fmt: skip


def exact(question: str) -> list[str]:
    """Return copies that differ in case and white space alone."""
    return [question, question.upper(), "  " + question.replace(" ", "  ").replace("\n", " \n") + "\n"]


def sentences_moved(question: str) -> str | None:
    """Put the last sentence first."""
    sentences = re.split(r"(?<=[.?!])\s+", question.strip())
    return " ".join([sentences[-1], *sentences[:-1]]) if len(sentences) > 1 else None


def clause_moved(question: str) -> str | None:
    """Put what stands before a colon, or an if-clause before a comma, behind the rest."""
    found = re.fullmatch(r"(?s)([^:]+): (.+)", question.strip())
    if found:
        return f"{found[2]} {found[1]}:"
    found = re.fullmatch(r"(?s)((?:If|When|After) [^,]+), (.+?)\?", question.strip())
    return f"{found[2][0].upper()}{found[2][1:]} {found[1][0].lower()}{found[1][1:]}?" if found else None


def list_reversed(question: str) -> str | None:
    """Reverse a list of three or more "number noun" items."""
    found = re.search(r"\d+ [a-z ]+(?:, \d+ [a-z ]+){2,}", question)
    return question.replace(found[0], ", ".join(found[0].split(", ")[::-1])) if found else None


REORDERINGS: list[Rule] = [sentences_moved, clause_moved, list_reversed]


def renumbered(question: str, rng: random.Random) -> str | None:
    """Change every number into another one of as many digits."""

    def other(found: re.Match[str]) -> str:
        low = 10 ** (len(found[0]) - 1) if len(found[0]) > 1 else 1
        return str(rng.choice([low + i for i in range(min(9 * low, 900)) if str(low + i) != found[0]]))

    copy = re.sub(r"\d+", other, question)
    return copy if copy != question else None


def spelled(number: int) -> str:
    """Return a number below 1,000 in words."""
    if number >= 100:
        rest = f" and {spelled(number % 100)}" if number % 100 else ""
        return f"{UNITS.split()[number // 100]} hundred{rest}"
    if number < 20:
        return UNITS.split()[number]
    return TENS.split()[number // 10] + (f"-{UNITS.split()[number % 10]}" if number % 10 else "")


def replace_words(question: str, table: dict[str, str]) -> str | None:
    """Replace all words of a table, with a capital where there was one."""

    def other(found: re.Match[str]) -> str:
        new = table[found[0].lower()]
        return new[0].upper() + new[1:] if found[0][0].isupper() else new

    copy = re.sub(rf"\b(?:{'|'.join(sorted(table, key=len, reverse=True))})\b", other, question, flags=re.IGNORECASE)
    return copy if copy != question else None


def _polite(question: str) -> str | None:
    return f"Could you please answer this for me? {question} Thank you."


def _labelled(question: str) -> str | None:
    return f"Question: {question}\nAnswer:"


def _numbers_in_words(question: str) -> str | None:
    copy = re.sub(r"(?<![\d.,:])\d{1,3}(?![\d:]|[.,]\d)", lambda found: spelled(int(found[0])), question)
    return copy if copy != question else None


def _operators_in_words(question: str) -> str | None:
    names = {" + ": " plus ", " - ": " minus ", " * ": " times "}
    copy = re.sub(r"(?<=\d) [-+*] (?=[-\d])", lambda found: names[found[0]], question)
    return copy if copy != question else None


def _seen_synonyms(question: str) -> str | None:
    return replace_words(question, SEEN_WORDS)


def _ordered_to_tell(question: str) -> str | None:
    copy = re.sub(r"\b(What|Who|Which|Why|How)\b([^?.]*)\?", lambda m: f"Tell me {m[1].lower()}{m[2]}.", question)
    return copy if copy != question else None


SEEN: dict[str, Rule] = {
    "polite": _polite, "labelled": _labelled, "numbers in words": _numbers_in_words,
    "operators in words": _operators_in_words, "synonyms": _seen_synonyms, "tell me": _ordered_to_tell,
}  # fmt: skip


def _retold(question: str) -> str | None:
    return f'My teacher asked me this: "{question.strip()}" What should I reply?'


def _other_synonyms(question: str) -> str | None:
    return replace_words(question, LOOKED_AT_WORDS)


def _typeset(question: str) -> str | None:
    """No spaces around operators, typographic signs, a list of sentences in Markdown."""
    text = re.sub(r"(?<=\d) ([-+*]) (?=[-\d])", lambda m: {"-": "−", "+": "+", "*": "×"}[m[1]], question)  # noqa: RUF001
    sentences = re.split(r"(?<=[.?!])\s+", text.strip())
    return "**Task**\n\n" + "\n".join(f"* {sentence}" for sentence in sentences)


def _chatty(question: str) -> str | None:
    body = question.strip()
    return f"So, I was wondering, {body[0].lower()}{body[1:]} I really cannot work it out by myself, sorry."


_NEW_FORMS = [
    (r"State the final answer to the following arithmetic problem: (.+) =", r"What do you get when you work out \1?"),
    (
        r"Your task is to count.*?Now, how many legs are there in total if you have (.+)\?",
        r"A farm keeps \1. Add up the legs of all these animals.",
    ),
    (r"What is (\w+) to (\w+)\? Respond only.+?\.", r"\1 is which relative of \2? One word is enough."),
    (r"How is (\w+) related to (\w+)\? Provide.+?\.", r"\1 is which relative of \2? One word is enough."),
    (r"What relation is (\w+) to (\w+)\? Answer.+?\.", r"\1 is which relative of \2? One word is enough."),
    (r"Give the result as your final answer\. Do not include units\.", r"Reply with a plain number."),
    (r"^How many (.+?) (do|does|did|are|is) (.+)\?$", r"Say how great the number of \1 is that \3 \2."),
    (r"^What is the (.+)\?$", r"I would like to know the \1."),
    (r"^(Who|Which|What) (.+)\?$", r"Do you know \1 \2?"),
    (r"^Why (?:is|does|do|are) (.+)\?$", r"Explain the reason: \1."),
]


def _in_form(question: str, forms: list[tuple[str, str]]) -> str | None:
    """Return the question in the first form whose pattern it has."""
    for pattern, form in forms:
        copy = re.sub(pattern, form, question.strip(), count=1, flags=re.DOTALL)
        if copy != question.strip():
            return copy
    return None


def _new_form(question: str) -> str | None:
    return _in_form(question, _NEW_FORMS)


LOOKED_AT: dict[str, Rule] = {
    "retold": _retold, "other synonyms": _other_synonyms, "typeset": _typeset, "chatty": _chatty, "new form": _new_form,
}  # fmt: skip

HELD_OUT_WORDS = {
    "arithmetic": "calculation", "answer": "solution", "task": "job", "animals": "creatures", "list": "series",
    "married to": "wed to", "relation": "kinship", "give": "tell", "result": "outcome", "sells": "vends",
    "finish": "complete", "begins": "commences", "metal": "metallic element", "river": "stream", "painted": "drew",
    "language": "tongue", "people": "human beings", "causes": "brings about", "made": "produced", "highest": "tallest",
    "earns": "makes", "collect": "gather", "buys": "gets", "spend": "pay", "water": "H2O", "total": "sum",
}  # fmt: skip


def _exam(question: str) -> str | None:
    return f"Exercise. Solve it and write down the solution.\n\n{question.strip()}\n\nSolution:"


def _step_by_step(question: str) -> str | None:
    return f"{question.strip()}\n\nThink step by step before you decide, and check what you wrote."


def _third_synonyms(question: str) -> str | None:
    return replace_words(question, HELD_OUT_WORDS)


def _run_together(question: str) -> str | None:
    """All in lower case, sentences parted by semicolons, after an introduction."""
    return "somebody wants to know this: " + re.sub(r"[.?!]\s+", "; ", question.strip().lower())


_OTHER_FORMS = [
    (r"State the final answer to the following arithmetic problem: (.+) =", r"\1 equals which number?"),
    (
        r"Your task is to count.*?Now, how many legs are there in total if you have (.+)\?",
        r"On a meadow there are \1. How many legs is that altogether?",
    ),
    (r"What is (\w+) to (\w+)\? Respond only.+?\.", r"Which word says what \1 is for \2?"),
    (r"How is (\w+) related to (\w+)\? Provide.+?\.", r"Which word says what \1 is for \2?"),
    (r"What relation is (\w+) to (\w+)\? Answer.+?\.", r"Which word says what \1 is for \2?"),
    (r"(.+) Give the result as your final answer\. Do not include units\.", r"Here is a word problem. \1"),
    (r"(.*[.] )?How (many|much|long|fast|far) ([^?.]+)\?$", r"\1I want to find out how \2 \3."),
    (r"^What is the (.+)\?$", r"Can you name the \1?"),
    (r"^(Who|Which|What|Why|How) (.+)\?$", r"I have to find out \1 \2."),
]


def _other_form(question: str) -> str | None:
    return _in_form(question, _OTHER_FORMS)


HELD_OUT: dict[str, Rule] = {
    "exam": _exam, "step by step": _step_by_step, "third synonyms": _third_synonyms, "run together": _run_together,
    "other form": _other_form,
}  # fmt: skip
