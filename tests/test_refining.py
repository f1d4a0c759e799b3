"""How policies put questions and find answers: examples, votes, public tests, feedback, with scripted replies."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memory.records import content_id
from memory.store import BASE, GREEDY, RunStore
from tools.contract import Json
from tools.engines.base import Completion, Sampling
from tools.refine.best_of_n import best_settings
from tools.refine.feedback import mend_settings
from tools.refine.few_shot import nearest
from tools.refine.judged_answer import judged_settings
from tools.refine.policy import answer, kind_of, settings_of
from tools.refine.proposal import add_policy
from tools.refine.self_consistency import vote_settings
from tools.tasks.base import Item

VOTE: Json = {"choice": vote_settings(4)}


def said(text: str, finish: str = "stop", logprob: float = -1.0) -> Completion:
    return Completion(text, len(text), logprob, finish)


class Engine:
    """Says what it was given, in turn; remembers what it was asked."""

    tokens_processed = 0

    def __init__(self, replies: list[list[Completion]]) -> None:
        self.replies = iter(replies)
        self.asked: list[list[Any]] = []
        self.samplings: list[Sampling] = []

    def use_model(self, model_dir: Path | None) -> None:
        self.model_dir = model_dir

    def generate(self, prompts: list[Any], sampling: Sampling) -> list[list[Completion]]:
        self.asked += [list(prompt) for prompt in prompts]
        self.samplings.append(sampling)
        return [next(self.replies) for _ in prompts]


class NearMemory:
    """Vectors are the texts themselves; neighbours those that share the last letter, newest collection first."""

    def __init__(self) -> None:
        self.held: dict[str, list[tuple[str, str]]] = {}

    def embed(self, texts: list[str]) -> list[str]:
        return texts

    def count(self, name: str) -> int:
        return len(self.held.get(name, []))

    def upsert(self, name: str, ids: list[str], vectors: Any, texts: list[str], metadata: Any) -> None:
        self.held[name] = list(zip(ids, texts, strict=True))

    def neighbours(self, name: str, vectors: list[str], count: int) -> list[list[tuple[str, float, str, Json]]]:
        near = [[row for row in self.held[name] if row[1][-1] == text[-1]][:count] for text in vectors]
        return [[(key, 1.0, text, {}) for key, text in rows] for rows in near]


def resident_of(replies: list[list[Completion]], scorer: Any = None) -> Any:
    settings = {"system_prompt": "the run's"}
    return SimpleNamespace(engine=Engine(replies), memory=NearMemory(), settings=settings, scorer=scorer)


def contents(resident: Any) -> list[list[str]]:
    return [[turn["content"] for turn in chat] for chat in resident.engine.asked]


def test_a_run_begins_with_greedy_answers_to_the_question_alone(tmp_path: Path) -> None:
    resident = resident_of([[said("4")]])
    assert [one.text for one in answer(resident, RunStore(tmp_path), BASE, GREEDY, ["2 + 2"], 8)] == ["4"]
    assert contents(resident) == [["the run's", "2 + 2"]] and resident.engine.samplings == [Sampling(8)]


def test_parts_of_a_policy_work_together(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    shots = {"kind": "few_shot", "examples": [["1 + 1", "2"]]}
    settings: Json = VOTE | {"system": "Add.", "shots": shots}
    assert kind_of(settings) == "system prompt + few_shot + self_consistency"
    resident = resident_of([[said("5"), said("4"), said("4"), said("5", "length")]])
    policy = add_policy(store, settings)
    assert [one.text for one in answer(resident, store, BASE, policy, ["2 + 2"], 8)] == ["4"]
    assert contents(resident) == [["Add.", "1 + 1", "2", "2 + 2"]]
    assert (resident.engine.samplings[0].num_samples, resident.engine.samplings[0].temperature) == (4, 0.7)
    assert settings_of(store, policy) == settings
    with pytest.raises(ValueError, match="no kind of policy 'gone'"):
        answer(resident, store, BASE, add_policy(store, {"choice": {"kind": "gone"}}), ["2 + 2"], 8)


def frozen_rows(store: RunStore) -> None:
    rows = [{"id": f"r{n}", "item_id": f"i{n}", "prompt": f"add {n}", "completion": f"sum {n}"} for n in range(20)]
    store.put("data", "d", {"kind": "train", "num_examples": 20, "rejected": {}}, {"train.jsonl": rows})


def test_nearest_examples_are_right_rows_of_the_datasets_and_the_nearest_stands_last(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    frozen_rows(store)
    settings = nearest(store, 2)
    assert settings is not None and list(settings["shots"]["datasets"]) == ["d"]
    resident = resident_of([[said("x")], [said("y")]])
    answer(resident, store, BASE, add_policy(store, settings), ["what is 3", "what is 4"], 8)
    assert contents(resident) == [
        ["the run's", "add 13", "sum 13", "add 3", "sum 3", "what is 3"],
        ["the run's", "add 14", "sum 14", "add 4", "sum 4", "what is 4"],
    ]
    assert list(resident.memory.held) == [f"shots-{content_id(settings['shots']['datasets'])}"]


def test_of_several_programs_one_that_passes_the_public_tests_is_taken(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    scorer = SimpleNamespace(score=lambda pairs: [SimpleNamespace(right=text == "good") for _, text in pairs])
    resident = resident_of([[said("bad"), said("bad"), said("good")], [said("bad"), said("ugly"), said("bad")]], scorer)
    policy = add_policy(store, {"choice": best_settings(4)})
    chosen = answer(resident, store, BASE, policy, ["a", "b"], 8, [["t1", "t2"], ["t3"]])
    assert [one.text for one in chosen] == ["good", "bad"], "the most frequent one where none passes"


def test_of_several_answers_the_one_with_the_highest_grade_is_taken(tmp_path: Path) -> None:
    store, prompts = RunStore(tmp_path), []

    def ask_base(asked: list[str]) -> list[str]:
        prompts.extend(asked)
        grades = {"poor": "2", "fine": "Grade: 9", "as fine": "9", "unread": "who knows"}
        return [next(grades[name] for name in sorted(grades, key=len)[::-1] if f"\n{name}\n" in text) for text in asked]

    resident = resident_of([
        [said("poor"), said("poor "), said("fine"), said("unread")],
        [said("fine"), said("as fine"), said("as fine"), said("poor", "length")],
        [said("unread"), said("unread"), said("poor"), said("!")],
    ])  # fmt: skip
    resident.ask_base = ask_base
    policy = add_policy(store, {"choice": judged_settings(4)})
    chosen = answer(resident, store, BASE, policy, ["q one", "q two", "q three"], 8)
    assert [one.text for one in chosen] == ["fine", "as fine", "poor"], "of equal grades the most frequent"
    assert len(prompts) == 8, "each different answer is graded once, one that says nothing never"
    assert "q one" in prompts[0] and "q three" in prompts[-1]


def test_a_failing_program_is_written_again_with_its_failing_tests_in_view(tmp_path: Path) -> None:
    store = RunStore(tmp_path)

    def score(pairs: list[tuple[Item, str]]) -> list[Any]:
        return [SimpleNamespace(right=text == "good" or item.metadata["tests"] == ["easy"]) for item, text in pairs]

    resident = resident_of([[said("bad")], [said("good")], [said("good")]], SimpleNamespace(score=score))
    policy = add_policy(store, {"choice": mend_settings(3)})
    chosen = answer(resident, store, BASE, policy, ["a", "b"], 8, [["easy", "hard"], ["hard"]])
    assert [one.text for one in chosen] == ["good", "good"]
    assert len(resident.engine.asked) == 3, "what passes is not asked again"
    *_, earlier, told = contents(resident)[2]
    assert earlier == "bad" and "hard" in told and "easy" not in told
