"""Curation and generation: what each filter rejects and why, on a small run with the real embedder."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from agent.config import DEFAULT_TASK
from agent.referee import Referee
from agent.sealing import seal_splits
from memory.lessons import recall, remember
from memory.records import content_id, read_jsonl
from memory.store import RunStore
from memory.vectors import VectorMemory, calibrated_threshold, carriers
from tools.contract import Json, Judge, ToolContext, ToolError
from tools.engines.models import MODELS_DIR, resolve_embedder
from tools.jobs.job import NO_USAGE, Job, Usage, load_function
from tools.jobs.worker import Resident
from tools.registry import load_tools
from tools.select.curate_data import LEAST_FIRST_EXAMPLES, open_pool, training_row, unused_right
from tools.select.selector import choose as choose_places
from tools.tasks.base import Item, Splits, SplitSizes, Task, normalise
from tools.tasks.scoring import ScorerProcess

TEMPLATE = "State the final answer to the following arithmetic problem: {} + {} ="


class JobsHere:
    """Runs jobs in this process."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Usage]:
        return json.loads(json.dumps(load_function(function)(self.job, **args))), NO_USAGE


@pytest.fixture(scope="module")
def embedder() -> Path:
    return resolve_embedder(MODELS_DIR)


@pytest.fixture
def job(tiny_model: Path, embedder: Path, tmp_path: Path) -> Job:
    """A job in a new run of the default task."""
    run_dir = tmp_path / "runs" / "one"
    (run_dir / "jobs" / "here").mkdir(parents=True)
    settings = {
        "model_dir": str(tiny_model), "embedder_dir": str(embedder), "engine": "transformers", "dtype": "float32",
        "task": DEFAULT_TASK, "system_prompt": "",
    }  # fmt: skip
    (run_dir / "worker.json").write_text(json.dumps(settings))
    (run_dir / "referee").mkdir()
    (run_dir / "referee" / "evaluation_ids.json").write_text("[]")
    return Job(run_dir / "jobs" / "here", Resident(run_dir))


def sample(prompt: str, completion: str = "5", pass_rate: float = 0.5, right: bool = True, number: int = 0) -> Json:
    return {
        "example_id": content_id({"prompt": prompt, "completion": completion}),
        "item_id": content_id(normalise(prompt)),
        "prompt": prompt,
        "completion": completion,
        "right": right,
        "pass_rate": pass_rate,
        "difficulty": "all",
        "model": "base",
        "generation": "g",
        "sample": number,
    }


def put_samples(job: Job, *rows: Json, name: str = "s1") -> None:
    RunStore(job.run_dir).put("data", name, {"kind": "samples"}, {"right.jsonl": [row for row in rows if row["right"]]})


def sums(count: int, seed: int = 0) -> list[Json]:
    """Samples of different sums, all in one template."""
    pairs = random.Random(seed).sample([(a, b) for a in range(10, 60) for b in range(10, 60)], count)
    return [
        sample(TEMPLATE.format(a, b), str(a + b), pass_rate=0.1 + 0.001 * place) for place, (a, b) in enumerate(pairs)
    ]


def choose(
    job: Job, size: int = 256, keep: str = "not_too_easy", choice: str = "diverse", seed: int = 0
) -> tuple[list[Json], list[Json]]:
    context = ToolContext(RunStore(job.run_dir), JobsHere(job), cast(Judge, None), seed, DEFAULT_TASK)
    load_tools()
    pool, _ = open_pool(context, size, keep)
    train = [training_row(pool.rows[place]) for place in choose_places(pool, choice, size)]
    return train, context.store.rows("data", pool.dataset, "rejected.jsonl")


def referee_of(job: Job, *evaluation_questions: str) -> Referee:
    """The referee of a run whose evaluation splits hold these questions."""
    items = [Item(question, "5", "all") for question in evaluation_questions]
    seal_splits(job.run_dir, Splits(items[::3], items[1::3], items[2::3]), seed=0)
    return Referee(
        RunStore(job.run_dir), JobsHere(job), job.resident.task, cast(ScorerProcess, None), SplitSizes(20, 20, 20)
    )


