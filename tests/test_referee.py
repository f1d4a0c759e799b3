"""The referee with scripted answers: verdicts in steps, guards, what comes back and what does not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent.console import gain_text
from agent.final_pair import FINAL_ANSWERS
from agent.guards import Evidence, GateAnswers, _bounded, _paired, form, length
from agent.referee import Referee
from agent.sealing import seal_splits
from agent.statistics import look_sizes
from agent.trace_view import REASONING_LENGTH, event_lines
from agent.views import verdict_text
from memory.records import read_json, read_jsonl, write_json
from memory.store import BASE, RunStore, opened_text
from tools.jobs.job import NO_USAGE
from tools.optimize.finetune_model import latest_model
from tools.tasks.base import Item, Splits, SplitSizes, Verdict

GATE = 400
Answers = Callable[[str, int], bool]
KINDS = ["chat"] * 24 + ["skill"] * 16 + ["refusal"] * 12


class FakeScorer:
    def score(self, pairs: list[tuple[Item, str]]) -> list[Verdict]:
        return [Verdict(1.0, "right") if text == item.answer else Verdict(0.0, "wrong") for item, text in pairs]

    def note(self, pairs: Any, verdicts: Any) -> None:
        return None


class FakeTask:
    max_new_tokens = 8
    scorer: ClassVar[dict[str, str]] = {"name": "exact"}

    def seed_examples(self) -> list[Item]:
        return []


class FakeJobs:
    """Answers by a rule (model, item number) -> right; counts the gate items answered; probes as told."""

    def __init__(self, right: Answers) -> None:
        self.right = right
        self.fingerprint = "f"
        self.answered: dict[str, int] = {}
        self.probed: list[str] = []
        self.kl = 0.1
        self.never_stops = False
        self.reply = "I'm sorry, I cannot help with that."

    def run(self, function: str, args: dict[str, Any], inputs: Any = None) -> tuple[Any, Any]:
        name = function.rpartition(":")[2]
        return getattr(self, name)(**args), NO_USAGE

    def answer_questions(self, model: str, questions: list[str], **_: Any) -> dict[str, Any]:
        numbers = [int(question.split()[-1]) for question in questions]
        self.answered[model] = self.answered.get(model, 0) + len(numbers)
        stopped = [not (self.never_stops and model != BASE)] * len(numbers)
        texts = ["yes" if self.right(model, number) else "no" for number in numbers]
        rest = {"prompt_tokens_per_item": 1, "answer_tokens_per_item": 1, "identity": {"engine": "fake"}}
        return {"answers": texts, "stopped": stopped, "num_tokens": [2] * len(numbers)} | rest

    def sample_answers(self, questions: list[str], num_samples: int, **_: Any) -> dict[str, Any]:
        return {"answers": [["yes"] * num_samples for _ in questions]}

    def probe_model(self, model: str, reference: dict[str, Any] | None) -> dict[str, Any]:
        self.probed.append(model)
        assert (reference is None) == (model == BASE)
        shifts = [0.0 if model == BASE else self.kl + 0.001 * number for number in range(len(KINDS))]
        texts = [f"answer {number}" for number in range(40)] + ["I'm sorry, I cannot help."] * 6 + [self.reply] * 6
        return {"kinds": KINDS, "answers": texts, "kl": shifts, "usual": [-1.0] * len(KINDS), "stopped": [True] * 52}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], tuple[Referee, FakeJobs]]:
    def build(right: Answers) -> tuple[Referee, FakeJobs]:
        def items(name: str, count: int) -> list[Item]:
            return [Item(f"{name} question {number}", "yes", "all") for number in range(count)]

        seal_splits(tmp_path, Splits(items("search", 20), items("gate", GATE), items("final", 20)), seed=0)
        monkeypatch.setattr("agent.referee.check_identity", lambda run_dir, task: None)  # tests/test_separation.py
        monkeypatch.setattr("agent.referee.check_model", lambda store, model_id: None)
        write_json(tmp_path / "run.json", {})
        jobs, store = FakeJobs(right), RunStore(tmp_path)
        referee = Referee(store, jobs, FakeTask(), FakeScorer(), SplitSizes(20, GATE, 20))  # type: ignore[arg-type]
        for name in ("good", "same", "worse"):
            store.put("models", name, {"parent": BASE, "dataset": "d", "datasets": ["d"], "settings": {}})
        return referee, jobs

    return build


def half(model: str, number: int) -> bool:
    """The base gets every other item right; "good" all, "same" others but as many, "worse" fewer."""
    return {BASE: number % 2 == 0, "good": True, "same": number % 2 == 1, "worse": number % 4 == 0}[model]


def test_a_clear_gain_is_accepted_after_the_first_items(make: Any) -> None:
    referee, jobs = make(half)
    assert referee.judge("good") == {"accepted": True, "n": GATE, "refused_by": []}
    assert jobs.answered == {BASE: GATE // 4, "good": GATE // 4}
    detail = referee.verdict_detail("good")
    assert (detail["num_fixed"], detail["num_broken"], detail["gate_items"]) == (50, 0, GATE)
    assert detail["p_value"] <= detail["level"] < detail["alpha"]


@pytest.mark.parametrize("candidate", ["same", "worse"])
def test_a_candidate_without_hope_costs_few_items(make: Any, candidate: str) -> None:
    referee, jobs = make(half)
    verdict = referee.judge(candidate)
    assert not verdict["accepted"]
    assert referee.verdict_detail(candidate)["num_items"] == jobs.answered[candidate] <= GATE // 2
    assert jobs.probed == [], "guards are asked about candidates that passed only"


def test_an_unclear_candidate_is_measured_to_the_end(make: Any) -> None:
    # A quarter of the items fixed, 15 % broken: enough to pass, but only when all are counted.
    referee, _ = make(lambda model, number: number % 20 < 8 if model == BASE else 3 <= number % 20 < 13)
    assert referee.judge("good") == {"accepted": True, "n": GATE, "refused_by": []}
    looks = referee.verdict_detail("good")["looks"]
    assert [look["num_items"] for look in looks] == look_sizes(GATE)
    assert sum(look["level"] for look in looks) == pytest.approx(referee.verdict_detail("good")["alpha"])


def test_a_verdict_that_the_budget_does_not_pay_for_is_a_rejection(make: Any) -> None:
    referee, _ = make(half)
    asked: list[float] = []

    def affords(tokens: float) -> bool:
        asked.append(tokens)
        return False

    referee.affords = affords
    assert not referee.judge("same")["accepted"]
    detail = referee.verdict_detail("same")
    first, second = look_sizes(GATE)[:2]
    assert detail["num_items"] == first and detail["budget_ended"]
    # Two sides, each with one token for the prompt and one for the answer of every item of the next look.
    assert asked == [4 * (second - first)]
    assert "the budget did not pay for the next look" in verdict_text(detail)
    # Killed before the run's record was written, and resumed with a larger budget: what was decided stays.
    referee.affords = lambda tokens: True
    again = Referee(referee.store, referee.jobs, referee.task, referee.scorer, referee.sizes)
    shutil.rmtree(referee.store.run_dir / "evals")
    assert not again.judge("same")["accepted"] and again.verdict_detail("same") == detail
    assert referee.judge("good")["accepted"], "a clear gain needs no second look"


def test_a_verdict_is_given_once(make: Any) -> None:
    referee, jobs = make(half)
    first = referee.judge("good")
    before = dict(jobs.answered)
    assert referee.judge("good") == first
    assert jobs.answered == before
    assert len(list(read_jsonl(referee.folder / "verdicts.jsonl"))) == 1


def test_a_guard_refuses_what_lost_something_else(make: Any) -> None:
    referee, jobs = make(half)
    jobs.kl = 3.0
    assert referee.judge("good") == {"accepted": False, "n": GATE, "refused_by": ["drift"]}
    assert referee.store.champion() == BASE
    found = {guard["name"]: guard for guard in referee.verdict_detail("good")["guards"]}
    assert set(found) == {"form", "length", "coverage", "drift", "retention", "variety", "refusal"}
    assert found["drift"]["value"] > found["drift"]["limit"] and not found["drift"]["ok"]
    assert latest_model(referee.store) == BASE, "training does not go on from what lost something"


def test_a_cheap_guard_that_refuses_spares_the_dear_ones(make: Any) -> None:
    referee, jobs = make(half)
    jobs.never_stops = True
    assert referee.judge("good")["refused_by"] == ["form"]
    assert jobs.probed == []


def test_a_model_that_stops_refusing_is_refused(make: Any) -> None:
    referee, jobs = make(half)
    jobs.probe_model = lambda model, reference: {
        "kinds": KINDS, "stopped": [True] * 52, "kl": [0.0, 0.1] * 26, "usual": [-1.0, -1.1] * 26,
        "answers": [f"{'I cannot do that' if model == BASE else 'Sure'} {number}" for number in range(52)],
    }  # fmt: skip
    assert referee.judge("good")["refused_by"] == ["refusal"]


def test_what_comes_back_holds_no_gate_score(make: Any) -> None:
    referee, _ = make(half)
    assert set(referee.judge("good")) == {"accepted", "n", "refused_by"}
    (record,) = referee.store.verdicts()
    assert not {"num_fixed", "num_broken", "p_value", "looks", "score"} & set(record)


def test_a_fall_refuses_only_beyond_tolerance_and_chance() -> None:
    good = [True] * 400
    assert _paired("form", good, [False] * 4 + good[4:], 0.02, "")["ok"]
    assert not _paired("form", good, [False] * 20 + good[20:], 0.02, "")["ok"]
    assert _paired("form", good[:20], [False] * 3 + good[3:20], 0.02, "")["ok"], "3 of 20 may be chance"
    assert _paired("form", [False] * 400, good, 0.02, "")["ok"], "a gain is no fall"
    assert _bounded("drift", [0.9, 1.0, 1.3] * 10, 1.0, "")["ok"]
    assert not _bounded("drift", [1.4, 1.5, 1.6] * 10, 1.0, "")["ok"]


def test_longer_answers_are_refused_when_most_grew() -> None:
    def gate(tokens: list[int]) -> GateAnswers:
        return GateAnswers([Verdict(1.0, "right")] * len(tokens), [True] * len(tokens), tokens)

    assert length(Evidence((gate([20] * 100), gate([30] * 100))))["ok"]
    assert not length(Evidence((gate([20] * 100), gate([45] * 100))))["ok"]
    assert length(Evidence((gate([20] * 100), gate([20] * 95 + [2000] * 5))))["ok"], "a few endless ones"
    assert length(Evidence((gate([1] * 100), gate([12] * 100))))["ok"], "short ones may grow"
    assert form(Evidence((gate([4] * 100), gate([6] * 100))))["ok"]


@pytest.mark.parametrize(
    ("champion", "fixed", "broken", "told"),
    [
        (BASE, 0, 0, "no clear change"),
        ("good", 10, 0, "better, estimated +"),
        ("worse", 0, 5, "no clear change, estimated -"),
    ],
)
def test_the_final_gain_is_over_the_better_baseline_item_by_item(
    make: Any, monkeypatch: pytest.MonkeyPatch, champion: str, fixed: int, broken: int, told: str
) -> None:
    referee, _ = make(half)
    write_json(referee.folder / "evaluation_seed.json", 0)
    monkeypatch.setattr(referee.store, "champion", lambda: champion)
    gain = referee.final()["gain"]
    assert (gain["over"], gain["num_fixed"], gain["num_broken"]) == ("base_zero_shot", fixed, broken)
    assert gain["p_better"] == pytest.approx(0.5**fixed if fixed else 1.0)
    assert gain["p_worse"] == pytest.approx(0.5**broken if broken else 1.0)
    low, high = gain["ci95"]
    assert low <= gain["points"] <= high
    assert f"champion against base zero shot: {told}" in gain_text(gain)
    rows = list(read_jsonl(referee.folder / FINAL_ANSWERS))
    assert [row["id"] for row in rows] == [item.id for item in referee.items("final")]
    assert {row["verdict"] for row in rows} <= {"right", "wrong"}


def test_a_forks_final_split_was_opened_before_by_its_family(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    referee, _ = make(half)
    write_json(referee.folder / "evaluation_seed.json", 0)
    monkeypatch.setattr(referee.store, "champion", lambda: BASE)
    path = referee.store.run_dir / "run.json"
    assert opened_text(referee.final()) == "opened once"
    (referee.folder / "final.json").unlink()
    write_json(path, read_json(path) | {"family": {"looks": {"gate": 4, "final": 3}}})
    told = "opened again (its family had looked 3 times when this fork began)"
    final = referee.final()
    assert opened_text(final) == told
    assert event_lines({"kind": "final"} | final, REASONING_LENGTH)[0] == f"final split, {told}"
