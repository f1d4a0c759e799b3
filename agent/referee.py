"""The referee: holds the evaluation splits, measures models, decides what is kept. Tools get its `Door` alone.

<run>/referee/ (owner-only): {search,gate,final}.jsonl with answers, read by this process alone; *.questions.jsonl for
the worker, which answers without knowing the answers; measured/<key>.json; evaluation_ids.json (hashes only);
verdicts.jsonl with the numbers behind accept and reject, which the planner never sees.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from agent.guards import GateAnswers, Guards
from agent.statistics import LOOKS, alpha_for, alpha_left, decide, look_sizes, paired_test, wilson_interval
from memory.records import append_jsonl, content_id, read_json, read_jsonl, write_json, write_jsonl
from memory.store import BASE, RunStore
from tools.contract import Jobs, Json
from tools.tasks.base import Item, Splits, SplitSizes, Task, Verdict, normalise
from tools.tasks.scorers import known_answer_checks
from tools.tasks.scoring import ScorerProcess

Split = Literal["search", "gate", "final"]


class IdentityError(RuntimeError):
    """What a score depends on has changed since the run began; the score is refused."""


class Referee:
    """Measures and judges for one run."""

    def __init__(self, store: RunStore, jobs: Jobs, task: Task, scorer: ScorerProcess, sizes: SplitSizes) -> None:
        self.store = store
        self.jobs = jobs
        self.task = task
        self.scorer = scorer
        self.sizes = sizes
        self.folder = store.run_dir / "referee"
        self.guards = Guards(store, jobs, task, scorer, self.folder)

    def measure(self, model_id: str, split: Split, shots: int = 0) -> Json:
        """Return the record {score, ci95, n, diagnosis, ...} of a model on a split; measured once.

        Raises IdentityError when the engine is not the one that measured the base model.
        """
        evaluation_id = content_id([model_id, split, shots])
        known = self.store.get("evals", evaluation_id)
        if split == "search" and known is not None:
            return known
        answers, verdicts, items = self._answer(model_id, split, shots)
        right = [verdict.right for verdict in verdicts]
        low, high = wilson_interval(sum(right), len(right))
        record = {
            "model": model_id,
            "split": split,
            "shots": shots,
            "score": round(sum(right) / len(right), 4),
            "ci95": [round(low, 4), round(high, 4)],
            "n": len(right),
            "diagnosis": _diagnose(items, verdicts, answers["stopped"]),
            "prompt_tokens_per_item": answers["prompt_tokens_per_item"],
            "answer_tokens_per_item": answers["answer_tokens_per_item"],
            "split_sizes": self.sizes._asdict(),
            "suite": content_id([item.id for item in items]),
            "identity": answers["identity"],
        }
        if split != "search":
            return record
        rows = [
            {"id": item.id, "question": item.question, "answer": text, "verdict": verdict.kind}
            for item, text, verdict in zip(items, answers["answers"], verdicts, strict=True)
        ]
        return self.store.put("evals", evaluation_id, record, {"items.jsonl": rows})

    def judge(self, candidate: str) -> Json:
        """Decide whether a candidate becomes the champion; returns {"accepted", "n", "refused_by"}, nothing else.

        A sign test on the paired gate results, in steps, at a level that accounts for all candidates of the run; then
        the guards, on one that passed. refused_by: names of the guards that refuse it. The champion was or is measured
        on the same engine, checked by its identity.
        """
        known = next((verdict for verdict in self.store.verdicts() if verdict["model"] == candidate), None)
        if known is None:
            known = self._judge(candidate)
        return {"accepted": known["accepted"], "n": known["n"], "refused_by": known["refused_by"]}

    def _judge(self, candidate: str) -> Json:
        champion = self.store.champion()
        earlier = [verdict["accepted"] for verdict in self.store.verdicts()]
        alpha = alpha_for(earlier)
        better, looks, answers = self._gate_in_steps(champion, candidate, alpha)
        guards = self.guards.check(champion, candidate, answers) if better else []
        refused_by = [guard["name"] for guard in guards if not guard["ok"]]
        accepted = better and not refused_by
        number = len(earlier) + 1
        detail = {"candidate": candidate, "champion": champion, "number": number, "accepted": accepted, "alpha": alpha}
        detail |= {"alpha_left": alpha_left([*earlier, accepted]), "gate_items": self.sizes.gate, "looks": looks}
        detail |= {"guards": guards, "refused_by": refused_by}
        if candidate not in {row["candidate"] for row in read_jsonl(self.folder / "verdicts.jsonl")}:
            append_jsonl(self.folder / "verdicts.jsonl", [detail | looks[-1]])
        public = {"model": candidate, "split": "gate", "shots": 0, "champion": champion, "accepted": accepted}
        public |= {"n": looks[-1]["num_items"], "number": number, "refused_by": refused_by}
        return self.store.put("evals", content_id([candidate, "gate", 0]), public)

    def _gate_in_steps(
        self, champion: str, candidate: str, alpha: float
    ) -> tuple[bool, list[Json], tuple[GateAnswers, GateAnswers]]:
        """Let both answer gate items until the verdict is clear; returns it, each look, and what both answered."""
        answers = GateAnswers([], [], []), GateAnswers([], [], [])
        looks: list[Json] = []
        sizes = look_sizes(self.sizes.gate)
        for look, stop in enumerate(sizes):
            for model, known in zip((champion, candidate), answers, strict=True):
                told, verdicts, _ = self._answer(model, "gate", 0, len(known.verdicts), stop)
                known.verdicts.extend(verdicts)
                known.stopped.extend(told["stopped"])
                known.num_tokens.extend(told["num_tokens"])
            test = paired_test(*([verdict.right for verdict in known.verdicts] for known in answers))
            better = decide(test, look, self.sizes.gate, alpha)
            looks.append(test._asdict() | {"level": LOOKS[look][1] * alpha})
            if better is not None:
                return better, looks, answers
        raise AssertionError("unreachable: the last look always decides")

    def verdict_detail(self, candidate: str) -> Json:
        """Return the numbers behind a verdict, for people: fixed, broken, p-value, level."""
        return next(row for row in read_jsonl(self.folder / "verdicts.jsonl") if row["candidate"] == candidate)

    def final(self) -> Json:
        """Open the final split: base zero-shot, base few-shot and champion, each with interval; opened once."""
        path = self.folder / "final.json"
        if not path.exists():
            num_shots = len(self.task.seed_examples())
            champion = self.store.champion()
            arms = {"base_zero_shot": (BASE, 0), "base_few_shot": (BASE, num_shots), "champion": (champion, 0)}
            records = {name: self.measure(model, "final", shots) for name, (model, shots) in arms.items()}
            scores = {name: {"score": row["score"], "ci95": row["ci95"]} for name, row in records.items()}
            by_difficulty = records["champion"]["diagnosis"]["by_difficulty"]
            head = {"n": records["champion"]["n"], "num_shots": num_shots, "champion_by_difficulty": by_difficulty}
            write_json(path, head | scores)
        return read_json(path)

    def remove_overlaps(self, rows: list[Json]) -> tuple[list[Json], list[Json]]:
        """Split training rows into kept ones and ones whose question is an evaluation item, by normalised text."""
        held_out = set(read_json(self.folder / "evaluation_ids.json"))
        overlap = [content_id(normalise(row["prompt"])) in held_out for row in rows]
        kept = [row for row, held in zip(rows, overlap, strict=True) if not held]
        return kept, [row for row, held in zip(rows, overlap, strict=True) if held]

    def _answer(
        self, model_id: str, split: Split, shots: int, start: int = 0, stop: int | None = None
    ) -> tuple[Json, list[Verdict], list[Item]]:
        """Return what a model answers to the items start..stop of a split (None = to the end), scored."""
        items = [Item.from_json(row) for row in read_jsonl(self.folder / f"{split}.jsonl")][start:stop]
        args = {
            "model": model_id,
            "questions_file": f"referee/{split}.questions.jsonl",
            "start": start,
            "stop": stop,
            "shots": shots > 0,
            "max_new_tokens": self.task.max_new_tokens,
        }
        answers, _ = self.jobs.run("tools.evaluate.answer:answer_questions", args)
        self._check_identity(answers["identity"])
        return answers, self.scorer.score(list(zip(items, answers["answers"], strict=True))), items

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
        self._measure, self.judge, self.remove_overlaps = referee.measure, referee.judge, referee.remove_overlaps

    def measure(self, model_id: str, split: Literal["search"], shots: int = 0) -> Json:
        """Return the record of a model on the search split; asking for another split raises ValueError."""
        if split != "search":
            raise ValueError(f"tools see the search split only, not {split!r}")
        return self._measure(model_id, split, shots)


def draw_splits(task: Task, sizes: SplitSizes, seed: int, scorer: ScorerProcess) -> Splits:
    """Return the evaluation splits, with the scorer checked on known answers.

    Raises ValueError when there are too few items or the scorer cannot tell right from wrong.
    """
    splits = task.splits(sizes, seed)
    random.Random(seed).shuffle(splits.gate)  # a verdict may be clear after the first items: no kind may come first
    failures = known_answer_checks(splits.search[:16], scorer.score)
    if failures:
        raise ValueError(f"the scorer fails its known-answer checks: {'; '.join(failures[:3])}")
    return splits


def seal_splits(run_dir: Path, splits: Splits) -> None:
    """Write the splits where only their owner can read them, and the hashes by which others avoid their items."""
    folder = run_dir / "referee"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, items in splits._asdict().items():
        write_jsonl(folder / f"{name}.jsonl", [item.to_json() for item in items])
        write_jsonl(folder / f"{name}.questions.jsonl", [{"id": item.id, "question": item.question} for item in items])
        (folder / f"{name}.jsonl").chmod(0o600)
    write_json(folder / "evaluation_ids.json", sorted(item.id for items in splits for item in items))


def _diagnose(items: list[Item], verdicts: list[Any], stopped: list[bool]) -> Json:
    """Return the score by difficulty (weakest first) and the kinds of errors, most frequent first."""
    groups: dict[str, list[bool]] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        groups.setdefault(item.difficulty, []).append(verdict.right)
    scores = [
        {
            "difficulty": name,
            "score": round(sum(right) / len(right), 3),
            "ci95": [round(bound, 3) for bound in wilson_interval(sum(right), len(right))],
            "n": len(right),
        }
        for name, right in groups.items()
    ]
    by_difficulty = sorted(scores, key=lambda group: (group["score"], group["difficulty"]))
    errors = Counter(
        "never stopped" if not ended else verdict.kind
        for verdict, ended in zip(verdicts, stopped, strict=True)
        if not verdict.right
    )
    return {"by_difficulty": by_difficulty, "weakest": by_difficulty[0], "errors": dict(errors.most_common())}