def test_only_right_samples_that_no_dataset_holds_are_used(job: Job) -> None:
    used, wrong, new = sums(3)
    put_samples(job, used, wrong | {"right": False}, new, new | {"sample": 1})
    RunStore(job.run_dir).put("data", "d1", {"kind": "train"}, {"train.jsonl": [used | {"id": used["example_id"]}]})
    assert unused_right(RunStore(job.run_dir)) == [new, new | {"sample": 1}]


def test_numbers_make_questions_of_one_template_different(job: Job) -> None:
    rows = sums(40)
    put_samples(job, *rows)
    train, rejected = choose(job)
    assert sorted(row["id"] for row in train) == sorted(row["example_id"] for row in rows)
    assert rejected == []


def test_a_training_row_says_where_it_came_from(job: Job) -> None:
    (row,) = sums(1)
    put_samples(job, row)
    (made,), _ = choose(job)
    assert made == {
        "id": row["example_id"],
        "parents": [content_id({"generation": "g", "item_id": row["item_id"], "sample": 0})],
    } | {key: row[key] for key in (
        "example_id", "prompt", "completion", "item_id", "generation", "model", "pass_rate", "difficulty")}  # fmt: skip


def test_an_item_gives_one_example(job: Job) -> None:
    rows = [*sums(4), sample(TEMPLATE.format(3, 4), "7"), sample(TEMPLATE.format(3, 4), "7.0")]
    put_samples(job, *rows)
    train, (cut,) = choose(job)
    assert len(train) == 5
    assert (cut["reason"], cut["similarity"]) == ("item_cap", 1.0)
    kept = next(row for row in train if row["item_id"] == cut["item_id"])
    assert cut["neighbour"] == kept["id"] != cut["id"]


def test_an_exact_duplicate_is_a_rejected_row(job: Job) -> None:
    rows = sums(4)
    put_samples(job, *rows, rows[0] | {"sample": 1})
    _, rejected = choose(job)
    assert [row["reason"] for row in rejected] == ["exact_duplicate"]


def test_items_that_too_many_samples_solved_are_left_out(job: Job) -> None:
    hard, edge, easy = (row | {"pass_rate": rate} for row, rate in zip(sums(3), (0.1, 0.9, 0.95), strict=True))
    put_samples(job, hard, edge, easy)
    train, (cut,) = choose(job, keep="not_too_easy")
    assert {row["id"] for row in train} == {hard["example_id"], edge["example_id"]}
    assert (cut["id"], cut["reason"], cut["neighbour"], cut["similarity"]) == (
        easy["example_id"],
        "too_easy",
        None,
        None,
    )
    assert [row["id"] for row in choose(job, keep="hard")[0]] == [hard["example_id"]]


def test_a_reworded_question_is_a_duplicate_and_another_number_is_not(job: Job) -> None:
    first = sample(TEMPLATE.format(12, 31), "43", pass_rate=0.1)
    reworded = sample("Please answer: " + TEMPLATE.format(12, 31).lower(), "43", pass_rate=0.3)
    other_number = sample(TEMPLATE.format(12, 32), "44", pass_rate=0.2)
    other_order = sample(TEMPLATE.format(31, 12), "43", pass_rate=0.2)
    other_subject = sample("A farmer has 12 + 31 sheep on the hill.", "43", pass_rate=0.4)
    put_samples(job, reworded, other_number, first, other_order, other_subject)
    said = sample("What is the final answer to this arithmetic problem? 12 + 31 =", "43", pass_rate=0.5)
    put_samples(job, said, name="s2")
    train, rejected = choose(job)
    assert {(cut["id"], cut["reason"], cut["neighbour"]) for cut in rejected} == {
        (reworded["example_id"], "near_duplicate", first["example_id"]),
        (said["example_id"], "semantic_duplicate", first["example_id"]),
    }
    assert all(0.5 <= cut["similarity"] <= 1 for cut in rejected)
    kept = {row["id"] for row in train}
    assert kept == {row["example_id"] for row in (first, other_number, other_order, other_subject)}


