"""Tree search: which beginnings go on, what is graded, where it ends; with scripted steps and grades."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memory.store import BASE, RunStore
from tests.test_refining import said
from tools.contract import Json, Judge, ToolContext
from tools.engines.base import Completion, Sampling
from tools.evaluate.answer import answer_questions
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.refine.judged_answer import GRADING_COST
from tools.refine.policy import answer, how_to_use
from tools.refine.proposal import add_policy
from tools.refine.self_consistency import vote_settings
from tools.refine.tree_search import STEP_TOKENS, legal_tree, tree_settings, tree_tokens

CHAMPION = "champion"
Steps = dict[str, list[Completion]]
"""What a beginning goes on with; one that is not named must not be continued."""


class Writer:
    """An engine that goes on with the steps it was given, and only while the model that is asked is loaded."""

    def __init__(self, steps: Steps, model_dir: Path | None) -> None:
        self.steps, self.asked_model = steps, model_dir
        self.calls: list[tuple[Sampling, list[str]]] = []

    def use_model(self, model_dir: Path | None) -> None:
        self.model_dir = model_dir

    def generate(self, prompts: list[Any], sampling: Sampling) -> list[list[Completion]]:
        assert self.model_dir == self.asked_model
        assert all(turn["role"] == "assistant" for prompt in prompts for turn in prompt[2:])
        texts = ["".join(turn["content"] for turn in prompt[2:]) for prompt in prompts]
        self.calls.append((sampling, texts))
        return [self.steps[text] for text in texts]


Search = Callable[..., tuple[Completion, Any]]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Gives the answer to "q" and the engine, whose `graded` are the texts that were graded, in order."""

    def run(steps: Steps, grades: dict[str, int], max_new_tokens: int = 100, branches: int = 2) -> Any:
        store = RunStore(tmp_path)
        engine: Any = Writer(steps, store.model_dir(CHAMPION))
        engine.graded = []

        def ask_base(prompts: list[str]) -> list[str]:
            engine.use_model(None)
            texts = [prompt.partition("answer to grade:\n-----\n")[2].partition("\n-----")[0] for prompt in prompts]
            engine.graded += texts
            return [str(grades[text]) for text in texts]

        resident = SimpleNamespace(engine=engine, settings={"system_prompt": ""}, ask_base=ask_base)
        policy = add_policy(store, {"choice": tree_settings(branches)})
        [found] = answer(resident, store, CHAMPION, policy, ["q"], max_new_tokens)
        return found, engine

    return run


def test_the_best_graded_path_wins_over_the_likeliest_one(search: Search) -> None:
    steps = {
        "": [said("likely\n", "length", -0.1), said("odd\n", "length", -9.0)],
        "likely\n": [said("wrong", logprob=-0.1), said("bad", logprob=-0.1)],
        "odd\n": [said("right", logprob=-9.0), said("poor", logprob=-9.0)],
    }
    grades = {"likely": 7, "odd": 6, "likely\nwrong": 2, "likely\nbad": 1, "odd\nright": 9, "odd\npoor": 0}
    found, engine = search(steps, grades)
    assert (found.text, found.finish) == ("odd\nright", "stop")
    assert (found.num_tokens, found.logprob) == (len("odd\nright"), -18.0)
    assert [texts for _, texts in engine.calls] == [[""], ["likely\n", "odd\n"]]
    (first, _), (second, _) = engine.calls
    assert (first.num_samples, first.temperature, first.max_new_tokens) == (2, 0.7, STEP_TOKENS)
    assert first.seed != second.seed, "steps do not repeat each other's chance"


def test_only_the_best_of_a_beam_go_on_and_what_ended_does_not(search: Search) -> None:
    steps = {
        "": [said("done"), said("a\n", "length"), said("b\n", "length"), said("c\n", "length")],
        "b\n": [said("1\n", "length"), said("2\n", "length")],
        "b\n1\n": [said("3")],
    }
    grades = {"done": 6, "a": 5, "b": 8, "c": 4, "b\n1": 9, "b\n2": 5, "b\n1\n3": 1}
    found, engine = search(steps, grades, branches=4)
    assert [texts for _, texts in engine.calls] == [[""], ["b\n"], ["b\n1\n"]], "what ended takes one of two places"
    assert found.text == "done"


