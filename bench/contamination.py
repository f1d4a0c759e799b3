"""Copies of evaluation questions planted among clean ones: how many are found, and how many clean ones are lost.

    .venv/bin/python -m bench.contamination [--quick] [--json] [--seed 0]

Four generated families (reasoning-gym) and a fixed benchmark of written questions (contamination_questions.jsonl, cut
at random into evaluation and clean ones, as a JSONL task is, several times). Planted: exact, re-ordered, reworded by
rules (seen, looked at and held out: see rewordings.py), by SmolLM2-135M, by hand (written ones only; no target), and
with other numbers, which is contamination of the fixed benchmark and the task itself for a generated one. Beside it
the control: normalised exact match alone. --quick: fewer evaluation, clean and planted questions.

Targets: recall over all families, per kind; clean questions lost, per family.
"""

import argparse
import random
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from agent.config import DEFAULT_TASK
from agent.statistics import wilson_interval
from bench.common import ROOT, finish, fresh_folder, machine
from bench.rewordings import HELD_OUT, LOOKED_AT, REORDERINGS, SEEN, exact, renumbered
from memory.records import content_id, read_jsonl, write_json
from memory.vectors import carriers
from tools.engines.base import Sampling, build_messages
from tools.engines.models import DEFAULT_MODEL, resolve_embedder, resolve_model
from tools.engines.transformers_engine import TransformersEngine, limit_threads
from tools.jobs.job import Job
from tools.jobs.worker import Resident
from tools.select.contamination import find_overlaps
from tools.tasks import load_task
from tools.tasks.base import SplitSizes, normalise

GENERATED = {
    "chain_sum (default)": DEFAULT_TASK,
    "leg_counting": "reasoning_gym:leg_counting",
    "family_relationships": "reasoning_gym:family_relationships",
    "gsm_symbolic": "reasoning_gym:gsm_symbolic",
}
LEAST_RECALL = {
    "exact": 1.0,
    "reordered": 1.0,
    "rules seen": 0.95,
    "rules looked at": 0.95,
    "rules held out": 0.95,
    "model": 0.8,
    "renumbered, fixed": 0.95,
}
"""Share that must be found; the last has no number of its own in the aim and takes that of the rules."""
MOST_FALSE_POSITIVES = 0.01
KEPT = ("clean", "renumbered, generated")
"""Kinds that must not be removed."""
MODEL_SHOTS = [
    (
        "Tom has 14 apples and buys 3 more at the market.",
        "When Tom already owns 14 apples, he gets 3 more from the market.",
    ),
    ("Compute 7 + 12 =", "What is the result of 7 + 12?"),
    ("Ben is married to Lea.", "Ben and Lea are a married couple."),
    ("Which river flows through Paris?", "What is the name of the river in Paris?"),
]
MODEL_ORIGINALS = 24
"""Questions of a family that the model rewords: it is slow on two cores."""


class Family(NamedTuple):
    """Questions of one task."""

    name: str
    generated: bool
    evaluation: list[str]
    clean: list[str]
    by_hand: list[tuple[str, str]]
    """Written rewordings of evaluation questions, each with whether it was seen while the detector was designed."""


class Row(NamedTuple):
    """One planted or clean question."""

    kind: str
    detail: str
    text: str


def generated_family(name: str, spec: str, num_evaluation: int, num_clean: int, seed: int) -> Family:
    """Return a family with questions of the task's splits and, as clean ones, of its training stream."""
    task = load_task(spec)
    items = [item for split in task.splits(SplitSizes(num_evaluation, 1, 1), seed) for item in split]
    held = {item.id for item in items}
    clean = {item.id: item.question for item in task.stream(0, 2 * num_clean, seed) if item.id not in held}
    return Family(name, True, [item.question for item in items], list(clean.values())[:num_clean], [])


def written_family(seed: int) -> Family:
    """Return the fixed benchmark, half of its questions drawn for the evaluation; the other half is clean."""
    rows = list(enumerate(read_jsonl(ROOT / "bench" / "contamination_questions.jsonl")))
    random.Random(seed).shuffle(rows)
    held, others = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    by_hand = [("held out" if place % 2 else "seen", row["reworded"]) for place, row in held if "reworded" in row]
    evaluation, clean = ([row["question"] for _, row in side] for side in (held, others))
    return Family("written (fixed)", False, evaluation, clean, by_hand)