def test_a_duplicate_of_an_earlier_dataset_is_rejected(job: Job) -> None:
    first = sample(TEMPLATE.format(12, 31), "43")
    put_samples(job, first, *sums(3))
    train, _ = choose(job)
    RunStore(job.run_dir).put("data", "d1", {"kind": "train"}, {"train.jsonl": train})
    reworded = sample("Please answer: " + TEMPLATE.format(12, 31).lower(), "43")
    put_samples(job, reworded, name="s2")
    train, (cut,) = choose(job)
    assert train == []
    assert (cut["id"], cut["neighbour"], cut["reason"]) == (
        reworded["example_id"], first["example_id"], "near_duplicate"
    )  # fmt: skip


def test_a_choice_that_was_killed_and_repeated_is_the_same(job: Job) -> None:
    reworded = sample("Please answer: " + TEMPLATE.format(12, 31).lower(), "43", pass_rate=0.02)
    put_samples(job, *sums(50), sample(TEMPLATE.format(12, 31), "43", pass_rate=0.01), reworded)
    first = choose(job, size=20)
    assert choose(job, size=20) == first
    assert len(first[1]) == 1


def test_a_repeated_choice_still_finds_the_duplicate_of_an_earlier_dataset(job: Job) -> None:
    first = sample(TEMPLATE.format(12, 31), "43")
    put_samples(job, first)
    RunStore(job.run_dir).put("data", "d1", {"kind": "train"}, {"train.jsonl": choose(job)[0]})
    pairs = [(12, 31), *((12, other) for other in range(32, 52))]
    put_samples(job, *(sample("Please answer: " + TEMPLATE.format(*pair).lower()) for pair in pairs), name="s2")
    train, rejected = choose(job)
    assert [row["neighbour"] for row in rejected] == [first["example_id"]]
    assert choose(job) == (train, rejected), "the batch's own rows, written by a killed attempt, hide it"


@pytest.mark.parametrize("choice", ["diverse", "random"])
def test_the_size_is_kept(job: Job, choice: str) -> None:
    put_samples(job, *sums(60))
    train, rejected = choose(job, size=16, choice=choice)
    assert len({row["id"] for row in train}) == len(train) == 16
    assert rejected == []  # the others stay unused
    hardest_half = sorted(row["pass_rate"] for row in sums(60))[:32]
    assert max(row["pass_rate"] for row in train) <= hardest_half[-1]


def test_the_diverse_choice_takes_one_of_each_kind(job: Job) -> None:
    others = [sample(text) for text in ("Name a river in Peru.", "Who painted the ceiling?", "Boil 3 eggs for lunch.")]
    put_samples(job, *sums(40), *others)
    train, _ = choose(job, size=25)
    assert {row["example_id"] for row in others} <= {row["id"] for row in train}


def test_questions_that_differ_beyond_the_embedders_reach_are_chosen_once(job: Job) -> None:
    long = "so it went on and on " * 100  # the embedder reads 256 word pieces
    put_samples(job, *(sample(f"{long}{number}") for number in range(20)))
    train, _ = choose(job, size=10)
    assert len({row["id"] for row in train}) == len(train) == 10


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What is 12 + 7?", ("12", "7", "+")),
        ("Is -3.5 x 1,000 less than 10%?", ("-3.5", "1,000", "10", "-", "%")),
        ("Then Ann met Bob, and Carl left.", ("Ann", "Bob", "Carl")),
        ("nothing at all", ()),
    ],
)
def test_what_carries_a_meaning(text: str, found: tuple[str, ...]) -> None:
    assert carriers(text) == found


def test_the_order_of_numbers_carries_meaning() -> None:
    assert carriers("12 - 7") != carriers("7 - 12") != carriers("7 + 12")
    assert carriers("what is 12 - 7") == carriers("Compute 12 - 7")