def test_an_ended_answer_is_not_forgotten_when_better_beginnings_never_end(search: Search) -> None:
    steps = {
        "": [said("end"), said("x" * 20, "length"), said("y" * 20, "length")],
        "x" * 20: [said("!" * 12, "length")],
        "y" * 20: [said("?" * 12, "length")],
    }
    texts = {"end": 3, "x" * 20: 8, "y" * 20: 8, "x" * 20 + "!" * 12: 9, "y" * 20 + "?" * 12: 9}
    assert search(steps, texts, 32)[0].text == "end"


def test_of_equal_grades_the_likelier_token_by_token_wins(search: Search) -> None:
    steps = {"": [said("long but sure", logprob=-1.3), said("short", logprob=-1.0)]}
    assert search(steps, {"long but sure": 5, "short": 5})[0].text == "long but sure"
    assert search(steps, {"long but sure": 5, "short": 6})[0].text == "short"


def test_an_endpoint_without_log_probabilities_will_do(search: Search) -> None:
    steps = {"": [said("a", logprob=math.nan), said("b", logprob=math.nan), said("c", logprob=math.nan)]}
    assert search(steps, {"a": 5, "b": 8, "c": 5})[0].text == "b"


def test_equal_steps_are_one_and_are_graded_once(search: Search) -> None:
    steps = {
        "": [said("a\n", "length"), said("a\nb", "stop"), said("a", "stop")],
        "a\n": [said("", "stop"), said("c", "stop")],
    }
    found, engine = search(steps, {"a": 7, "a\nc": 5})
    assert engine.graded == ["a", "a\nc"]
    assert [texts for _, texts in engine.calls] == [[""], ["a\n"]], "of a line, what was drawn behind it is dropped"
    assert found.text.strip() == "a"


def test_a_step_goes_to_the_end_of_the_first_line_that_says_something(search: Search) -> None:
    steps = {"": [said("\n \n one\n\ntwo\nthree")], "\n \n one\n": [said("\ntwo\n")]}
    found, engine = search(steps, {"one": 1, "one\n\ntwo": 1})
    assert [texts for _, texts in engine.calls] == [[""], ["\n \n one\n"]]
    assert (found.text, found.finish) == ("\n \n one\n\ntwo\n", "stop")
    assert found.num_tokens == 9 + 5, "of the tokens drawn first, the share that was kept"


def test_half_a_letter_at_a_cut_is_written_anew(search: Search) -> None:
    steps = {"": [said("gr\N{REPLACEMENT CHARACTER}", "length")], "gr": [said("ün")]}
    assert search(steps, {"gr": 1, "grün": 1})[0].text == "grün"


def test_answers_are_no_longer_than_the_task_allows(search: Search) -> None:
    steps = {"": [said("a" * 32, "length"), said("b\n", "length")], "a" * 32: [said("cc", "length")]}
    steps |= {"b\n": [said("d" * 32, "length")]}
    grades = {"a" * 32: 5, "b": 5, "a" * 32 + "cc": 8, "b\n" + "d" * 32: 6}
    found, engine = search(steps, grades, 34)
    assert (found.text, found.finish, found.num_tokens) == ("a" * 32 + "cc", "length", 34)
    rooms = [(sampling.max_new_tokens, texts) for sampling, texts in engine.calls]
    assert rooms == [(32, [""]), (2, ["a" * 32]), (32, ["b\n"])], "each as far as its own length leaves room"


def test_questions_are_searched_side_by_side(tmp_path: Path) -> None:
    class Echo:
        """Answers a question with itself, in two steps."""

        def use_model(self, model_dir: Path | None) -> None:
            pass

        def generate(self, prompts: list[Any], sampling: Sampling) -> list[list[Completion]]:
            return [
                [said("so\n", "length")] if len(prompt) == 2 else [said(prompt[1]["content"])] for prompt in prompts
            ]

    resident = SimpleNamespace(
        engine=Echo(), settings={"system_prompt": ""}, ask_base=lambda prompts: ["5"] * len(prompts)
    )
    store = RunStore(tmp_path)
    policy = add_policy(store, {"choice": tree_settings(2)})
    found = answer(resident, store, BASE, policy, ["one", "two", "one"], 50)
    assert [one.text for one in found] == ["so\none", "so\ntwo", "so\none"]


