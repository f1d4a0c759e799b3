"""What all methods of acquisition share: work in chunks that survive a kill, sampling, verifying, rows, the dataset.

A method is a way to come by answers (explore alone: sample; refine: rewrite or explain; interact: with an executor, a
document, an environment) times a reward: verification (`verify`: the task's scorer), a heuristic (`vote`: the samples
agree) or a model's judgement (`judge_answers`). It names its units of work and how a chunk of them becomes rows;
`acquire` does the rest and writes data/<id>/ of kind "samples": samples.jsonl with every row, right.jsonl with those
that may be trained on. Neither holds a question of an evaluation split: such a one is dropped, and counted.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from memory.records import append_jsonl, content_id, read_json, read_jsonl
from memory.store import BASE, RunStore
from prompts import render
from tools.contract import Grid, Json, ToolContext, ToolError
from tools.engines.base import Completion, Message, Sampling, build_messages
from tools.evaluate.costs import answer_tokens, new_set_tokens
from tools.jobs.job import Job
from tools.refine.self_consistency import majority
from tools.select.curate_data import least_examples, num_unused_items
from tools.tasks.base import Item, Verdict
from tools.tasks.judge import DEFAULT_THRESHOLD, JudgeScorer

TOP_K = 20
"""High temperatures find answers to hard items only while nonsense from the tail of the vocabulary is cut off."""
TEMPERATURE = 1.0
"""Where agreement is the reward, samples stand for what the model believes: they are drawn as it is."""
CHUNK_UNITS = 256
"""Units of work between two writes to disk: what a kill can cost."""
ENOUGH_SETS = 1.5
"""Unused right answers for this many smallest training sets are enough; more would only cost budget."""


class Chunk(NamedTuple):
    """A part of a method's work, done between two writes to disk."""

    job: Job
    args: Json
    """The method's arguments; "model", "shots", "temperature" and "seed" say how answers are sampled."""
    dataset_id: str
    number: int
    units: list[Any]
    earlier: list[Json]
    """Rows of the chunks before it."""
    dropped: Counter[str]
    """To be counted up by the method: what leaves no row, by reason; "evaluation_item" is one."""


class Vote(NamedTuple):
    """What the samples of one question agree on."""

    answer: str
    agreement: float
    """Share of all samples that give this answer and are not cut off; 0.0 when all are."""


Units = tuple[list[Any], Json]
"""Units of work in order, and what the manifest tells of how they were found."""


def wants_data(context: ToolContext) -> bool:
    """Return whether no data waits and unused right answers are few."""
    store = context.store
    if store.untrained_datasets() or store.candidate():
        return False
    sets = 1 if store.champion() == BASE else ENOUGH_SETS
    return num_unused_items(store, "not_too_easy") < sets * least_examples(store)


def legal_acquisition(context: ToolContext) -> Grid | None:
    """While data is wanted."""
    return {} if wants_data(context) else None


def sampling_tokens(context: ToolContext, num_questions: float, num_samples: float, extra: float = 0.0) -> int:
    """Return the tokens of sampling answers, and of the training and verdict that make them useful.

    extra: tokens of a question beyond its own and its answers', for example of writing it.
    """
    (prompt, _), (_, answer) = answer_tokens(context.store), answer_tokens(context.store, few_shot=True)
    sampling = num_questions * (2 * prompt + num_samples * answer + extra)
    return int(sampling + new_set_tokens(context, least_examples(context.store)))


def common_args(context: ToolContext, method: str) -> Json:
    """Return the arguments that every method's job gets.

    The champion answers, after the seed examples while it is the base model, which does not know the task's form.
    """
    store = context.store
    model = store.champion()
    samples = store.datasets("samples")
    start = max((dataset["next_index"] for dataset in samples), default=0)
    num_calls = sum(dataset.get("method") == method for dataset in samples)  # so that the next call draws anew
    sampled = {"model": model, "shots": model == BASE, "temperature": TEMPERATURE, "seed": context.seed}
    return {"method": method, "call": num_calls, "start": start} | sampled