def plant(family: Family, count: int, model_copies: dict[str, list[str]], seed: int) -> list[Row]:
    """Return copies of up to `count` evaluation questions of every kind and rule, and the clean questions."""
    rng = random.Random(seed)
    originals = rng.sample(family.evaluation, min(count, len(family.evaluation)))
    rows = [Row("clean", "", text) for text in family.clean]
    rows += [Row("exact", "", copy) for text in originals for copy in exact(text)]
    for kind, rules in (("rules seen", SEEN), ("rules looked at", LOOKED_AT), ("rules held out", HELD_OUT)):
        rows += [
            Row(kind, name, copy)
            for name, rule in rules.items()
            for text in originals
            if (copy := rule(text)) is not None
        ]
    rows += [
        Row("reordered", rule.__name__, copy) for rule in REORDERINGS for text in originals if (copy := rule(text))
    ]
    kind = "renumbered, generated" if family.generated else "renumbered, fixed"
    held = {normalise(text) for text in family.evaluation}  # another number can make another evaluation question
    copies = [copy for text in originals if (copy := renumbered(text, rng)) and normalise(copy) not in held]
    rows += [Row(kind, "", copy) for copy in copies]
    rows += [Row("model", "", copy) for text in originals for copy in model_copies.get(text, [])]
    return rows + [Row("by hand", detail, copy) for detail, copy in family.by_hand]


def reword_by_model(engine: Any, originals: list[str], num_samples: int, seed: int) -> tuple[dict[str, list[str]], int]:
    """Return questions with sentences reworded by the model, at most num_samples each, and how many it wrote.

    The model loses the thread of longer texts, so it gets one sentence at a time. Its answer is kept when it has the
    same carriers in the same order, does not turn a statement into a question, and is no exact copy. A sentence
    without carriers, or without an answer that passes, stays as it is; a question of such sentences alone is left out.
    """
    parts = {text: re.split(r"(?<=[.?!])\s+", text.strip()) for text in originals}
    asked = sorted({part for sentences in parts.values() for part in sentences if what_carries(part)})
    shots = [(f"Rephrase: {question}", reworded) for question, reworded in MODEL_SHOTS]
    chats = [build_messages(f"Rephrase: {part}", shots) for part in asked]
    answers = engine.generate(chats, Sampling(64, num_samples, 0.7, seed, top_k=40))
    passed: dict[str, list[str]] = {
        part: [
            copy
            for copy in dict.fromkeys(
                completion.text.strip() for completion in completions if completion.finish == "stop"
            )
            if what_carries(copy) == what_carries(part)
            and normalise(copy) != normalise(part)
            and not (part.endswith(".") and copy.endswith("?"))
        ]
        for part, completions in zip(asked, answers, strict=True)
    }
    copies: dict[str, list[str]] = {}
    for text, sentences in parts.items():
        choices = [passed.get(sentence) or [sentence] for sentence in sentences]
        made = (" ".join(choice[number % len(choice)] for choice in choices) for number in range(num_samples))
        copies[text] = [copy for copy in dict.fromkeys(made) if copy != " ".join(sentences)]
    return copies, num_samples * len(asked)


def what_carries(text: str) -> list[str]:
    """Return the numbers, operators and names of a text in order, by the rule of curation, not by the detector's."""
    return [carrier for carrier in carriers(text) if carrier != "="]


def detect(family: Family, rows: list[Row], seed: int) -> tuple[list[str | None], int, float]:
    """Return each row's reason, how many kept rows share a template, and the seconds it took, embedder loaded."""
    run_dir = Path(fresh_folder())
    settings = {"embedder_dir": str(resolve_embedder(ROOT / "models")), "task": "", "engine": "transformers"}
    write_json(run_dir / "worker.json", settings)
    folder = run_dir / "jobs" / "contamination"
    folder.mkdir(parents=True)
    job = Job(folder, Resident(run_dir))
    job.resident.memory.embed(["warm up"])
    started = time.perf_counter()
    found = find_overlaps(job, [row.text for row in rows], family.evaluation, family.generated)
    return found["reasons"], found["num_same_template"], time.perf_counter() - started