def test_a_real_engine_and_judge_search_at_a_cost_that_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"model_dir": str(tiny_model), "engine": "transformers", "dtype": "float32", "system_prompt": ""}
    (tmp_path / "worker.json").write_text(json.dumps(settings))
    resident = Resident(tmp_path)
    store, job = RunStore(tmp_path), Job(tmp_path / "jobs" / "check", resident)
    job.folder.mkdir(parents=True)
    policies = [add_policy(store, {"choice": choice}) for choice in (vote_settings(4), tree_settings(2))]
    vote, tree, again = (
        answer_questions(job, BASE, ["ab", "cd"], False, 40, policy=policy) for policy in [*policies, policies[1]]
    )
    assert tree["answers"] == again["answers"] and all(tree["answers"])
    assert max(tree["num_tokens"]) <= 40 and not any(map(math.isnan, tree["logprobs"]))
    assert tree["prompt_tokens_per_item"] > 4 * vote["prompt_tokens_per_item"]


def context_with(folder: Path, **records: Json) -> ToolContext:
    """A context whose base model was measured as told; two lines and 40 tokens an answer."""
    store = RunStore(folder)
    record = {
        "model": BASE, "split": "search", "shots": 0, "score": 0.5, "prompt_tokens_per_item": 10.0,
        "answer_tokens_per_item": 40.0, "tokens_per_question": 50.0, "first_look": 30,
        "split_sizes": {"search": 20, "gate": 30, "final": 20}, "identity": {"engine": "fake"},
    }  # fmt: skip
    for name, changes in records.items():
        store.put("evals", name, record | changes, {"items.jsonl": [{"answer": "one\n\ntwo"}, {"answer": "a\nb\n"}]})
    return ToolContext(store, cast(Any, None), cast(Judge, None), 0, "made up")


@pytest.mark.parametrize(
    ("records", "legal"),
    [
        ({}, None),
        ({"zero": {}}, {"branches": [2, 4]}),
        ({"zero": {"answer_tokens_per_item": float(STEP_TOKENS)}}, None),
        ({"zero": {}, "few": {"shots": 4, "answer_tokens_per_item": 9.0}}, None),
        ({"zero": {}, "few": {"shots": 4, "answer_tokens_per_item": STEP_TOKENS + 1.0}}, {"branches": [2, 4]}),
        ({"zero": {"scorer_note": "judge, unchecked"}}, None),
    ],
    ids=["not measured", "long", "one step", "right ones are short", "right ones are long", "judge"],
)
def test_it_is_offered_where_answers_have_several_steps(tmp_path: Path, records: Json, legal: Json | None) -> None:
    assert legal_tree(context_with(tmp_path, **records)) == legal


def test_each_setting_is_tried_once_and_not_while_a_candidate_waits(tmp_path: Path) -> None:
    context = context_with(tmp_path, zero={})
    tried = add_policy(context.store, {"choice": tree_settings(2)})
    context_with(tmp_path, tried={"policy": tried, "score": 0.4})
    assert legal_tree(context) == {"branches": [4]}
    context.store.put("models", "new", {"parent": BASE, "dataset": "d", "datasets": [], "settings": {}})
    assert legal_tree(context) is None


def test_it_costs_the_grading_of_every_step(tmp_path: Path) -> None:
    context = context_with(tmp_path, zero={})
    steps = 2 + 40 / STEP_TOKENS
    tree, vote = GRADING_COST * 4 * steps * 50, 4 * 50
    assert tree_tokens(context, 2) == 20 * vote + (20 + 30 + 20) * tree + 30 * 50
    assert tree_tokens(context, 4) > 1.9 * tree_tokens(context, 2)


def test_the_card_says_how_to_search() -> None:
    settings = {"choice": tree_settings(4)}
    [told] = how_to_use(settings)
    assert all(f"`{name}`" in told for name in settings["choice"] if name != "kind")
