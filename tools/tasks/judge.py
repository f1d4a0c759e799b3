"""A chat model as scorer, for tasks that nothing can verify: `judge:self` (the base model) or `judge:http://HOST/v1#NAME`.

By a rubric: the model gives 0 to 10, and from `threshold` on the answer is right. Pairwise: the answer is compared with
the row's reference answer in both orders (judges prefer a place; arXiv 2306.05685), and is right when it is not worse;
two replies that contradict each other are a tie. A judge also prefers the longer answer, so beside a pairwise score
stands the win rate at equal length (arXiv 2404.04475).

A judge sees no network but its endpoint's, keeps no state, and is measured on a gold set before a run: see
`agent.judge_check`. Where it is used, every score carries its note.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from memory.records import content_id, read_jsonl, write_jsonl
from prompts import render
from tools.contract import Json
from tools.engines.base import Message, PromptTooLongError, Sampling, build_messages
from tools.jobs.job import Job
from tools.tasks.base import Item, Verdict
from tools.tasks.options import check_name, read_switch
from tools.tasks.scoring import ScorerErrors, ScorerProcess
from tools.tasks.verdicts import malformed

Ask = Callable[[list[str]], list[str]]
"""One reply for each prompt, in order. Raises RuntimeError when the model cannot be used."""

JUDGE_OPTIONS = ("rubric", "gold", "threshold", "pairwise", "judge_unchecked")
DEFAULT_THRESHOLD = 0.7
API_KEY = "JUDGE_API_KEY"
"""Environment variable with the secret of the judge's endpoint."""
MOST_CHARACTERS = 4_000
"""Of each text that a judge is shown; the rest is cut off."""
NO_ROOM = "(question and answer do not fit into its context)"
MOST_REPLY_TOKENS = 8
_GRADE = re.compile(r"(?<![\d.])(10|\d)(?![\d.]*\d)")
_LETTER = re.compile(r"(?<![A-Za-z])([ABT])(?![A-Za-z])")
_DASHES = re.compile(r"-{5,}")
_VERIFIABLE_FIELDS = {"tests": "code", "options": "choice"}
"""Field of a row -> the scorer that can verify answers by it."""


class Gold(NamedTuple):
    """One answer whose worth a person decided."""

    item: Item
    answer: str
    right: bool


