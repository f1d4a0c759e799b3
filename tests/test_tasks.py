"""Tasks: what `load_task` gives for the texts and files that users write, and what it says of wrong ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.tasks import load_task
from tools.tasks.base import Item, SplitSizes, answer_token_limit, spread_by_difficulty
from tools.tasks.jsonl_task import JsonlTask
from tools.tasks.scorers import make_scorer

CHAIN_SUM = "reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=2"
SIZES = SplitSizes(20, 30, 40)
SHORT_ANSWERS = (
    "chain_sum", "base_conversion", "gcd", "lcm", "letter_counting", "spell_backward",
    "fraction_simplification", "products", "complex_arithmetic", "number_format", "calendar_arithmetic",
    "prime_factorization", "simple_equations", "leg_counting", "power_function", "gsm_symbolic",
    "list_functions", "rearc", "pool_matrix",
)  # fmt: skip

WriteRows = Callable[..., Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    def write(*rows: Any, name: str = "my.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"{index} + 1 =", "answer": str(index + 1)} for index in range(count)]


def ids(items: list[Item]) -> list[str]:
    return [item.id for item in items]


def test_importing_tasks_loads_nothing_heavy() -> None:
    code = (
        "import sys, tools.tasks, tools.tasks.scoring; print({'torch', 'numpy', 'reasoning_gym'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("chain_sum", "did you mean 'reasoning_gym:chain_sum'"),
        ("data.csv", "unknown task 'data.csv'; a task is reasoning_gym:<name>"),
        ("reasoning_gym:", "names no dataset"),
        ("reasoning_gym:chain_sun", "did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum?max_term=3", "did you mean 'max_terms'"),
        ("reasoning_gym:chain_sum?max_terms", "not of the form key=value"),
        ("reasoning_gym:chain_sum?max_terms=2&max_terms=3", "given twice"),
        ("reasoning_gym:chain_sum?max_terms=two", "max_terms='two' is not a valid whole number"),
        ("reasoning_gym:chain_sum?max_terms=1", "max_terms must be >= min_terms"),
        ("reasoning_gym:chain_sum?allow_negation=maybe", "is not one of true, false"),
        ("reasoning_gym:chain_sum?seed=3", "set by the run"),
        ("reasoning_gym:calendar_arithmetic?tasks=count_days", "is not a JSON list"),
        ("reasoning_gym:graph_color", "no reference answer"),
        ("reasoning_gym:composite", "Must specify at least one dataset"),
    ],
)
def test_wrong_specs_are_explained(spec: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_task(spec)
    assert said in str(caught.value)


@pytest.mark.skipif(
    not sys.flags.hash_randomization, reason="PYTHONHASHSEED=0 is set, which makes these datasets usable"
)
def test_datasets_that_change_with_the_hash_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="PYTHONHASHSEED=0"):
        load_task("reasoning_gym:ransom_note")


def test_equal_tasks_have_equal_specs() -> None:
    same = "reasoning_gym:chain_sum?max_digits=2&max_terms=2&allow_negation=false"
    assert load_task(CHAIN_SUM).spec == load_task(same).spec == "reasoning_gym:chain_sum?max_digits=2&max_terms=2"
    listed = load_task('reasoning_gym:calendar_arithmetic?tasks=["count_days","is_leap_year"]')
    assert load_task(listed.spec).spec == listed.spec
    assert load_task(listed.spec).scorer == listed.scorer


def test_reasoning_gym_splits_are_disjoint_deterministic_and_without_seeds() -> None:
    task = load_task(CHAIN_SUM)
    splits = task.splits(SIZES, seed=1)
    assert tuple(map(len, splits)) == SIZES
    held_out = [item.id for split in splits for item in split]
    seeds = ids(task.seed_examples())
    assert len(set(held_out)) == sum(SIZES)
    assert len(set(seeds)) == 6
    assert not set(seeds) & set(held_out)
    assert load_task(CHAIN_SUM).splits(SIZES, seed=1) == splits
    assert task.splits(SIZES, seed=2) != splits
    assert {item.difficulty for item in splits.gate} == {"1 digit", "2 digits"}


def test_reasoning_gym_seeds_stay_out_even_when_they_are_drawn() -> None:
    task = load_task("reasoning_gym:chain_sum?max_terms=2&max_digits=1")  # 200 distinct questions
    seeds = set(ids(task.seed_examples()))
    held_out = {item.id for split in task.splits(SplitSizes(20, 20, 60), seed=0) for item in split}
    assert not seeds & held_out
    assert not seeds & set(ids(task.stream(0, 1000, seed=0)))


def test_evaluation_leaves_something_of_a_rare_kind_to_training() -> None:
    task = load_task("reasoning_gym:chain_sum?max_terms=2&max_digits=2")  # 200 distinct questions have one digit
    held_out = {item.id for split in task.splits(SplitSizes(128, 600, 400), seed=0) for item in split}
    left = {item.id for item in task.stream(0, 4000, seed=0) if item.difficulty == "1 digit"} - held_out
    assert 10 <= len(left) <= 60


def test_reasoning_gym_stream_gives_each_index_the_same_item() -> None:
    task = load_task(CHAIN_SUM)
    first = task.stream(0, 250, seed=5)
    assert load_task(CHAIN_SUM).stream(230, 20, seed=5) == first[230:]
    assert task.stream(10**9, 1, seed=5) == load_task(CHAIN_SUM).stream(10**9, 1, seed=5)
    assert task.stream(0, 50, seed=6) != first[:50]


def test_a_generator_with_too_few_items_is_explained() -> None:
    task = load_task("reasoning_gym:chain_sum?max_terms=2&max_digits=1")
    with pytest.raises(
        ValueError, match=r"only 1\d\d distinct items for evaluation .* and 300 are needed .*--search-items"
    ):
        task.splits(SplitSizes(100, 100, 100), seed=0)


@pytest.mark.parametrize("dataset", SHORT_ANSWERS)
def test_reasoning_gym_scores_items_that_went_through_json(dataset: str) -> None:
    task = load_task(f"reasoning_gym:{dataset}")
    score = make_scorer(json.loads(json.dumps(task.scorer)))
    for item in task.stream(0, 4, seed=3):
        back = Item.from_json(json.loads(json.dumps(item.to_json())))
        assert back == item
        assert score(back, back.answer).kind == "right"
        assert not score(back, "17 \nThis is 2").right


def test_list_functions_is_repeatable_although_it_draws_from_the_global_random() -> None:
    spec = "reasoning_gym:list_functions"
    assert load_task(spec).stream(0, 40, seed=0) == load_task(spec).stream(0, 40, seed=0)


def test_difficulty_labels_come_from_the_item() -> None:
    assert load_task("reasoning_gym:syllogism").stream(0, 1, 0)[0].difficulty == "all"
    labels = {item.difficulty for item in load_task("reasoning_gym:chain_sum").stream(0, 200, 0)}
    assert {"2 terms, 1 digit", "6 terms, 4 digits"} <= labels
    assert len({item.difficulty for item in load_task("reasoning_gym:count_bits").stream(0, 50, 0)}) == 4


def test_token_limit_follows_the_answers() -> None:
    assert load_task(CHAIN_SUM).max_new_tokens == 6
    assert load_task("reasoning_gym:chain_sum?min_digits=9&max_digits=9").max_new_tokens == 14
    assert answer_token_limit(["x" * 1000]) == 512


def test_spread_takes_each_label_in_turn() -> None:
    items = [Item(str(index), "a", label) for index, label in enumerate("aaabbc")]
    assert [item.difficulty for item in spread_by_difficulty(items, 4)] == list("abca")
    assert [item.difficulty for item in spread_by_difficulty(items, 2)] == list("ab")
    assert spread_by_difficulty([], 3) == []


def test_jsonl_task_splits_and_streams(write_rows: WriteRows) -> None:
    marked = [{"question": f"seed {index}?", "answer": str(index), "seed": True} for index in range(3)]
    path = write_rows(*marked, *sums(40), "", sums(1)[0], {"question": "0  + 1 =", "answer": "1"})
    task = load_task(f"{path}?scorer=numeric")
    assert isinstance(task, JsonlTask)
    assert task.num_repeats == 2
    assert [item.question for item in task.seed_examples()] == ["seed 0?", "seed 1?", "seed 2?"]
    splits = task.splits(SplitSizes(5, 6, 7), seed=1)
    held_out = [item.id for split in splits for item in split]
    assert len(set(held_out)) == 18
    stream = task.stream(0, 80, seed=1)
    assert not set(ids(stream[:22])) & set(held_out)
    assert stream[:40] == stream[40:]
    assert not set(ids(task.seed_examples())) & set(ids(stream + [item for split in splits for item in split]))
    assert load_task(f"jsonl:{path}?scorer=numeric").splits(SplitSizes(5, 6, 7), seed=1) == splits
    assert task.splits(SplitSizes(5, 6, 7), seed=2) != splits


def test_jsonl_splits_do_not_depend_on_the_order_of_lines(write_rows: WriteRows) -> None:
    rows = sums(60)
    one = load_task(f"{write_rows(*rows)}?scorer=exact")
    other = load_task(f"{write_rows(*rows[::-1], name='other.jsonl')}?scorer=exact")
    assert one.splits(SplitSizes(5, 5, 5), 0) == other.splits(SplitSizes(5, 5, 5), 0)
    assert one.seed_examples() == other.seed_examples()
    assert len(one.seed_examples()) == 6


def test_jsonl_keeps_numbers_difficulty_and_other_fields(write_rows: WriteRows) -> None:
    row = {"question": "1 + 1 =", "answer": 2, "difficulty": 1, "source": "book"}
    item = load_task(f"{write_rows(row)}?scorer=numeric").stream(0, 1, 0)[0]
    assert item == Item("1 + 1 =", "2", "1", {"source": "book"})


def test_jsonl_reports_all_broken_lines_at_once(write_rows: WriteRows) -> None:
    bad = ['{"question": "x"', "[]", {"question": "x"}, {"question": "x", "answer": " "}, '{"question": NaN}', "7"]
    path = write_rows({"question": "fine", "answer": "1"}, *bad)
    with pytest.raises(ValueError, match="6 unusable") as caught:
        load_task(f"{path}?scorer=exact")
    text = str(caught.value)
    assert str(path) in text
    for said in (
        "line 2: is not valid JSON",
        "line 3: is not an object",
        'line 4: has no "answer"',
        "line 5: ",
        "line 6: ",
    ):
        assert said in text
    assert "line 7" not in text
    assert "and 1 more" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"question": "caf\xe9", "answer": "1"}\n', "line 1: is not UTF-8"),
        (b'{"question": "a", "answer": "1"}\n{"question": " A", "answer": "2"}\n', "lines 1 and 2: '1' and '2'"),
        (b'{"question": "a", "answer": "1", "seed": "yes"}\n', '"seed" must be true or false'),
        (b'{"question": "a", "answer": "1", "seed": true}\n', "only seed examples"),
        (b"".join(b'{"question": "%d", "answer": "1", "seed": true}\n' % index for index in range(7)), "at most 6"),
    ],
)
def test_unusable_jsonl_files_are_explained(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"my\.jsonl") as caught:
        load_task(f"{path}?scorer=exact")
    assert said in str(caught.value)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "1"}\r\n')
    assert load_task(f"{path}?scorer=exact").stream(0, 1, 0)[0].question == "a"


def test_missing_file_and_folder_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        load_task(f"{tmp_path}/no.jsonl?scorer=exact")
    with pytest.raises(ValueError, match="is a folder"):
        load_task(f"jsonl:{tmp_path}?scorer=exact")


def test_too_few_rows_name_the_number_needed_and_the_options(write_rows: WriteRows) -> None:
    task = load_task(f"{write_rows(*sums(20))}?scorer=numeric")
    with pytest.raises(ValueError, match=r"has 18 distinct items .* and 20 are needed.*--gate-items"):
        task.splits(SplitSizes(3, 3, 4), seed=0)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "names no scorer"),
        ("?scorer=numerik", "did you mean 'numeric'"),
        ("?scorer=numeric&tolerance=-1", "tolerance='-1' is not a number of 0 or more"),
        ("?scorer=numeric&tolerence=1", "did you mean 'tolerance'"),
        ("?scorer=exact&tolerance=1", "unknown option of the scorer 'exact' 'tolerance'"),
        ("?scorer=regex", "must have exactly one group"),
        ("?scorer=regex&pattern=(", "is not valid"),
        ("?scorer=regex&pattern=(a)&compare=fuzzy", "'fuzzy'"),
        ("?scorer=choice&options=yes", "not a JSON list"),
        ('?scorer=choice&options=["yes"]', "2 to 26 different texts"),
        ("?scorer=python:no.py", "there is no file"),
        ("?scorer=exact&max_new_tokens=0", "not a whole number above 0"),
    ],
)
def test_wrong_scorer_options_are_explained(write_rows: WriteRows, query: str, said: str) -> None:
    path = write_rows(*sums(3))
    with pytest.raises(ValueError) as caught:
        load_task(f"{path}{query}")
    assert said in str(caught.value)


def test_options_are_percent_decoded_and_specs_reload(write_rows: WriteRows) -> None:
    path = write_rows({"question": "a", "answer": "#### 4"})
    task = load_task(f"{path}?scorer=regex&pattern=%23%23%23%23 ([0-9+]+)&compare=numeric&max_new_tokens=9")
    assert task.scorer == {"name": "regex", "pattern": "#### ([0-9+]+)", "compare": "numeric"}
    assert task.max_new_tokens == 9
    assert load_task(task.spec) == task


def test_toml_task_is_the_same_task_as_its_jsonl(write_rows: WriteRows, tmp_path: Path) -> None:
    path = write_rows(*sums(10))
    toml = tmp_path / "my.toml"
    toml.write_text('items = "my.jsonl"\nscorer = "numeric"\ntolerance = 0.5\nmax_new_tokens = 12\n')
    task = load_task(str(toml))
    assert task.scorer == {"name": "numeric", "tolerance": 0.5}
    assert task.spec == load_task(f"{path}?scorer=numeric&tolerance=0.5&max_new_tokens=12").spec


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('scorer = "exact"', "must name its rows"),
        ("items = ", "not a valid TOML file"),
        ('items = "my.jsonl"\nscorer = "exact"\nmax_tokens = 3', "did you mean 'max_new_tokens'"),
    ],
)
def test_wrong_toml_tasks_are_explained(write_rows: WriteRows, tmp_path: Path, content: str, said: str) -> None:
    write_rows(*sums(10))
    toml = tmp_path / "my.toml"
    toml.write_text(content)
    with pytest.raises(ValueError, match=r"my\.") as caught:
        load_task(str(toml))
    assert said in str(caught.value)
    with pytest.raises(ValueError, match="takes no options"):
        load_task(f"{toml}?scorer=exact")
