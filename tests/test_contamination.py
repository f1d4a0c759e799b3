"""Contamination: what counts as an evaluation question in other clothes, what does not, and what comes back of it."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from agent.config import DEFAULT_TASK
from agent.referee import Door, Referee
from agent.sealing import seal_splits
from memory.records import read_jsonl
from memory.store import RunStore
from tests.test_curation import JobsHere
from tools.contract import Jobs
from tools.engines.models import MODELS_DIR, resolve_embedder
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.select.contamination import find_overlaps
from tools.select.wording import names_in, template, tokens
from tools.tasks import load_task
from tools.tasks.base import Item, Splits, SplitSizes
from tools.tasks.scoring import ScorerProcess

SUM = "State the final answer to the following arithmetic problem: {} ="
FILLER = [
    "Which river flows through the old town of Prague?",
    "A farmer sells 30 eggs in the morning and 12 in the evening. How many eggs does he sell?",
    "Why do cats purr when they are stroked?",
    "What is the boiling point of water at sea level?",
]


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """Shared by all tests for its embedder; each writes its own evaluation questions."""
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    (run_dir / "jobs" / "here").mkdir(parents=True)
    settings = {"embedder_dir": str(resolve_embedder(MODELS_DIR)), "engine": "transformers", "task": DEFAULT_TASK}
    (run_dir / "worker.json").write_text(json.dumps(settings))
    return Resident(run_dir)


def hold(resident: Resident, *questions: str) -> Job:
    """Return a job in a run whose three splits hold these questions in turn."""
    items = [Item(question, "SECRET", "all") for question in questions]
    seal_splits(resident.run_dir, Splits(items[::3], items[1::3], items[2::3]), seed=0)
    return Job(resident.run_dir / "jobs" / "here", resident)


def overlaps(job: Job, questions: list[str], generated: bool) -> dict[str, Any]:
    """Return what the worker finds when the referee hands it the questions that this run holds out."""
    splits = [read_jsonl(job.run_dir / "referee" / f"{split}.jsonl") for split in SplitSizes._fields]
    return find_overlaps(job, questions, [row["question"] for split in splits for row in split], generated)


def reason(resident: Resident, held: str, question: str, generated: bool) -> str | None:
    """Return why a question overlaps with one evaluation question among others."""
    job = hold(resident, *FILLER, held)
    return cast("str | None", overlaps(job, [question], generated)["reasons"][0])


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize(
    ("held", "question", "found"),
    [
        ("What is 46 + 38?", "  what IS\n46 + 38 ", "exact"),
        ("What is 46 + 38?", "What is forty-six plus thirty-eight?", "exact"),
        (SUM.format("46 + 38"), "46 + 38 = State the final answer to the following arithmetic problem:", "reordered"),
        (
            "Ann has a red hat. Bob has a blue coat. Who wears something blue?",
            "Who wears something blue? Bob has a blue coat. Ann has a red hat.",
            "reordered",
        ),
        (
            "If the shop is closed today, where can we buy bread?",
            "Where can we buy bread if the shop is closed today?",
            "reordered",
        ),
        (
            "How many legs are there if you have 3 cats, 12 sea slugs, 4 ants?",
            "How many legs are there if you have 4 ants, 12 sea slugs, 3 cats?",
            "reordered",
        ),
        (
            "Name the longest wall that was ever built by people.",
            "Read this with care and think. Name the longest wall that was ever built by people. Then explain.",
            "ngram",
        ),
        (SUM.format("46 + 38"), "What is 46 + 38?", "paraphrase"),
        (SUM.format("46 + 38"), "Please tell me the sum of 46 and 38.", "paraphrase"),
        (
            "Tom has 15 apples and gives 6 of them to Ann. How many apples are left to Tom?",
            "Having 15 apples, Tom hands 6 to Ann. How many apples does Tom keep?",
            "paraphrase",
        ),
        ("Why is the sky blue during the day?", "What makes the sky blue in the daytime?", "paraphrase"),
    ],
)
def test_copies_in_other_clothes_are_found(
    resident: Resident, held: str, question: str, found: str, generated: bool
) -> None:
    assert reason(resident, held, question, generated) == found


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize(
    ("held", "question"),
    [
        ("Why is the sky blue during the day?", "Why is the grass green in the spring?"),
        ("What is the capital of Portugal?", "What is the capital of Norway?"),
        ("Which river flows through Vienna?", "Which mountain can be seen from Vienna?"),
        ("How do fish breathe under water?", "What do fish eat under water?"),
        ("What is 46 + 38?", "Why do stars twinkle?"),
    ],
)
def test_other_questions_are_kept(resident: Resident, held: str, question: str, generated: bool) -> None:
    assert reason(resident, held, question, generated) is None


@pytest.mark.parametrize(
    ("held", "question"),
    [
        (SUM.format("46 + 38"), SUM.format("46 + 39")),
        (SUM.format("46 - 38"), SUM.format("38 - 46")),
        (SUM.format("46 + 38"), SUM.format("46 - 38")),
        (SUM.format("46 + 38"), SUM.format("38 + 46")),  # the same answer, and yet something else to learn
        (SUM.format("4 + 8"), SUM.format("4 + 8 + 15")),
        ("Subtract 5 from 12.", "Subtract 12 from 5."),
        (
            "John is married to Isabella. Mia is their child. What is John to Isabella?",
            "John is married to Isabella. Mia is their child. What is Isabella to John?",
        ),
        (
            "Tell me who is taller if Tom is taller than Ann.",
            "Tell me who is taller if Ann is taller than Tom.",
        ),
        (
            "How many legs are there if you have 3 cats, 12 ants?",
            "How many legs are there if you have 12 cats, 3 ants?",
        ),
        (
            'How often is the letter "a" in the text: "one big banana"?',
            'How often is the letter "n" in the text: "one big banana"?',
        ),
        ("Put these in order: 67, 39, 16", "Put these in order: 16, 67, 39"),
    ],
)
def test_a_generated_question_is_another_one_with_other_values_or_another_order(
    resident: Resident, held: str, question: str
) -> None:
    assert reason(resident, held, question, generated=True) is None


def test_a_renumbered_question_is_the_task_where_it_is_generated_and_a_copy_where_it_is_fixed(
    resident: Resident,
) -> None:
    held = "Tom has 15 apples and gives 6 of them to Ann. How many apples are left to Tom?"
    renumbered = held.replace("15", "17")
    dressed = renumbered.replace("Tom", "Leo").replace("Ann", "Zoe")
    job = hold(resident, held, *FILLER, "Then Leo met Zoe at the sea, and who was older?")
    other = "Where do Tom and Ann meet?"
    found = overlaps(job, [renumbered, dressed, other], generated=True)
    assert found == {"reasons": [None, None, None], "num_same_template": 2}
    found = overlaps(job, [renumbered, dressed, other], generated=False)
    assert found == {"reasons": ["template", "template", None], "num_same_template": 0}


def test_a_copy_in_a_longer_text_is_found_among_questions_of_its_form(resident: Resident) -> None:
    held = "A juggler has 96 balls. Of these 25 are golf balls, of which {} are white. How many are white?"
    job = hold(resident, *(held.format(number) for number in range(2, 22)), *FILLER)
    copy = f"My teacher wants to know this: {held.format(7)} What should I say?"
    found = overlaps(job, [copy, copy.replace("7 are", "22 are")], generated=True)
    assert found["reasons"] == ["ngram", None]


def test_a_fixed_file_of_one_form_is_not_taken_for_copies_of_itself(resident: Resident) -> None:
    words = [f"{first}{second}" for first in ("ba", "ko", "mi", "tu", "re") for second in ("lin", "sor", "pek", "dax")]
    job = hold(resident, *(f"Say this word again: {word}" for word in words))
    others = [f"Say this word again: {word[::-1]}" for word in words]
    reasons = overlaps(job, others, generated=False)["reasons"]
    assert reasons.count(None) >= 16


def test_without_numbers_a_name_is_what_is_asked_for(resident: Resident) -> None:
    assert template(tokens("Then who is Ann?"), frozenset({"ann"})) is None
    assert template(tokens("Was Ann born in 1900?"), frozenset({"ann"})) == "was ann born in #"
    assert template(tokens("Had Ann 3 or 4?"), frozenset({"ann"})) == "had @ # or #"


def test_all_three_splits_are_searched(resident: Resident) -> None:
    job = hold(resident, "What is 11 + 12?", "What is 13 + 14?", "What is 15 + 16?")
    questions = ["Compute 11 + 12.", "Compute 13 + 14.", "Compute 15 + 16.", "Compute 17 + 18."]
    found = overlaps(job, questions, generated=True)
    assert found["reasons"] == ["paraphrase", "paraphrase", "paraphrase", None]


def test_nothing_of_an_evaluation_item_comes_back(resident: Resident) -> None:
    job = hold(resident, SUM.format("46 + 38"), "Which river flows through the old town of Prague?", FILLER[1])
    task = load_task(DEFAULT_TASK)
    referee = Referee(
        RunStore(job.run_dir), cast(Jobs, JobsHere(job)), task, cast(ScorerProcess, None), SplitSizes(1, 1, 1)
    )
    rows = [
        {"prompt": "What is 46 + 38?", "id": "a"},
        {"prompt": "Through the old town of Prague, which river flows?", "id": "b"},
        {"prompt": SUM.format("46 + 39"), "id": "c"},
        {"prompt": "Well?", "completion": "Which river flows through the old town of Prague?", "id": "d"},
        {"prompt": SUM.format("46 + 40"), "completion": "86", "id": "e"},
    ]
    kept, removed, num_same_template = Door(referee).remove_overlaps(rows)
    assert kept == [rows[2], rows[4]]
    reasons = {row["id"]: row["reason"] for row in removed}
    assert reasons == {"a": "paraphrase", "b": "reordered", "d": "ngram"}
    assert num_same_template == 2


def test_symbols_are_not_lost() -> None:
    assert tokens("#.\n.#") != tokens(".#\n#.")
    assert tokens("f(x)[0]") != tokens("f[x](0)")
    assert tokens("(3 + 4) * 2 =") != tokens("3 + 4 * 2 =")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Compute 46 + 38 = ?", ["compute", "46+38"]),
        ("one hundred and five minus twenty-one", ["105-21"]),
        ("Which one is 5?", ["which", "one_", "is", "5"]),
        ("the difference between 9 and -4", ["9--4"]),
        ("subtract 5 from 12", ["12-5"]),
        ("solve 3*x + 2 = 14 for x", ["solve", "3*x+2=14", "for", "x"]),
        ("John's 1,000 well-known cats: 6, 7", ["john", "1000", "well", "known", "cats", "6", "7"]),
        ("10 % of 3 − 2", ["10", "percent", "of", "3-2"]),  # noqa: RUF001 - a typographic minus
        ("47 - 11 = I do not know a 5", ["47-11", "i_", "do", "not", "know", "a_", "5"]),
        ("", []),
    ],
)
def test_questions_are_read_in_one_spelling(text: str, read: list[str]) -> None:
    assert tokens(text) == read


def test_names_are_capitalised_inside_sentences() -> None:
    texts = ["Then Ann met Bob in May. What did Bob say?", "Why may I go to Rome, and may I stay?"]
    assert names_in(texts) == {"ann", "bob", "rome"}


def test_the_task_says_whether_its_questions_are_generated(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"What is {i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(9))
    )
    assert load_task(DEFAULT_TASK).generated
    assert not load_task(f"{path}?scorer=exact").generated
    task = load_task(f"{path}?scorer=exact&generated=true")
    assert task.generated
    assert load_task(task.spec) == task
    (tmp_path / "my.toml").write_text('items = "my.jsonl"\nscorer = "exact"\ngenerated = true\n')
    assert load_task(str(tmp_path / "my.toml")).generated
    with pytest.raises(ValueError, match="'yes' is neither true nor false"):
        load_task(f"{path}?scorer=exact&generated=yes")
