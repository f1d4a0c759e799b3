"""Inference policies: how they answer, how the referee judges them at their own cost, and what they never see."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.identity import IdentityError
from agent.referee import ContaminationError, Door, Referee
from agent.sealing import seal_splits, verdicts_before
from memory.records import content_id, read_json, write_json
from memory.store import BASE, GREEDY, RunStore
from tests.test_referee import GATE, FakeJobs, FakeScorer
from tests.test_refining import frozen_rows, resident_of, said
from tools.contract import Json, ToolContext, ToolError
from tools.refine.best_of_n import best_settings, legal_best, take_passing_answer
from tools.refine.card import policy_section, write_policy
from tools.refine.feedback import legal_mending
from tools.refine.few_shot import legal_examples, nearest, show_examples
from tools.refine.judged_answer import legal_judged, take_judged_answer
from tools.refine.policy import Asked, answer, policy_id
from tools.refine.prompt_search import legal_search, search_prompt
from tools.refine.proposal import add_policy, changed, propose
from tools.refine.self_consistency import legal_vote, vote_on_answers, vote_settings
from tools.refine.tree_search import search_answer_tree, tree_settings
from tools.tasks.base import Item, Splits, SplitSizes

VOTE: Json = {"choice": vote_settings(4)}
SECRET = "the gold answer"
LEAK = {"prompt": "gate question 7", "completion": "yes"}


class PolicyJobs(FakeJobs):
    """Answers by a rule (name, item number) -> right, where the name is the policy's or, greedily, the model's."""

    specs: list[str]

    def run(self, function: str, args: Json, inputs: Any = None) -> tuple[Any, Any]:
        self.specs = [*getattr(self, "specs", []), json.dumps([function, args])]
        return super().run(function, args, inputs)

    def answer_questions(self, model: str, questions: list[str], policy: str = GREEDY, **_: Any) -> Json:
        told = super().answer_questions(model if policy == GREEDY else f"{policy}@{model}", questions)
        times = 1 if policy == GREEDY else 4
        return told | {"prompt_tokens_per_item": 6 * times, "answer_tokens_per_item": 5 * times}

    def find_overlaps(self, questions: list[str], held_out: list[str], **_: Any) -> Json:
        found = ["exact" if any(other in text for other in held_out) else None for text in questions]
        return {"reasons": found, "num_same_template": 0}

    def seed_examples(self) -> Json:
        return {"rows": [{"prompt": f"seed {number}", "completion": "yes"} for number in range(6)]}

    def propose_prompts(self, **_: Any) -> Json:
        return {"systems": ["Say yes.", "Say search question 3 yes."]}


Make = Callable[..., tuple[Referee, PolicyJobs]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def build(right: Callable[[str, int], bool]) -> tuple[Referee, PolicyJobs]:
        def items(name: str, count: int) -> list[Item]:
            return [Item(f"{name} question {number}", SECRET, "all") for number in range(count)]

        seal_splits(tmp_path, Splits(items("search", 20), items("gate", GATE), items("final", 20)), seed=0)
        monkeypatch.setattr("agent.referee.check_identity", lambda run_dir, task: None)  # tests/test_separation.py
        monkeypatch.setattr("agent.referee.check_model", lambda store, model_id: None)
        write_json(tmp_path / "run.json", {})
        jobs, store = PolicyJobs(right), RunStore(tmp_path)
        task = SimpleNamespace(seed_examples=list, max_new_tokens=8, scorer={"name": "exact"}, generated=True)
        referee = Referee(store, jobs, task, FakeGold(), SplitSizes(20, GATE, 20))  # type: ignore[arg-type]
        store.put("models", "good", {"parent": BASE, "dataset": "d", "datasets": ["d"], "settings": {}})
        referee.measure(BASE, "search")
        return referee, jobs

    return build


class FakeGold(FakeScorer):
    """Says right to "yes", whatever the gold answer is: the fakes do not know it."""

    def score(self, pairs: list[tuple[Item, str]]) -> Any:
        return super().score([(Item(item.question, "yes", "all"), text) for item, text in pairs])


def context_of(referee: Referee) -> ToolContext:
    return ToolContext(referee.store, referee.jobs, Door(referee), 0, "a task")


def votes_help(name: str, number: int) -> bool:
    """The base gets every other item right, asked by any policy all; so does the model "good"."""
    return number % 2 == 0 or name != BASE


# --- the referee


def test_a_better_policy_is_promoted_and_its_cost_is_stated(make: Make) -> None:
    referee, jobs = make(votes_help)
    told = vote_on_answers(context_of(referee), samples=4)
    policy = policy_id(VOTE)
    assert told["accepted"] and told["policy"] == policy and told["times_the_cost"] == pytest.approx(4.3)
    store = referee.store
    assert (store.champion(), store.champion_policy()) == (BASE, policy)
    assert store.verdicts() == [], "no model was judged, so what follows from models does not change"
    assert store.candidate() is not None and store.quarantined() == set()
    detail = referee.verdict_detail(f"{policy}@{BASE}")
    assert detail["tokens_per_question"] == {"champion": 10.0, "candidate": 43.0}
    assert detail["num_broken"] == 0 and [guard["name"] for guard in detail["guards"]] == ["form"]
    assert verdicts_before(store) == [True], "a policy spends of the same alpha as a model"
    assert jobs.probed == [], "its weights are the champion's"
    assert referee.judge_policy(policy)["accepted"] and len(store.all_verdicts()) == 1
    with pytest.raises(ToolError, match="the champion's policy already"):
        Door(referee).judge_policy(policy)


def test_a_policy_that_only_costs_more_never_reaches_the_gate(make: Make) -> None:
    referee, jobs = make(lambda name, number: number % 2 == 0)
    told = vote_on_answers(context_of(referee), samples=4)
    assert "accepted" not in told and "no better" in told["told"] and told["gain_on_search"] == 0
    assert not referee.store.all_verdicts() and jobs.answered == {BASE: 20, f"{policy_id(VOTE)}@{BASE}": 20}
    assert referee.store.champion_policy() == GREEDY


def test_a_policy_that_is_better_on_search_items_by_luck_is_rejected(make: Make) -> None:
    referee, jobs = make(lambda name, number: number % 2 == 0 or (name != BASE and number == 1))
    jobs.__class__ = LuckyOnSearch
    told = vote_on_answers(context_of(referee), samples=4)
    assert told["gain_on_search"] > 0 and told["accepted"] is False
    assert referee.store.champion_policy() == GREEDY and verdicts_before(referee.store) == [False]


class LuckyOnSearch(PolicyJobs):
    def answer_questions(self, model: str, questions: list[str], policy: str = GREEDY, **_: Any) -> Json:
        lucky = questions[0].startswith("search")
        return super().answer_questions(model, questions, policy if lucky else GREEDY)


def test_a_model_is_judged_under_the_champions_policy_on_both_sides(make: Make) -> None:
    policy = policy_id(VOTE)
    asked = f"{policy}@good"
    referee, jobs = make(lambda name, number: number % 2 == 0 or name == asked or (name != BASE and number % 4 == 1))
    vote_on_answers(context_of(referee), samples=4)
    referee.check_training_data = lambda candidate: None  # type: ignore[method-assign]
    before = dict(jobs.answered)
    assert Door(referee).judge("good")["accepted"]
    assert {name for name, count in jobs.answered.items() if count != before.get(name)} == {asked, f"{policy}@{BASE}"}
    (verdict,) = referee.store.verdicts()
    assert (verdict["policy"], verdict["champion_policy"], verdict["tries_policy"]) == (policy, policy, False)
    assert (referee.store.champion(), referee.store.champion_policy()) == ("good", policy)


def test_the_final_evaluation_asks_the_champion_by_its_policy_and_greedily(make: Make) -> None:
    referee, _ = make(votes_help)
    vote_on_answers(context_of(referee), samples=4)
    referee.store.put("evals", "accepted", {"model": "good", "split": "gate", "accepted": True, "shots": 0})
    final = referee.final()
    assert final["policy"] == policy_id(VOTE)
    assert [final[name]["tokens_per_question"] for name in ("champion", "champion_greedy")] == [43.0, 10.0]


def test_a_policy_that_was_changed_is_refused(make: Make) -> None:
    referee, _ = make(votes_help)
    policy = add_policy(referee.store, VOTE)
    path = referee.store.folder("policies", policy) / "policy.json"
    write_json(path, read_json(path) | {"settings": {"choice": vote_settings(16)}})
    with pytest.raises(IdentityError, match="was changed after it was made"):
        referee.measure(BASE, "search", policy=policy)
    odd = {"shots": "all of them"}
    referee.store.put("policies", policy_id(odd), {"settings": odd})
    with pytest.raises(IdentityError, match="settings that nothing can read"):
        referee.measure(BASE, "search", policy=policy_id(odd))
    frozen_rows(referee.store)
    shown = add_policy(referee.store, nearest(referee.store, 2) or {})
    (referee.store.folder("data", "d") / "train.jsonl").write_text("")
    with pytest.raises(IdentityError, match=r"refused: .*train.jsonl is not what was written"):
        referee.measure(BASE, "search", policy=shown)


@pytest.mark.parametrize(
    "settings",
    [
        {"system": "To gate question 7 say yes."},
        {"shots": {"kind": "few_shot", "examples": [["gate question 7", "yes"]]}},
        {"shots": {"kind": "few_shot", "datasets": {"d": content_id([LEAK])}, "count": 2}},
    ],
)
def test_a_policy_that_holds_an_evaluation_item_gets_no_verdict(make: Make, settings: Json) -> None:
    referee, _ = make(votes_help)
    referee.store.put("data", "d", {"kind": "train"}, {"train.jsonl": [LEAK]})
    with pytest.raises(ContaminationError):
        Door(referee).judge_policy(add_policy(referee.store, settings))
    assert not referee.store.all_verdicts()


def test_a_control_that_is_better_may_be_proposed_itself(make: Make) -> None:
    referee, _ = make(lambda name, number: number % 2 == 0 or name == f"{policy_id(VOTE)}@{BASE}")
    context = context_of(referee)
    assert legal_vote(context) is None, "a candidate waits"
    referee.store.put("evals", "v", {"model": "good", "split": "gate", "accepted": False, "shots": 0})
    propose(context, {"choice": vote_settings(16)}, VOTE)
    assert legal_vote(context) == {"samples": [4, 8]}, "16 are no better than greedy answers, 4 are"
    vote_on_answers(context, samples=4)
    assert referee.store.champion_policy() == policy_id(VOTE)


# --- nothing but the question


def test_no_gold_answer_is_in_what_answers_or_in_what_a_tool_can_read(make: Make) -> None:
    referee, jobs = make(votes_help)
    context = context_of(referee)
    vote_on_answers(context, samples=4)
    show_examples(context, source="fixed", count=2)
    search_prompt(context, proposals=2)
    referee.final()
    assert len(jobs.specs) > 10 and not any(SECRET in spec for spec in jobs.specs)
    files = [path for path in referee.store.run_dir.rglob("*.json*") if "referee" not in path.parts]
    assert files and not any(SECRET in path.read_text() for path in files)
    parts = {"policy", "engine", "memory", "store", "max_new_tokens", "failing", "ask_base", "taught"}
    assert set(Asked._fields) == parts


def test_tests_stay_with_the_referee_but_for_the_published_ones(make: Make) -> None:
    referee, _ = make(votes_help)
    row = {"tests": [SECRET], "public_tests": ["assert f(1) == 1"]}
    items = [Item("write f", SECRET, "all", row)]
    assert referee._public_tests(items) is None, "this task's scorer compares with a gold answer"
    referee.task.scorer["name"] = "code"
    assert referee._public_tests(items) == [["assert f(1) == 1"]]


def test_verifiers_are_illegal_where_only_the_gold_answer_tells(make: Make) -> None:
    referee, _ = make(votes_help)
    context = context_of(referee)
    assert legal_best(context) is None and legal_mending(context) is None
    with pytest.raises(ToolError, match="may not look at what scores it"):
        take_passing_answer(context, samples=4)
    # One that is written all the same has nothing to look at: it is a vote.
    resident = resident_of([[said("no"), said("no"), said("yes")]])
    store = referee.store
    chosen = answer(resident, store, BASE, add_policy(store, {"choice": best_settings(4)}), ["q"], 8)
    assert [one.text for one in chosen] == ["no"]


def test_where_a_judge_scores_nothing_chooses_by_a_judge(make: Make) -> None:
    referee, _ = make(votes_help)
    referee.judge("good")
    context, record = context_of(referee), referee.store.score(BASE)
    assert record is not None and legal_judged(context) == {"samples": [4, 8]}
    path = referee.store.folder("evals", record["id"]) / "record.json"
    write_json(path, read_json(path) | {"scorer_note": "judge, unchecked"})
    assert legal_judged(context) is None
    for take in (take_judged_answer, search_answer_tree):
        with pytest.raises(ToolError, match="may not look at what scores it"):
            take(context)


def test_a_tree_is_proposed_beside_a_vote_of_as_many_samples_as_a_step_has(make: Make) -> None:
    referee, _ = make(lambda name, number: number % 2 == 0 or name == f"{policy_id({'choice': tree_settings(2)})}@base")
    told = search_answer_tree(context_of(referee), branches=2)
    assert (told["kind"], told["accepted"]) == ("tree_search", True)
    assert (told["control"]["policy"], told["control"]["score"]) == (policy_id(VOTE), 0.5)
    assert referee.store.champion_policy() == policy_id({"choice": tree_settings(2)})


# --- what tools do


def test_nearest_examples_come_before_fixed_ones_which_are_their_control(make: Make) -> None:
    referee, _ = make(votes_help)
    referee.store.put("models", "other", {"parent": BASE, "dataset": "d", "datasets": [], "settings": {}})
    context = context_of(referee)
    assert legal_examples(context) is None, "a candidate waits"
    for model in ("good", "other"):
        referee.store.put("evals", model, {"model": model, "split": "gate", "accepted": False, "shots": 0})
    assert legal_examples(context) == {"source": ["fixed"], "count": [2, 4]}
    frozen_rows(referee.store)
    referee.store.quarantined = set  # type: ignore[method-assign]
    assert legal_examples(context) == {"source": ["nearest"], "count": [2, 4]}
    told = show_examples(context, source="nearest", count=2)
    assert told["accepted"] and told["control"]["kind"] == "few_shot" and told["control"]["n"] == 20
    control = referee.store.policy(told["control"]["policy"])
    assert control["settings"]["shots"]["examples"] == [["seed 0", "yes"], ["seed 1", "yes"]]
    assert set(write_policy(referee.store, context.store.run_dir)) == {"policy.json", "examples.jsonl"}


def test_the_prompt_search_keeps_what_scores_better_and_drops_what_quotes_a_question(make: Make) -> None:
    referee, jobs = make(votes_help)
    referee.store.put("evals", "v", {"model": "good", "split": "gate", "accepted": False, "shots": 0})
    context = context_of(referee)
    assert legal_search(context) == {}
    told = search_prompt(context, proposals=2)
    assert told["accepted"] and told["kind"] == "system prompt"
    store = referee.store
    assert store.policy(store.champion_policy())["settings"] == {"system": "Say yes."}
    (log,) = store.datasets("prompt_search")
    assert [row["system"] for row in store.rows("data", log["id"], "tried.jsonl")] == ["Say yes."] * 2
    assert legal_search(context) is None, "this search led here"
    num_jobs = len(jobs.specs)
    assert search_prompt(context, proposals=2) == told, "killed before its result was written, it goes on"
    assert len(jobs.specs) == num_jobs and len(store.datasets("prompt_search")) == 1
    asked = [json.loads(spec)[1] for spec in jobs.specs if "propose_prompts" in spec]
    assert [row["question"] for row in asked[0]["failures"]] == [f"search question {n}" for n in (1, 3, 5)]
    assert asked[1]["failures"] == [], "nothing is wrong any more under the better prompt"


def test_the_card_says_what_the_policy_is_and_costs(make: Make, tmp_path: Path) -> None:
    referee, _ = make(votes_help)
    assert write_policy(referee.store, tmp_path / "out") == ["policy.json"]
    assert read_json(tmp_path / "out" / "policy.json")["id"] == GREEDY
    vote_on_answers(context_of(referee), samples=4)
    section = "\n".join(policy_section(referee.store, BASE))
    assert "43.0 tokens a question, 4.3 times" in section and "most frequent" in section
    write_policy(referee.store, tmp_path / "out")
    assert read_json(tmp_path / "out" / "policy.json")["settings"] == VOTE


def test_a_proposal_changes_its_part_of_the_champions_policy_alone(make: Make) -> None:
    referee, _ = make(votes_help)
    vote_on_answers(context_of(referee), samples=4)
    assert changed(referee.store, system="Add.") == VOTE | {"system": "Add."}