def acquire(
    job: Job,
    args: Json,
    find_units: Callable[[Job, Json], Units],
    work: Callable[[Chunk], list[Json]],
    about: Callable[[list[Json]], Json] = lambda rows: {},
    chunk_size: int = CHUNK_UNITS,
) -> Json:
    """Do a method's work in the worker and write its dataset; goes on after the last finished chunk.

    Returns the manifest. about: what else it tells, from all rows. The same arguments give the same dataset, once.
    """
    store = RunStore(job.run_dir)
    dataset_id = content_id(args | {"kind": "samples"})
    known, partial = store.get("data", dataset_id), job.folder / "samples.jsonl"
    if known is not None:  # killed between the manifest and the job's result; its items are no longer fresh
        job.earlier_tokens = known["num_tokens"]
        partial.unlink(missing_ok=True)
        return known
    log = list(read_jsonl(partial))
    ends = {row["chunk"]: row for row in log if row.get("end_of_chunk")}
    job.earlier_tokens = sum(end["tokens"] for end in ends.values())
    rows = _whole_chunks(log)
    units, found = find_units(job, args)
    for number, start in enumerate(range(0, len(units), chunk_size)):
        part = units[start : start + chunk_size]
        if number not in ends:
            chunk = Chunk(job, args, dataset_id, number, part, list(rows), Counter())
            before = job.resident.tokens_processed
            made = work(chunk)
            tokens = job.resident.tokens_processed - before
            ends[number] = {"end_of_chunk": True, "chunk": number, "tokens": tokens, "dropped": dict(chunk.dropped)}
            append_jsonl(partial, [*made, ends[number]])
            rows += made
        job.progress(start + len(part), len(units))
    manifest = {"samples_per_item": 1, "next_index": 0} | args | found | _counts(rows, list(ends.values()), found)
    right = [row for row in rows if row["right"]]
    written = store.put("data", dataset_id, manifest | about(rows), {"samples.jsonl": rows, "right.jsonl": right})
    partial.unlink(missing_ok=True)  # the dataset holds all of it
    return written


def summary(manifest: Json) -> Json:
    """Return what a tool tells of its dataset."""
    shown = ("num_items", "num_items_right", "num_samples", "num_right", "num_unscored", "num_dropped_overlap")
    return {"dataset": manifest["id"]} | {key: manifest.get(key, 0) for key in shown}


def fresh_items(job: Job, args: Json) -> Units:
    """Return num_items training items without a right answer that are in no evaluation split, from `start` on.

    Raises ToolError when the stream has none left.
    """
    evaluation_ids, seen = held_out(job), set(seen_items(RunStore(job.run_dir)))
    items: list[Item] = []
    index, num_dropped = args["start"], 0
    limit = args["start"] + 20 * args["num_items"]
    while len(items) < args["num_items"] and index < limit:
        for item in job.resident.task.stream(index, args["num_items"], args["seed"]):
            index += 1
            if not evaluation_ids.isdisjoint(item.keys):
                num_dropped += 1
            elif item.id not in seen:
                items.append(item)
                seen.add(item.id)
            if len(items) == args["num_items"]:
                break
    if not items:
        raise ToolError(
            "the training stream has no item without a right answer left; train on what there is, or finish"
        )
    return items, {"next_index": index, "num_dropped_overlap": num_dropped}


def held_out(job: Job) -> set[str]:
    """Return the keys of all evaluation items."""
    return set(read_json(job.run_dir / "referee" / "evaluation_ids.json"))


def seen_items(store: RunStore) -> list[str]:
    """Return the items that have a right answer already; one without may be tried again by a better model."""
    earlier = [dataset["id"] for dataset in store.datasets("samples")]
    return [row["item_id"] for dataset in earlier for row in store.rows("data", dataset, "right.jsonl")]


def chat(chunk: Chunk, question: str) -> list[Message]:
    """Return the prompt of a question, after the task's seed examples when the method's "shots" say so."""
    resident = chunk.job.resident
    seeds = resident.task.seed_examples() if chunk.args["shots"] else []
    return build_messages(
        question, [(item.question, item.answer) for item in seeds], resident.settings["system_prompt"]
    )