@pytest.mark.parametrize(
    ("duplicates", "distinct", "threshold"),
    [
        ([0.9, 0.95], [0.5, 0.7], 0.8),
        ([0.9, 0.95], [0.5, 0.99], 0.9),  # carriers separate the rest
        ([0.9], [0.9], 0.9),
        ([], [], 0.475),
    ],
)
def test_the_threshold_lies_between_rewordings_and_others(
    duplicates: list[float], distinct: list[float], threshold: float
) -> None:
    assert calibrated_threshold(duplicates, distinct) == pytest.approx(threshold)


def test_overlaps_with_evaluation_items_are_removed(job: Job) -> None:
    rows: list[Json] = [{"prompt": text} for text in ("What  is 1 + 1?", "what is 1 + 2?", "WHAT IS 1 + 1?\n")]
    kept, overlapping, num_same_template = referee_of(job, "What is 1 + 1?", "What is 5?").remove_overlaps(rows)
    assert (kept, overlapping) == ([rows[1]], [row | {"reason": "exact"} for row in (rows[0], rows[2])])
    assert num_same_template == 1


def curate(job: Job, referee: Judge, size: int = 256) -> Json:
    context = ToolContext(RunStore(job.run_dir), JobsHere(job), referee, 0, DEFAULT_TASK)
    tool = load_tools()["curate_data"]
    assert tool.legal(context) is not None
    return tool(context, size=size, keep="not_too_easy", choice="diverse")


def test_the_tool_freezes_a_dataset_and_keeps_what_it_rejects(job: Job) -> None:
    rows = sums(LEAST_FIRST_EXAMPLES + 1)
    cheat = rows[7]
    reworded = sample("Please tell me the sum of 71 and 72.", "143")
    put_samples(job, *rows, reworded, sample(rows[0]["prompt"], "other"))
    result = curate(job, referee_of(job, cheat["prompt"], TEMPLATE.format(71, 72)))
    assert result["num_examples"] == LEAST_FIRST_EXAMPLES
    assert result["rejected"] == {"evaluation_exact": 1, "evaluation_paraphrase": 1, "item_cap": 1}
    store = RunStore(job.run_dir)
    manifest = store.get("data", result["dataset"]) or {}
    train, rejected = (store.rows("data", result["dataset"], f"{name}.jsonl") for name in ("train", "rejected"))
    assert manifest["example_ids"] == [row["id"] for row in train]
    assert manifest["num_same_template"] == LEAST_FIRST_EXAMPLES, "a generated task: other numbers are the task itself"
    assert not {cheat["example_id"], reworded["example_id"]} & set(manifest["example_ids"])
    assert {row["reason"]: row["similarity"] for row in rejected if row["reason"] != "item_cap"} == {
        "evaluation_exact": None,
        "evaluation_paraphrase": None,
    }
    assert [dataset["id"] for dataset in store.untrained_datasets()] == [result["dataset"]]
    left = {row["example_id"] for row in unused_right(store)}
    assert left == {sample(rows[0]["prompt"], "other")["example_id"]}, "an overlap is ruled out for good"


def test_curation_waits_for_enough_items(job: Job) -> None:
    rows = sums(LEAST_FIRST_EXAMPLES)
    context = ToolContext(RunStore(job.run_dir), JobsHere(job), cast(Judge, None), 0, DEFAULT_TASK)
    tool = load_tools()["curate_data"]
    put_samples(job, *rows[1:], rows[1] | {"completion": "x", "example_id": "x"})  # two answers of one item
    assert tool.legal(context) is None
    put_samples(job, rows[0], name="s2")
    assert tool.legal(context) is not None
    RunStore(job.run_dir).put("data", "d1", {"kind": "train"}, {"train.jsonl": []})
    assert tool.legal(context) is None


