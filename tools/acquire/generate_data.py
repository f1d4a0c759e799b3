"""Sample answers from the champion on fresh training items; the scorer says which are right.

Rejection sampling as in RFT (arXiv 2308.01825) and ReST-EM (arXiv 2312.06585); right and wrong samples are all kept
with their provenance in data/<id>/samples.jsonl; right.jsonl repeats the right ones, which are read often.
"""

from itertools import islice
from typing import Any, Literal

from memory.store import GREEDY, RunStore
from tools.acquire.health import sample_health
from tools.acquire.sampling import (
    Chunk,
    acquire,
    answer_row,
    chat,
    fresh_items,
    generate,
    summary,
    verify,
    wants_data,
)
from tools.contract import Grid, Json, ToolContext, ToolRun, tool
from tools.engines.base import Completion, Message
from tools.evaluate.costs import answer_tokens, base_record, new_set_tokens, question_tokens
from tools.jobs.job import Job
from tools.select.curate_data import SIZES, least_examples
from tools.tasks.base import Item, Verdict

FIRST_SAMPLES = 4
"""Samples of every item; the rest of samples_per_item go to the items that none of these solved."""
COMPUTED_SHARE, SHORT_ANSWER = 0.4, 16
"""Tokens of a sample that are computed, of those it has: short samples of one item are mostly alike. The default runs
had 0.26 to 0.36; of longer answers, and of an endpoint's, all are expected to be computed."""