def generate(
    chunk: Chunk,
    prompts: list[list[Message]],
    num_samples: int,
    purpose: str = "",
    model: str | None = None,
    max_new_tokens: int | None = None,
) -> list[list[Completion]]:
    """Return samples of each prompt. purpose: makes the seed of each use in a chunk another one.

    model None = the method's; max_new_tokens None = as many as the task's answers need. Raises ToolError for a prompt
    that is longer than the model's context.
    """
    if not prompts:
        return []
    resident = chunk.job.resident
    seed = zlib.crc32(f"{chunk.dataset_id}/{chunk.number}{purpose}".encode())
    most = max_new_tokens or resident.task.max_new_tokens
    folder = RunStore(chunk.job.run_dir).model_dir(model or chunk.args["model"])
    resident.engine.use_model(folder)  # a judge may have used another
    sampling = Sampling(most, num_samples, chunk.args["temperature"], seed, TOP_K)
    with _fitting():
        samples: list[list[Completion]] = resident.engine.generate(prompts, sampling)
    return samples


def verify(chunk: Chunk, pairs: list[tuple[Item, str]]) -> list[Verdict]:
    """Return the scorer's verdicts in order: the reward that is verification."""
    return list(chunk.job.resident.scorer.score(pairs)) if pairs else []


def vote(samples: list[Completion]) -> Vote:
    """Return the most frequent answer: the reward that is a heuristic, and asks nobody (see self_consistency)."""
    answer = majority(samples)
    text = answer.text.strip()
    voters = [sample for sample in samples if sample.finish == "stop" and sample.text.strip() == text]
    return Vote(text, len(voters) / len(samples))


def judge_answers(chunk: Chunk, questions: list[str], answers: list[str]) -> list[Verdict]:
    """Return what the base model says of answers by the default rubric: the reward that is a model's judgement."""
    spec = {"name": "judge", "model": "self", "pairwise": False, "threshold": DEFAULT_THRESHOLD}
    judge = JudgeScorer(spec | {"rubric": render("judge_default_rubric")}, chunk.job.resident.ask_base)
    items = [Item(question, "(none is given)", "all") for question in questions]
    with _fitting():
        return judge.score(list(zip(items, answers, strict=True)))


def answer_row(chunk: Chunk, item: Item, answer: Completion, right: bool, verdict: str, **about: Any) -> Json:
    """Return the row of one sample. about: at least "pass_rate", "sample" (its number), "num_samples" (the item's)."""
    text = answer.text.strip()
    known = not math.isnan(answer.logprob)
    method = {"method": chunk.args["method"]} if "method" in chunk.args else {}
    row = {
        "example_id": content_id({"prompt": item.question, "completion": text}),
        "item_id": item.id,
        "prompt": item.question,
        "completion": text,
        "right": right,
        "verdict": verdict,
        "score": float(right),
        "finish": answer.finish,
        "logprob": round(answer.logprob, 4) if known else None,
        "num_tokens": answer.num_tokens,
        "difficulty": item.difficulty,
        "model": chunk.args["model"],
        "generation": chunk.dataset_id,
        "chunk": chunk.number,
    }
    return row | method | about


@contextmanager
def _fitting() -> Iterator[None]:
    """Let a planner mend a prompt that does not fit the model's context, which is the engine's ValueError."""
    try:
        yield
    except ValueError as error:
        raise ToolError(f"{error}; choose another action") from error


def _counts(rows: list[Json], ends: list[Json], found: Json) -> Json:
    right = [row for row in rows if row["right"]]
    dropped: Counter[str] = sum((Counter(end.get("dropped", {})) for end in ends), Counter())
    num_overlapping = found.get("num_dropped_overlap", 0) + dropped.pop("evaluation_item", 0)
    return {
        "kind": "samples",
        "num_items": len({row["item_id"] for row in rows}),
        "num_dropped_overlap": num_overlapping,
        "dropped": dict(dropped),
        "num_samples": len(rows),
        "num_right": len(right),
        "num_items_right": len({row["item_id"] for row in right}),
        "num_unscored": sum(row["verdict"] == "error" for row in rows),
        "num_distinct_right": len({row["example_id"] for row in right}),
        "num_tokens": sum(end["tokens"] for end in ends),
    }


def _whole_chunks(rows: list[Json]) -> list[Json]:
    """Return the rows of finished chunks, once each."""
    samples: dict[int, dict[tuple[str, int], Json]] = {}
    finished: list[Json] = []
    for row in rows:
        if row.get("end_of_chunk"):
            finished += samples.pop(row["chunk"], {}).values()
        else:
            samples.setdefault(row["chunk"], {})[row["item_id"], row["sample"]] = row
    return finished
