"""The referee: holds the evaluation splits, measures models, decides what is kept. Tools get its `Door` alone.

<run>/referee/ (owner-only, and closed to tools and worker by the kernel): {search,gate,final}.jsonl with answers, read
by this process alone (the worker gets the questions in its jobs, which tools cannot read); evaluation_ids.json (hashes
only, for the worker); verdicts.jsonl with the numbers behind accept and reject, which the planner never sees; when the
run ends final.json, and final_answers.jsonl with right or wrong of each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from agent.figures import diagnose, gain, tokens_per_question
from agent.final_pair import FINAL_ANSWERS
from agent.guards import Evidence, Finding, GateAnswers, Guards, form
from agent.identity import IdentityError, check_identity, check_model, check_policy
from agent.sealing import count_look, looks_before, verdicts_before
from agent.statistics import (
    LOOKS,
    alpha_for,
    alpha_left,
    decide,
    look_sizes,
    paired_test,
    wilson_interval,
)
from memory.records import append_jsonl, content_id, read_json, read_jsonl, write_json, write_jsonl
from memory.store import BASE, GREEDY, RunStore, policy_candidate
from tools.contract import Jobs, Json, Overlaps, ToolError
from tools.refine.policy import datasets_of, settings_of
from tools.tasks.base import Item, SplitSizes, Task, Verdict
from tools.tasks.judge import JudgeScorer
from tools.tasks.scoring import ScorerProcess

Split = Literal["search", "gate", "final"]
SPLITS: tuple[Split, ...] = get_args(Split)
Scoring = ScorerProcess | JudgeScorer


class ContaminationError(RuntimeError):
    """A candidate was trained on what it would be judged by, or its data is not what it was trained on."""


class Side(NamedTuple):
    """Who answers: a model under an inference policy."""

    model: str
    policy: str


class Referee:
    """Measures and judges for one run."""

    def __init__(
        self,
        store: RunStore,
        jobs: Jobs,
        task: Task,
        scorer: Scoring,
        sizes: SplitSizes,
        affords: Callable[[float], bool] = lambda tokens: True,
        replayed: Path | None = None,
    ) -> None:
        """Take what a verdict is made with.

        affords: whether the budget pays for so many tokens of evaluation beside the final one.
        replayed: the referee's folder of the run that this one repeats, whose budget ended verdicts there.
        """
        self.store = store
        self.jobs = jobs
        self.task = task
        self.scorer = scorer
        self.sizes = sizes
        self.affords = affords
        self.folder = store.run_dir / "referee"
        self.told = [self.folder, *([replayed] if replayed else [])]
        self.guards = Guards(jobs, task, scorer, self.folder)

    def measure(self, model_id: str, split: Split, shots: int = 0, policy: str | None = None) -> Json:
        """Return the record {score, ci95, n, diagnosis, ...} of a model under a policy on a split; measured once.

        policy None = the champion's. shots: with the task's seed examples, an arm for which there is no policy.
        Raises IdentityError when anything that a score depends on is not what the run began with.
        """
        policy = GREEDY if shots else policy or self.store.champion_policy()
        evaluation_id = content_id([model_id, split, shots, *([] if policy == GREEDY else [policy])])
        known = self.store.get("evals", evaluation_id)
        if split == "search" and known is not None:
            return known
        record, rows = self._measure(Side(model_id, policy), split, shots)
        return self.store.put("evals", evaluation_id, record, {"items.jsonl": rows}) if split == "search" else record

    def _measure(self, side: Side, split: Split, shots: int) -> tuple[Json, list[Json]]:
        """Return the record and a row for each item."""
        answers, verdicts, items = self._answer(side, split, shots)
        right = [verdict.right for verdict in verdicts]
        low, high = wilson_interval(sum(right), len(right))
        record = {
            "model": side.model,
            "split": split,
            "shots": shots,
            "policy": side.policy,
            "score": round(sum(right) / len(right), 4),
            "ci95": [round(low, 4), round(high, 4)],
            "n": len(right),
            "diagnosis": diagnose(items, verdicts, answers["stopped"]),
            "prompt_tokens_per_item": answers["prompt_tokens_per_item"],
            "answer_tokens_per_item": answers["answer_tokens_per_item"],
            "tokens_per_question": tokens_per_question(answers),
            "num_public_tests": sum(map(len, self._public_tests(items) or [])),
            "split_sizes": self.sizes._asdict(),
            "first_look": look_sizes(self.sizes.gate)[0],
            "suite": content_id([item.id for item in items]),
            "identity": answers["identity"],
        }
        note = self.scorer.note(list(zip(items, answers["answers"], strict=True)), verdicts)
        if note:  # a judge's score is an opinion, and says so wherever it is shown
            record["scorer_note"] = note
        rows = [
            {"id": item.id, "question": item.question, "answer": text, "verdict": verdict.kind}
            for item, text, verdict in zip(items, answers["answers"], verdicts, strict=True)
        ]
        return record, rows

    def judge(self, candidate: str) -> Json:
        """Decide whether a candidate becomes the champion; returns {"accepted", "n", "refused_by"}, nothing else.

        A sign test on the paired gate results, in steps, at a level that accounts for all candidates of the run; then
        the guards, on one that passed. refused_by: names of the guards that refuse it. The champion was or is measured
        on the same engine and under the same policy, checked by its identity.
        """
        known = next((verdict for verdict in self.store.verdicts() if verdict["model"] == candidate), None)
        if known is None:
            policy = self.store.champion_policy()
            known = self._judge(candidate, Side(self.store.champion(), policy), Side(candidate, policy))
        return {"accepted": known["accepted"], "n": known["n"], "refused_by": known["refused_by"]}

    def judge_policy(self, policy: str) -> Json:
        """Decide whether the champion is asked by this policy from now on; returns what `judge` returns.

        The same test at the same level, with the champion's weights on both sides, each policy at its own cost, which
        the verdict states. Of the guards only `form` is asked: the others are about weights, or limit what is stated.
        """
        model = self.store.champion()
        known = self.store.policy_verdict(model, policy)
        if known is None:
            known = self._judge(
                policy_candidate(policy, model), Side(model, self.store.champion_policy()), Side(model, policy)
            )
        return {"accepted": known["accepted"], "n": known["n"], "refused_by": known["refused_by"]}

    def _judge(self, candidate: str, champion: Side, challenger: Side) -> Json:
        earlier = verdicts_before(self.store)
        alpha = alpha_for(earlier)
        better, looks, answers, tokens = self._gate_in_steps(champion, challenger, alpha, self._looks_taken(candidate))
        tries_policy = champion.policy != challenger.policy
        guards: list[Finding] = []
        if better:
            guards = [form(Evidence(answers))] if tries_policy else self.guards.check(
                champion.model, challenger.model, answers
            )  # fmt: skip
        refused_by = [guard["name"] for guard in guards if not guard["ok"]]
        accepted = better and not refused_by
        sides: Json = {"champion": champion.model, "policy": challenger.policy, "champion_policy": champion.policy}
        sides |= {"tries_policy": tries_policy, "number": len(earlier) + 1, "accepted": accepted}
        detail = sides | {"candidate": candidate, "alpha": alpha, "alpha_left": alpha_left([*earlier, accepted])}
        detail |= {"gate_items": self.sizes.gate, "looks": looks, "guards": guards, "refused_by": refused_by}
        detail |= {"tokens_per_question": dict(zip(("champion", "candidate"), tokens, strict=True))}
        if candidate not in {row["candidate"] for row in read_jsonl(self.folder / "verdicts.jsonl")}:
            append_jsonl(self.folder / "verdicts.jsonl", [detail | looks[-1]])
        # How many items it took would tell how clear the gain was: only the people's record has that.
        public = {"model": challenger.model, "split": "gate", "shots": 0, "n": self.sizes.gate} | sides
        name = [challenger.model, "gate", 0, *([challenger.policy] if tries_policy else [])]
        return self.store.put("evals", content_id(name), public | {"candidate": candidate, "refused_by": refused_by})

    def _gate_in_steps(
        self, champion: Side, challenger: Side, alpha: float, num_looks: int | None
    ) -> tuple[bool, list[Json], tuple[GateAnswers, GateAnswers], list[float]]:
        """Let both answer gate items until the verdict is clear.

        Where the budget does not pay for the next look, the candidate is rejected: that never makes a wrong promotion
        likelier, and leaves the budget what the final evaluation needs. num_looks: after how many a verdict that is
        given again ended; None = it is new. Returns the verdict, each look, what both answered, and the tokens per
        question of both.
        """
        answers = GateAnswers([], [], []), GateAnswers([], [], [])
        tokens = [0.0, 0.0]
        looks: list[Json] = []
        sizes = look_sizes(self.sizes.gate)
        for look, stop in enumerate(sizes):
            for place, (side, known) in enumerate(zip((champion, challenger), answers, strict=True)):
                told, verdicts, _ = self._answer(side, "gate", 0, len(known.verdicts), stop)
                known.verdicts.extend(verdicts)
                known.stopped.extend(told["stopped"])
                known.num_tokens.extend(told["num_tokens"])
                tokens[place] += tokens_per_question(told) * len(verdicts)
            test = paired_test(*([verdict.right for verdict in known.verdicts] for known in answers))
            better = decide(test, look, self.sizes.gate, alpha)
            looks.append(test._asdict() | {"level": LOOKS[look][1] * alpha})
            if better is None:
                needed = (sizes[look + 1] - stop) * (sum(tokens) / stop + len(tokens))
                if not (self.affords(needed) if num_looks is None else look + 1 < num_looks):
                    looks[-1]["budget_ended"], better = True, False
            if better is not None:
                return better, looks, answers, [round(spent / stop, 2) for spent in tokens]
        raise AssertionError("unreachable: the last look always decides")

    def _looks_taken(self, candidate: str) -> int | None:
        """Return after how many looks this verdict ended before a kill or in the run replayed; None = never."""
        rows = (row for folder in self.told for row in read_jsonl(folder / "verdicts.jsonl"))
        return next((len(row["looks"]) for row in rows if row["candidate"] == candidate), None)

    def verdict_detail(self, candidate: str) -> Json:
        """Return the numbers behind a verdict, for people: fixed, broken, p-value, level."""
        found: Json = next(row for row in read_jsonl(self.folder / "verdicts.jsonl") if row["candidate"] == candidate)
        note = self.scorer.note([], [])
        return found | ({"scorer_note": note} if note else {})

    def final(self) -> Json:
        """Open the final split: base zero-shot, base few-shot, champion, with interval and diagnosis; opened once.

        The champion answers under its policy; a trained one whose policy is not greedy also greedily, as an arm more.
        "gain": the champion against the better baseline on the same items, with a paired test in both directions.
        """
        path = self.folder / "final.json"
        if not path.exists():
            num_shots = len(self.task.seed_examples())
            champion = Side(self.store.champion(), self.store.champion_policy())
            arms = {"base_zero_shot": (Side(BASE, GREEDY), 0), "base_few_shot": (Side(BASE, GREEDY), num_shots)}
            if champion.policy != GREEDY and champion.model != BASE:
                arms["champion_greedy"] = (Side(champion.model, GREEDY), 0)
            arms["champion"] = (champion, 0)
            measured = {name: self._measure(side, "final", shots) for name, (side, shots) in arms.items()}
            records = {name: record for name, (record, _) in measured.items()}
            right = {name: [row["verdict"] == "right" for row in rows] for name, (_, rows) in measured.items()}
            shown = ("score", "ci95", "diagnosis", "scorer_note", "tokens_per_question")
            scores = {name: {key: row[key] for key in shown if key in row} for name, row in records.items()}
            head: Json = {"n": records["champion"]["n"], "num_shots": num_shots, "policy": champion.policy}
            baseline = max(("base_zero_shot", "base_few_shot"), key=lambda name: sum(right[name]))
            head["gain"] = {"over": baseline} | gain(right[baseline], right["champion"])
            rows = [{"id": row["id"], "verdict": row["verdict"]} for row in measured["champion"][1]]
            write_jsonl(self.folder / FINAL_ANSWERS, rows)
            head["looks_before"] = looks_before(self.store.run_dir)
            head["evaluation_seed"] = read_json(self.folder / "evaluation_seed.json")
            write_json(path, head | scores)
        return read_json(path)

    def remove_overlaps(self, rows: list[Json]) -> Overlaps:
        """Split training rows into kept ones and ones that overlap with any of the three splits.

        Compared are the prompt alone and with the completion behind it, in which another question may hide. The worker
        compares them with the questions; of an evaluation item only the kind of overlap comes back.
        """
        held_out = [item.question for split in SPLITS for item in self.items(split)]
        texts = [(place, row["prompt"]) for place, row in enumerate(rows)]
        texts += [
            (place, f"{text} {rows[place]['completion']}") for place, text in texts if "completion" in rows[place]
        ]
        args = {"questions": [text for _, text in texts], "held_out": held_out, "generated": self.task.generated}
        found, _ = self.jobs.run("tools.select.contamination:find_overlaps", args)
        reasons: dict[int, str] = {}
        for (place, _), reason in zip(texts, found["reasons"], strict=True):
            if reason is not None:
                reasons.setdefault(place, reason)
        kept = [row for place, row in enumerate(rows) if place not in reasons]
        removed = [rows[place] | {"reason": reason} for place, reason in sorted(reasons.items())]
        return Overlaps(kept, removed, found["num_same_template"])

    def items(self, split: Split) -> list[Item]:
        """Return the items of a split, with their answers."""
        return [Item.from_json(row) for row in read_jsonl(self.folder / f"{split}.jsonl")]

    def check_training_data(self, candidate: str) -> None:
        """Raise ContaminationError when the candidate learned from evaluation items, or its datasets were changed.

        Looks at all that was trained on since the last accepted model of its lineage, rehearsed examples too.
        """
        accepted = {verdict["model"] for verdict in self.store.verdicts() if verdict["accepted"]}
        lineage = self.store.lineage(candidate)
        start = max((place for place, model in enumerate(lineage, 1) if model["id"] in accepted), default=0)
        for model in lineage[start:]:
            for dataset in dict.fromkeys([*model["datasets"], *model.get("rehearse", [])]):
                self._check_dataset(candidate, dataset, model.get("data_hashes", {}).get(dataset))

    def check_policy_data(self, policy: str) -> None:
        """Raise ContaminationError when a policy holds evaluation items, or draws on datasets that were changed."""
        settings = settings_of(self.store, policy)
        for dataset, made_with in datasets_of(settings):
            self._check_dataset(policy, dataset, made_with)
        examples = settings.get("shots", {}).get("examples", [])
        shown = [text for question, answer in examples for text in (question, f"{question} {answer}")]
        texts = [{"prompt": text} for text in (settings.get("system"), *shown) if text]
        if texts and self.remove_overlaps(texts).removed:
            raise ContaminationError(
                f"no verdict on policy {policy}: its prompt holds evaluation items; start a new run without the tool "
                "that made it"
            )

    def _check_dataset(self, candidate: str, dataset: str, trained_on: str | None) -> None:
        rows = self.store.rows("data", dataset, "train.jsonl")
        if trained_on not in (None, content_id(rows)):
            raise ContaminationError(
                f"no verdict on {candidate}: dataset {dataset} is not what it was trained on; a tool changed it "
                "afterwards, so start a new run without that tool"
            )
        overlapping = self.remove_overlaps(rows).removed
        if overlapping:
            raise ContaminationError(
                f"no verdict on {candidate}: {len(overlapping)} of the {len(rows)} examples of dataset {dataset} "
                "are evaluation items; start a new run without the tool that made it"
            )

    def _answer(
        self, side: Side, split: Split, shots: int, start: int = 0, stop: int | None = None
    ) -> tuple[Json, list[Verdict], list[Item]]:
        """Return what one side answers to the items start..stop of a split (None = to the end), scored."""
        check_identity(self.store.run_dir, self.task)
        check_model(self.store, side.model)
        check_policy(self.store, side.policy)
        if split != "search" and start == 0:
            count_look(self.store.run_dir, split)
        items = self.items(split)[start:stop]
        args = {
            "model": side.model,
            "policy": side.policy,
            "questions": [item.question for item in items],
            "tests": self._public_tests(items),
            "shots": shots > 0,
            "max_new_tokens": self.task.max_new_tokens,
        }
        answers, _ = self.jobs.run("tools.evaluate.answer:answer_questions", args)
        self._check_identity(answers["identity"])
        return answers, self.scorer.score(list(zip(items, answers["answers"], strict=True))), items

    def _public_tests(self, items: list[Item]) -> list[list[Any]] | None:
        """Return the tests that each item publishes, None where nothing is checked by tests.

        All that policies learn of an item beside its question: what a user wrote under "public_tests".
        """
        if self.task.scorer["name"] != "code":
            return None
        return [list(item.metadata.get("public_tests", [])) for item in items]

    def _check_identity(self, identity: Json) -> None:
        path = self.folder / "identity.json"
        if not path.exists():
            write_json(path, identity)
        began = read_json(path)
        changed = [f"{name} {began.get(name)} -> {new}" for name, new in identity.items() if began.get(name) != new]
        if changed:
            raise IdentityError(
                f"this score would not compare with the run's earlier ones: {', '.join(changed)}; resume on the "
                "machine and with the libraries the run began with, or start a new run"
            )


class Door:
    """What tools see of the referee (`tools.contract.Judge`): nothing of the gate and final splits comes through."""

    def __init__(self, referee: Referee) -> None:
        self._referee, self.remove_overlaps = referee, referee.remove_overlaps

    def measure(self, model_id: str, split: Literal["search"], shots: int = 0, policy: str | None = None) -> Json:
        """Return the record of a model on the search split; asking for another split raises ToolError."""
        if split != "search":
            raise ToolError(f"tools see the search split only, not {split!r}")
        return self._referee.measure(model_id, split, shots, policy)

    def judge(self, candidate: str) -> Json:
        """Decide on a trained model. Raises ContaminationError when its data forbids a verdict."""
        if candidate == BASE:
            raise ToolError("the base model is no candidate; train one first")
        self._referee.check_training_data(candidate)
        self.measure(candidate, "search")  # the situation shows every judged model's search score
        return self._referee.judge(candidate)

    def judge_policy(self, policy: str) -> Json:
        """Decide on a policy for the champion. Raises ContaminationError when what it shows the model forbids one."""
        if policy == self._referee.store.champion_policy():
            raise ToolError("this is the champion's policy already; propose another one")
        self._referee.check_policy_data(policy)
        self._referee.measure(self._referee.store.champion(), "search", policy=policy)
        return self._referee.judge_policy(policy)