def test_too_few_examples_are_told_and_nothing_is_frozen(job: Job) -> None:
    rows = sums(LEAST_FIRST_EXAMPLES)
    put_samples(job, *rows)
    with pytest.raises(ToolError, match=r"only 9 examples pass the filters \(at least \d+\); generate more"):
        curate(job, referee_of(job, *(row["prompt"] for row in rows[9:])))
    assert RunStore(job.run_dir).untrained_datasets() == []


def test_a_file_of_variations_is_told_from_a_fixed_benchmark(job: Job) -> None:
    put_samples(job, *sums(LEAST_FIRST_EXAMPLES))
    referee = referee_of(job, TEMPLATE.format(71, 72))
    referee.task = cast(Task, SimpleNamespace(generated=False))
    with pytest.raises(ToolError, match=rf"only 0 .*{LEAST_FIRST_EXAMPLES} were removed .*generated=true"):
        curate(job, referee)


def test_more_can_be_generated_when_too_few_pass_the_filters(job: Job) -> None:
    texts = ["", "Please answer: ", "Please say: ", "So: ", "Answer: ", "Say: ", "Tell me: ", "Hm: "]
    questions = [text + TEMPLATE.format(a, 7) for text in texts for a in range(10, 10 + LEAST_FIRST_EXAMPLES // 8)]
    put_samples(job, *map(sample, questions))
    referee = referee_of(job)
    with pytest.raises(ToolError, match="generate more"):
        curate(job, referee)
    context = ToolContext(RunStore(job.run_dir), JobsHere(job), referee, 0, DEFAULT_TASK)
    assert load_tools()["generate_data"].legal(context) is not None


def test_vectors_are_found_again_by_another_process_memory(embedder: Path, tmp_path: Path) -> None:
    memory = VectorMemory(tmp_path, embedder)
    texts = ["a cat on the roof", "the theory of numbers", "a kitten on top of the house"]
    vectors = memory.embed(texts)
    assert vectors.shape == (3, 384) and np.allclose((vectors**2).sum(1), 1, atol=1e-5)
    assert memory.neighbours("new", vectors, 5) == [[], [], []]
    memory.upsert("new", ["cat", "numbers"], vectors[:2], texts[:2], [{"n": 1}, {"n": 2}])
    memory.upsert("new", ["cat"], vectors[:1], texts[:1], [{"n": 3}])
    (found,) = VectorMemory(tmp_path, embedder).neighbours("new", vectors[2:], 5)
    assert [(name, text, data["n"]) for name, _, text, data in found] == [
        ("cat", texts[0], 3),
        ("numbers", texts[1], 2),
    ]
    assert found[0][1] == pytest.approx(float(vectors[2] @ vectors[0]), abs=1e-5)
    assert found[0][1] > 0.5 > found[1][1]


def test_lessons_of_other_runs_are_recalled_the_same_task_first(job: Job, tmp_path: Path) -> None:
    lessons = [
        {"run": "zero", "task": "poems", "text": "On poems: short lines helped."},
        {"run": "zero", "task": "sums", "text": "On sums: more samples helped."},
        {"run": "one", "task": "sums", "text": "On sums: this is my own."},
    ]
    for lesson in [*lessons, lessons[0]]:
        remember(job, lesson)
    assert list(read_jsonl(tmp_path / "runs" / "lessons.jsonl")) == lessons
    recalled = recall(job, "sums", 3)
    assert [row["text"] for row in recalled] == [lessons[1]["text"], lessons[0]["text"]]
    assert len(recall(job, "sums", 1)) == 1
    with (tmp_path / "runs" / "lessons.jsonl").open("a") as shared:
        shared.write("damaged\n")
    assert len(recall(job, "sums", 3)) == 2, "a damaged line stops no later run"


def test_no_lessons_are_no_lessons(job: Job) -> None:
    assert recall(job, "sums", 3) == []


def test_an_item_is_its_normalised_question() -> None:
    ids = [Item(question, "1", "all").id for question in ("What is  IT?\n", "what is it?", "what is that?")]
    assert ids[0] == ids[1] != ids[2]