def legal_prompting(context: ToolContext) -> list[Grid] | None:
    """Generate while no data waits and unused answers are few; few-shot only while zero-shot hardly ever succeeds."""
    store = context.store
    if not wants_data(context):
        return None
    if answer_tokens(store, few_shot=True)[1] <= SHORT_ANSWER:
        grid: Grid = {"samples_per_item": [32, 64], "temperature": [1.0, 1.2], "num_items": [1024, 1536]}
        few, fewest = 512, 16
    else:  # dear, and each token may go wrong
        grid = {"samples_per_item": [8, 16], "temperature": [0.7], "num_items": [512, 1024]}
        few, fewest = 256, 8
    zero_shot = store.score(store.champion())
    if store.champion_policy() != GREEDY:
        grid["prompting"] = ["policy"]
    elif zero_shot is not None and zero_shot["score"] >= 0.1:
        grid["prompting"] = ["zero_shot"]
    else:  # few-shot answers teach the form, for which few are enough
        grid |= {"prompting": ["few_shot"], "num_items": [few]}
    return [grid, grid | {"num_items": [grid["num_items"][0] // 2], "samples_per_item": [fewest]}]


def generation_tokens(
    context: ToolContext, num_items: int, samples_per_item: int, prompting: str, temperature: float
) -> int:
    """Tokens of the sampling, and of the training and verdict that make it useful."""
    del temperature
    num_new = least_examples(context.store)
    earlier = [
        one
        for one in context.store.datasets("samples")
        if "health" in one and ("policy" in one) == (prompting == "policy")
    ]
    if earlier:
        # What a sample took last time, all that is shared counted once and with few for the items solved at once.
        latest = earlier[-1]
        per_sample = latest["num_tokens"] / (latest["num_items"] * latest["samples_per_item"])
        sampling = num_items * samples_per_item * per_sample
        # Most of what it brings should be read too, else fewer samples were enough.
        health = latest["health"]
        share = 1 - (health["never_right"] + health["always_right"]) / health["num_items"]
        num_new = max(num_new, min(int(share * num_items / 2), SIZES[0]))
    else:
        sampling = num_items * _first_sampling_tokens(context.store, samples_per_item, prompting == "few_shot")
    if prompting == "policy":  # its prompts are read beside those of the question alone
        sampling += num_items * question_tokens(context.store)
    return int(sampling + new_set_tokens(context, num_new))


def _first_sampling_tokens(store: RunStore, samples_per_item: int, few_shot: bool) -> float:
    """Return what an item will take: as long an answer, and as often wrong, as the base model's greedy one."""
    record = base_record(store, few_shot)
    prompt, answer = answer_tokens(store, few_shot)
    share = COMPUTED_SHARE if answer <= SHORT_ANSWER else 1.0
    unsolved = 1.0 if record is None else 1 - record["score"]
    num_samples = FIRST_SAMPLES + (samples_per_item - FIRST_SAMPLES) * unsolved
    return 2 * prompt + num_samples * answer * share


@tool(stage="acquire", section="synthetic generation", when=legal_prompting, estimate_tokens=generation_tokens)
def generate_data(
    run: ToolRun,
    num_items: Literal[128, 256, 512, 1024, 1536] = 1024,
    samples_per_item: Literal[8, 16, 32, 64] = 32,
    temperature: Literal[0.7, 1.0, 1.2] = 1.2,  # type: ignore[valid-type]  # grids may hold floats
    prompting: Literal["zero_shot", "few_shot", "policy"] = "zero_shot",
) -> Json:
    """Let the champion answer new training items many times and keep what the scorer says is right.

    Use it when there are few unused right answers. Every item gets 4 samples, and up to samples_per_item while none is
    right: more find answers to harder items. "policy" asks these as the champion is asked, with its examples and system
    prompt; training on the question alone then teaches what they brought. Returns how many items have a right answer,
    and the pass rate.
    """
    store = run.context.store
    earlier = store.datasets("samples")
    args = {
        "model": store.champion(),
        "start": max((dataset["next_index"] for dataset in earlier), default=0),
        "num_items": num_items,
        "samples_per_item": samples_per_item,
        "temperature": temperature,
        "shots": prompting == "few_shot",
        "seed": run.context.seed,
    }
    if prompting == "policy":
        args["policy"] = store.champion_policy()
    made, _ = run.context.jobs.run("tools.acquire.generate_data:sample_items", args)
    return dict(made)


def sample_items(job: Job, **args: Any) -> Json:
    """Sample and verify in the worker, chunk by chunk; goes on after the last finished chunk. Writes the dataset."""
    manifest = acquire(job, args, fresh_items, _sample_chunk, _state_of_the_model)
    return {"pass_rate": round(manifest["pass_rate"], 4)} | summary(manifest)


def _state_of_the_model(rows: list[Json]) -> Json:
    first = [row for row in rows if row["sample"] < FIRST_SAMPLES]  # later ones went to the hard items only
    pass_rate = sum(row["right"] for row in first) / max(1, len(first))
    return {"pass_rate": pass_rate, "health": sample_health(rows, FIRST_SAMPLES)}


def _sample_chunk(chunk: Chunk) -> list[Json]:
    items, most = chunk.units, chunk.args["samples_per_item"]
    first = min(FIRST_SAMPLES, most)
    judged = _judged_samples(chunk, items, first, "")
    unsolved = [item for item in items if not any(right for _, _, right in judged[item.id])]
    if unsolved and most > first:
        policy = chunk.args.get("policy", GREEDY)
        for item_id, samples in _judged_samples(chunk, unsolved, most - first, "/unsolved", policy).items():
            judged[item_id] += samples
    rows = []
    for item in items:
        samples = judged[item.id]
        about = {"num_samples": len(samples), "pass_rate": sum(right for _, _, right in samples) / len(samples)}
        for number, (completion, verdict, right) in enumerate(samples):
            more = about | {"score": verdict.score, "sample": number}
            rows.append(answer_row(chunk, item, completion, right, verdict.kind, **more))
    return rows


def _judged_samples(
    chunk: Chunk, items: list[Item], num_samples: int, purpose: str, policy: str = GREEDY
) -> dict[str, list[tuple[Completion, Verdict, bool]]]:
    """Return (completion, verdict, right) of every sample by item id; an answer that was cut off is not right."""
    answers = generate(chunk, _prompts(chunk, items, policy), num_samples, purpose)
    pairs = [(item, completion.text) for item, samples in zip(items, answers, strict=True) for completion in samples]
    verdicts = iter(verify(chunk, pairs))
    return {
        item.id: [
            (completion, verdict, verdict.right and completion.finish == "stop")
            for completion, verdict in zip(samples, islice(verdicts, len(samples)), strict=True)
        ]
        for item, samples in zip(items, answers, strict=True)
    }


def _prompts(chunk: Chunk, items: list[Item], policy: str) -> list[list[Message]]:
    if policy == GREEDY:
        return [chat(chunk, item.question) for item in items]
    from tools.refine.policy import build_prompts, prepare

    resident, store = chunk.job.resident, RunStore(chunk.job.run_dir)
    settings, asked = prepare(resident, store, chunk.args["model"], policy, resident.task.max_new_tokens)
    return build_prompts(settings, asked, resident.settings["system_prompt"], [item.question for item in items])
