"""Which training questions are evaluation questions in other clothes; a job of the worker, asked by the referee.

It gets questions, no answers, and says of each training question alone why it overlaps, never with what. In this order:

exact        the same words, numbers, formulas and signs (case, spacing, punctuation and spelled-out numbers aside).
reordered    the same words in blocks of another order: sentences, clauses, items of a list. A block has two words or
             more (greedy string tiling, Wise 1993), and what lies between blocks keeps its order: "is Tom taller than
             Ann" is not "is Ann taller than Tom", and inside a formula nothing moves at all.
template     the same text with other numbers. In a fixed benchmark that is a copy; where a generator makes the
             questions it is the task itself, so these are kept and counted.
ngram        most word 5-grams that only one evaluation question has (what many share is the form of the task, not its
             content), or all its words in order and the same numbers and names: the question inside a longer text, or
             lightly edited.
paraphrase   the same numbers and names, and nearer to an evaluation question than different evaluation questions are
             to each other (see `_thresholds`).

For a generated task numbers, formulas, names and quoted texts must agree also in their order, because there they are
all that tells one question from another; for a fixed benchmark the same ones in any order are enough.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from tools.jobs.job import Job, Json
from tools.select.wording import is_formula, is_value, names_in, template, tokens
from tools.tasks.base import normalise

NGRAM = 5
NGRAM_SHARE = 0.7
"""Share of an evaluation question's own n-grams from which a text contains it, if all it must share is there."""
WORDS_MISSED = 0.1
"""Share of its words that may be missing then: in a short question one other word makes another question."""
FALSE_POSITIVES = {True: 0.005, False: 0.1}
"""By whether questions are generated: share of different questions that may pass for the same one by their wording.

A fixed benchmark may hold near copies of its own questions, and these must not hide copies in the training data: there
a training row too many is lost rather than a score spoiled.
"""
LOWEST_COSINE = (0.8, 0.8, 0.6, 0.4, 0.25)
"""By length of the key, a formula counting as four: below this questions differ, however far the evaluation questions
are from each other. Where four numbers and names agree, hardly anything else must."""

Key = tuple[str, ...]


class HeldOut:
    """The evaluation questions, read and indexed."""

    def __init__(self, questions: list[str], generated: bool) -> None:
        self.questions = questions
        self.generated = generated
        self.names = names_in(questions)
        self.quotes = generated and any(_quoted(question) for question in questions)
        self.tokens = [tokens(question) for question in questions]
        self.exact = {normalise(question) for question in questions}
        self.by_words = _places(tuple(sorted(words)) for words in self.tokens)
        self.keys = [self.key(question, words) for question, words in zip(questions, self.tokens, strict=True)]
        self.by_key = _places(self.keys)
        frequency = Counter(word for words in self.tokens for word in set(words))
        rarest = (min(words, key=lambda word: (frequency[word], word), default="") for words in self.tokens)
        self.by_key_and_rarest = _places((*key, word) for key, word in zip(self.keys, rarest, strict=True))
        self.templates = {template(words, self.names) for words in self.tokens} - {None}
        holders: dict[Key, list[int]] = defaultdict(list)
        for place, words in enumerate(self.tokens):
            for gram in set(_ngrams(words)):
                holders[gram].append(place)
        self.own_ngrams = {gram: places[0] for gram, places in holders.items() if len(places) == 1}
        self.num_own_ngrams = Counter(self.own_ngrams.values())

    def key(self, question: str, words: list[str]) -> Key:
        """Return what two questions must share to be the same one: numbers, formulas, names, quoted texts."""
        values = [word for word in words if is_value(word)]
        if not self.generated:
            return (*sorted(values), *sorted(self.names & set(words)))
        quoted = _quoted(question) if self.quotes else []
        return (*values, *(word for word in words if word in self.names), *quoted)

    def reason(self, question: str) -> str | None:
        """Return the first reason that needs no vectors, None when there is none."""
        words = tokens(question)
        alike = [self.tokens[place] for place in self.by_words.get(tuple(sorted(words)), []) if words]
        if normalise(question) in self.exact or words in alike:
            return "exact"
        if any(_blocks_moved(words, other) for other in alike):
            return "reordered"
        if not self.generated and self.has_template(words):
            return "template"
        return "ngram" if self._has_ngrams(self.key(question, words), words) else None

    def has_template(self, words: list[str]) -> bool:
        """Return whether an evaluation question differs from these words at most in numbers (and names)."""
        return template(words, self.names) in self.templates

    def _has_ngrams(self, key: Key, words: list[str]) -> bool:
        alike = (self.tokens[place] for word in set(words) for place in self.by_key_and_rarest.get((*key, word), []))
        if any(len(other) >= NGRAM and _within(other, words) for other in alike):
            return True
        grams = set(_ngrams(words)) & self.own_ngrams.keys()
        return any(
            count >= NGRAM_SHARE * self.num_own_ngrams[place]
            and _within(self.keys[place], key)
            and len(set(self.tokens[place]) - set(words)) <= len(self.tokens[place]) * WORDS_MISSED
            for place, count in Counter(self.own_ngrams[gram] for gram in grams).items()
        )