class JudgeScorer:
    """A judge with the interface of `ScorerProcess`."""

    def __init__(self, spec: dict[str, Any], ask_base: Ask) -> None:
        """Take a task's `scorer` and how to ask the base model; connect to nothing yet."""
        self.errors = ScorerErrors()
        self.spec = spec
        self.agreement = "unchecked"
        """What the gold set said of this judge, for people."""
        self._ask = ask_base if spec["model"] == "self" else _ask_endpoint(spec["model"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def score(self, pairs: list[tuple[Item, str]]) -> list[Verdict]:
        """Return the verdicts in order; a reply that cannot be read is "error" and counted in `errors`."""
        asked = [pair for pair in pairs if _says_something(pair[1])]
        given = iter(self._compare(asked) if self.spec["pairwise"] else self._grade(asked))
        return [next(given) if _says_something(answer) else malformed() for _, answer in pairs]

    def note(self, pairs: list[tuple[Item, str]], verdicts: list[Verdict]) -> str | None:
        """Return what must stand beside a score of these verdicts."""
        text = f"judge, {self.agreement}"
        compared = [index for index, verdict in enumerate(verdicts) if verdict.kind in ("right", "wrong")]
        if not self.spec["pairwise"] or not compared:
            return text
        gains = [len(pairs[index][1]) - len(pairs[index][0].answer) for index in compared]
        rates = win_rates([verdicts[index].score for index in compared], gains)
        return f"{text}, win rate {100 * rates.raw:.0f} %, at equal length {100 * rates.length_controlled:.0f} %"

    def _grade(self, pairs: list[tuple[Item, str]]) -> list[Verdict]:
        replies = self._ask(
            [
                render(
                    "judge_rubric",
                    rubric=self.spec["rubric"],
                    question=_shown(item.question),
                    reference=_shown(item.answer),
                    answer=_shown(answer),
                )
                for item, answer in pairs
            ]
        )
        grades = [_GRADE.search(reply) for reply in replies]
        scores = [int(grade[0]) / 10 if grade else None for grade in grades]
        return [self._verdict(score, reply) for score, reply in zip(scores, replies, strict=True)]

    def _compare(self, pairs: list[tuple[Item, str]]) -> list[Verdict]:
        """Ask for each pair in both orders; 1 = the answer wins in both, 0 = the reference does, else 0.5."""
        prompts = []
        for item, answer in pairs:
            texts = (_shown(answer), _shown(item.answer))
            for first, second in (texts, texts[::-1]):
                question, rubric = _shown(item.question), self.spec["rubric"]
                prompts.append(render("judge_pair", rubric=rubric, question=question, first=first, second=second))
        replies = self._ask(prompts)
        verdicts = []
        for forward, backward in zip(replies[::2], replies[1::2], strict=True):
            letters = [_LETTER.search(reply) for reply in (forward, backward)]
            both = "".join(letter[0] for letter in letters if letter)
            score = {"AB": 1.0, "BA": 0.0}.get(both, 0.5) if len(both) == 2 else None
            verdicts.append(self._verdict(score, f"{forward} / {backward}"))
        return verdicts

    def _verdict(self, score: float | None, reply: str) -> Verdict:
        if score is None:
            self.errors.add(f"the judge replied {reply[:80]!r}, in which no grade can be read")
            return Verdict(0.0, "error")
        return Verdict(score, "right" if score >= self.spec["threshold"] else "wrong")


class WinRates(NamedTuple):
    """Shares of comparisons won, a tie as half a win."""

    raw: float
    length_controlled: float
    """What the raw share would be if both answers had the same length."""


def win_rates(scores: list[float], length_gains: list[int]) -> WinRates:
    """Return the win rate of answers over their references, and the same at equal length.

    scores: 1 won, 0.5 tied, 0 lost; length_gains: characters that the answer is longer. Length-controlled AlpacaEval
    (arXiv 2404.04475) without its term for the question: a logistic regression of the wins on tanh(gain / its standard
    deviation), read at gain 0. A weak ridge keeps it finite where one side wins always.
    """
    import numpy as np

    won = np.asarray(scores, dtype=float)
    gain = np.asarray(length_gains, dtype=float)
    spread = gain.std() or 1.0
    features = np.column_stack([np.ones_like(gain), np.tanh(gain / spread)])
    weights = np.zeros(2)
    for _ in range(50):  # Newton's method; it settles within ten steps
        share = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (won - share) - 1e-2 * weights
        curve = (features * (share * (1 - share))[:, None]).T @ features + 1e-2 * np.eye(2)
        weights = weights + np.linalg.solve(curve, slope)
    return WinRates(float(won.mean()), float(1 / (1 + np.exp(-weights[0]))))


def open_scorer(spec: dict[str, Any], ask_base: Ask) -> ScorerProcess | JudgeScorer:
    """Return the scorer of a task, to be used as a context manager. ask_base: how to ask the base model."""
    return JudgeScorer(spec, ask_base) if spec["name"] == "judge" else ScorerProcess(spec)


def make_judge_spec(name: str, options: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the checked spec of `judge:...`; files are relative to `base`. Raises ValueError with the cure."""
    model = name.removeprefix("judge:")
    if model != "self" and not model.startswith(("http://", "https://")):
        raise ValueError(f"scorer {name!r}: write judge:self, or judge:http://127.0.0.1:8000/v1#NAME for an endpoint")
    for option in options:
        check_name(option, JUDGE_OPTIONS, f"option of the scorer {name!r}")
    if "gold" not in options and not read_switch("judge_unchecked", options.get("judge_unchecked", False)):
        raise ValueError(
            f"scorer {name!r} has no gold set, so nothing says that it judges well: add gold=FILE with JSONL rows"
            ' {"question", "answer", "right"}, or judge_unchecked=true, which marks every figure'
        )
    pairwise = read_switch("pairwise", options.get("pairwise", False))
    threshold = _read_threshold(options.get("threshold", 0.5 if pairwise else DEFAULT_THRESHOLD))
    rubric = _read(base / options["rubric"]) if "rubric" in options else render("judge_default_rubric")
    gold = str((base / options["gold"]).resolve()) if "gold" in options else None
    if gold is not None:
        read_gold(Path(gold))
    return {
        "name": "judge",
        "model": model,
        "rubric": rubric.strip(),
        "gold": gold,
        "threshold": threshold,
        "pairwise": pairwise,
    }


def refuse_where_verifiable(scorer: dict[str, Any], items: list[Item]) -> None:
    """Raise ValueError when a judge is to score rows that a verifiable scorer can: it never decides about those."""
    fields = {field for item in items for field in _VERIFIABLE_FIELDS if field in item.metadata}
    if scorer["name"] == "judge" and fields:
        field = min(fields)
        raise ValueError(
            f'these rows have "{field}", so scorer={_VERIFIABLE_FIELDS[field]} can verify the answers; a judge'
            " decides only where nothing can"
        )


def read_gold(path: Path) -> list[Gold]:
    """Read a gold set: JSONL rows {"question", "answer", "right"} and, if there is one, "reference"."""
    rows = []
    if not path.is_file():
        raise ValueError(f"there is no gold set {path}")
    for number, row in enumerate(read_jsonl(path), 1):
        texts = [row.get(name) for name in ("question", "answer")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not isinstance(row.get("right"), bool):
            raise ValueError(f'{path} row {number} is not {{"question": text, "answer": text, "right": true or false}}')
        reference = str(row.get("reference", "(none is given)"))
        rows.append(Gold(Item(row["question"], reference, "all"), row["answer"], row["right"]))
    return rows


def ask_base_through(jobs: Any, run_dir: Path) -> Ask:
    """Return how the agent asks the base model: as a job, whose prompts and replies stay in the referee's folder."""

    def ask(prompts: list[str]) -> list[str]:
        if not prompts:
            return []
        name = f"referee/judge/{content_id(prompts)}"
        write_jsonl(run_dir / f"{name}.prompts.jsonl", prompts)
        jobs.run("tools.tasks.judge:ask_base", {"name": name})
        return list(read_jsonl(run_dir / f"{name}.replies.jsonl"))

    return ask


def ask_base(job: Job, name: str) -> Json:
    """Let the base model reply to the prompts of a file below the run folder (a job); writes the replies beside it."""
    replies = job.resident.ask_base(list(read_jsonl(job.run_dir / f"{name}.prompts.jsonl")))
    write_jsonl(job.run_dir / f"{name}.replies.jsonl", replies)
    return {"num_replies": len(replies)}


def ask_engine(engine: Any, prompts: list[str]) -> list[str]:
    """Let an engine's current model reply, greedily; NO_ROOM to a prompt that is longer than its context."""
    chats: list[list[Message]] = [build_messages(prompt, []) for prompt in prompts]
    try:
        return [samples[0].text for samples in engine.generate(chats, Sampling(MOST_REPLY_TOKENS))]
    except PromptTooLongError:
        if len(prompts) == 1:
            return [NO_ROOM]
    half = len(prompts) // 2
    return ask_engine(engine, prompts[:half]) + ask_engine(engine, prompts[half:])


def _ask_endpoint(model: str) -> Ask:
    from tools.engines.openai_engine import OpenAIEngine

    address, _, name = model.partition("#")
    engine = OpenAIEngine(address, name or None, os.environ.get(API_KEY))
    return lambda prompts: ask_engine(engine, prompts)


def _read_threshold(value: Any) -> float:
    try:
        threshold = float(value)
    except (TypeError, ValueError):
        threshold = 0.0
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={value!r} is not a number above 0 and at most 1")
    return threshold


def _says_something(answer: str) -> bool:
    return any(character.isalnum() for character in answer)


def _shown(text: str) -> str:
    """Return a text as a prompt shows it: not too long, and without the dashes that would end its place there."""
    text = _DASHES.sub("----", text)
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " [cut off]"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the rubric {path}: {error}") from error