def count_by(rows: list[dict[str, Any]], *names: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return n, found, found by the control and the reasons for every combination of these columns."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return {
        key: {
            "n": len(group),
            "found": sum(row["reason"] is not None for row in group),
            "control": sum(row["control"] for row in group),
            "reasons": dict(Counter(row["reason"] for row in group if row["reason"]).most_common()),
        }
        for key, group in groups.items()
    }


def share(count: int, total: int) -> str:
    """Return "95.0 % [90.1, 97.6]"."""
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def print_table(groups: dict[tuple[str, ...], dict[str, Any]], columns: str) -> None:
    """Print the groups as a Markdown table."""
    print(f"\n| {columns} | n | removed | exact match alone | reasons |")
    print("|---" * (columns.count("|") + 5) + "|")
    for key, group in sorted(groups.items()):
        reasons = ", ".join(f"{name} {count}" for name, count in group["reasons"].items())
        own, control = (share(group[name], group["n"]) for name in ("found", "control"))
        print(f"| {' | '.join(key)} | {group['n']} | {own} | {control} | {reasons} |")


def is_reached(kinds: dict[tuple[str, ...], dict[str, Any]], by_family: dict[tuple[str, ...], dict[str, Any]]) -> bool:
    """Return whether every kind was found often enough and no family lost too many questions it should keep."""
    found = all(kinds[kind,]["found"] >= least * kinds[kind,]["n"] for kind, least in LEAST_RECALL.items())
    kept = (group for (_, kind), group in by_family.items() if kind in KEPT)
    return found and all(group["found"] <= MOST_FALSE_POSITIVES * group["n"] for group in kept)


def main() -> None:
    """Plant, detect and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show-missed", action="store_true", help="print copies that were missed and clean ones lost")
    arguments = parser.parse_args()
    num_evaluation, num_clean, count = (300, 300, 20) if arguments.quick else (1500, 2000, 60)
    seed = arguments.seed
    families = [generated_family(name, spec, num_evaluation, num_clean, seed) for name, spec in GENERATED.items()]
    families += [written_family(seed + number) for number in range(1 if arguments.quick else 4)]
    limit_threads()
    engine = TransformersEngine(resolve_model(DEFAULT_MODEL, ROOT / "models"), "float32")
    rows: list[dict[str, Any]] = []
    runs: dict[str, Any] = {}
    for family in families:
        originals = random.Random(seed).sample(family.evaluation, min(count, len(family.evaluation)))
        num_originals = 10 if arguments.quick else MODEL_ORIGINALS
        copies, num_written = reword_by_model(engine, originals[:num_originals], 6, seed)
        planted = plant(family, count, copies, seed)
        reasons, num_same_template, seconds = detect(family, planted, seed)
        held = {content_id(normalise(text)) for text in family.evaluation}
        rows += [
            row._asdict()
            | {"family": family.name, "reason": reason, "control": content_id(normalise(row.text)) in held}
            for row, reason in zip(planted, reasons, strict=True)
        ]
        runs[f"{len(runs)} {family.name}"] = {
            "rows": len(planted), "evaluation": len(family.evaluation), "seconds": round(seconds, 1),
            "same_template_kept": num_same_template, "model_wrote": num_written,
            "model_kept": sum(map(len, copies.values())),
        }  # fmt: skip
    kinds, by_family, by_rule = (
        count_by(rows, *names) for names in (("kind",), ("family", "kind"), ("kind", "detail"))
    )
    print(f"machine: {machine()}; seed {seed}")
    for name, run in runs.items():
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in run.items())}")
    print_table(kinds, "kind")
    print_table(by_family, "family | kind")
    print_table({key: group for key, group in by_rule.items() if key[1]}, "kind | rule")
    if arguments.show_missed:
        for row in rows:
            if (row["reason"] is None) != (row["kind"] in KEPT):
                print(f"{row['family']} | {row['kind']} {row['detail']} | {row['reason']} | {row['text']!r}")
    tables = [[*key, group] for key, group in by_family.items()]
    figures = {"bench": "contamination", "quick": arguments.quick, "machine": machine(), "runs": runs, "table": tables}
    finish(figures | {"ok": is_reached(kinds, by_family)}, arguments.json)


if __name__ == "__main__":
    main()