def find_overlaps(job: Job, questions: list[str], held_out: list[str], generated: bool) -> Json:
    """Tell of each training question why it overlaps with the evaluation questions (held_out).

    Returns {"reasons": a kind or None for each question, "num_same_template": how many of those without a reason differ
    from an evaluation question in numbers and names only}.
    """
    held = HeldOut(held_out, generated)
    reasons = [held.reason(question) for question in questions]
    left = [place for place, reason in enumerate(reasons) if reason is None]
    for place in _paraphrases(job, held, [questions[place] for place in left]):
        reasons[left[place]] = "paraphrase"
    kept = [question for question, reason in zip(questions, reasons, strict=True) if reason is None]
    return {"reasons": reasons, "num_same_template": sum(held.has_template(tokens(question)) for question in kept)}


def _paraphrases(job: Job, held: HeldOut, questions: list[str]) -> list[int]:
    """Return the places of questions that reword an evaluation question with the same key."""
    near: dict[int, Key] = {}
    for place, question in enumerate(questions):
        for spelled_numbers in (False, True):  # "Ann and Bob are two people" has no number that matters
            key = held.key(question, tokens(question, spelled_numbers))
            if key in held.by_key:
                near[place] = key
    if not near:
        return []
    # Only questions that share a key are ever compared, and of most tasks these are few.
    asked = set(near.values())
    wanted = {key: places for key, places in held.by_key.items() if key in asked or len(places) > 1}
    embed = job.resident.memory.embed
    vectors = iter(embed([held.questions[place] for places in wanted.values() for place in places]))
    groups = {key: np.array([next(vectors) for _ in places]) for key, places in wanted.items()}
    thresholds = _thresholds(held, groups)
    return [
        place
        for (place, key), vector in zip(near.items(), embed([questions[place] for place in near]), strict=True)
        if (groups[key] @ vector).max() > thresholds[_richness(key)]
    ]


def _thresholds(held: HeldOut, groups: dict[Key, Any]) -> dict[int, float]:
    """Return for each richness of keys the cosine above which two questions with the same key are the same one.

    The evaluation questions are different questions of this very task, so the cosine of each to its nearest other one
    with the same key (0 without any) is what a clean training question may have: the threshold leaves
    `FALSE_POSITIVES` of them above it (a conformal p-value, arXiv 2104.08279). No rewordings are needed for it.
    """
    nearest: dict[int, list[float]] = defaultdict(list)
    for key, places in held.by_key.items():
        if len(places) == 1:
            nearest[_richness(key)].append(0.0)
        else:
            cosines = groups[key] @ groups[key].T
            np.fill_diagonal(cosines, 0.0)
            nearest[_richness(key)] += cosines.max(axis=1).tolist()
    share = FALSE_POSITIVES[held.generated]
    return {
        richness: max(LOWEST_COSINE[min(richness, 4)], sorted(found, reverse=True)[int(share * (len(found) + 1))])
        for richness, found in nearest.items()
    }


def _richness(key: Key) -> int:
    """Return how much it tells that two questions share this key, from nothing (0) to nearly everything (8)."""
    return min(8, sum(4 if is_formula(part) else 1 for part in key))


def _blocks_moved(first: list[str], second: list[str]) -> bool:
    """Return whether two lists of the same tokens consist of the same blocks, with the same rest in the same order.

    The longest common block is taken first; one without a word (numbers, single letters, signs) is none. Tried again
    with numbers bound to the words they count, lest "3 cats 5 ants 5 bees" be cut between "ants" and "5".
    """
    return _tiled(first, second) or _tiled(_bound(first), _bound(second))


def _tiled(first: list[str], second: list[str]) -> bool:
    ours: list[Hashable] = list(first)
    theirs: list[Hashable] = list(second)
    while True:
        block = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match()
        words = [word for unit in ours[block.a : block.a + block.size] for word in str(unit).split()]
        if len(words) < 2 or not any(len(word) > 1 and not is_value(word) for word in words):
            break
        ours[block.a : block.a + block.size] = [object()]
        theirs[block.b : block.b + block.size] = [object()]
    return [word for word in ours if isinstance(word, str)] == [word for word in theirs if isinstance(word, str)]


def _quoted(question: str) -> list[str]:
    return re.findall(r'["“]([^"“”]+)["”]', question.lower())


def _bound(words: list[str]) -> list[str]:
    """Join every number with the word behind it."""
    units: list[str] = []
    for word in words:
        if units and not is_value(word) and is_value(units[-1]) and not is_formula(units[-1]):
            units[-1] += f" {word}"
        else:
            units.append(word)
    return units


def _ngrams(words: list[str]) -> Iterator[Key]:
    return (tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))


def _within(few: Iterable[str], many: Iterable[str]) -> bool:
    """Return whether all of the first stand in the second, in order."""
    rest = iter(many)
    return all(part in rest for part in few)


def _places(keys: Iterable[Key]) -> dict[Key, list[int]]:
    places: dict[Key, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return dict(places)
