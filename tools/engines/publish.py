"""What the command line asks of a worker outside a run: answer a prompt, export weights, fill the vector memory again.

These are jobs (see `tools.jobs.job`), started by agent/commands.py while it holds the run's lock.
`model_card` makes the README.md of an exported model.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from memory.records import read_jsonl
from memory.store import BASE, FINAL_ARMS, GREEDY, RunStore, opened_text
from memory.vectors import frozen_examples
from tools.contract import Json, ToolError
from tools.jobs.job import Job
from tools.refine.card import policy_section


def answer_prompt(job: Job, prompt: str, sides: list[list[str]], max_new_tokens: int) -> Json:
    """Answer one prompt with each (model, policy), as the run's evaluations ask: same engine, dtype, system prompt."""
    from tools.refine.policy import answer

    store, engine = RunStore(job.run_dir), job.resident.engine
    answers = []
    for number, (model_id, policy) in enumerate(sides, 1):
        before = job.resident.tokens_processed
        try:
            [completion] = answer(job.resident, store, model_id, policy, [prompt], max_new_tokens)
        except ValueError as error:  # longer than the model's context
            raise ToolError(str(error)) from error
        told = {"model": model_id, "policy": policy, "kind": store.policy(policy)["kind"]}
        told |= {"text": completion.text.strip(), "num_tokens": completion.num_tokens, "finish": completion.finish}
        answers.append(told | {"tokens_processed": job.resident.tokens_processed - before})
        job.progress(number, len(sides))
    return {"answers": answers, "identity": engine.identity()}


def export_model(job: Job, model_id: str, target: str, adapter_only: bool, dtype: str) -> Json:
    """Write a model's weights into the folder `target`: merged weights and tokenizer, or the PEFT adapter alone.

    The merge is summed in fp32 and saved in dtype ("bfloat16" or "float32").
    Raises ToolError when adapter_only asks for the adapter of a model that was trained in full.
    """
    base_dir = Path(job.resident.settings["model_dir"])
    source = RunStore(job.run_dir).model_dir(model_id) or base_dir
    is_adapter = (source / "adapter_config.json").exists()
    if adapter_only and not is_adapter:
        what = "is the base model" if model_id == BASE else "was trained in full"
        raise ToolError(f"model {model_id} {what} and has no adapter; leave --adapter out")
    folder = Path(target)
    folder.mkdir(exist_ok=True)
    if adapter_only:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(source / name, folder / name)
    else:
        _save_merged(base_dir if is_adapter else source, source if is_adapter else None, base_dir, folder, dtype)
    return {"model": model_id, "files": sorted(path.name for path in folder.iterdir())}


def _save_merged(weights: Path, adapter: Path | None, tokenizer: Path, folder: Path, dtype: str) -> None:
    import torch
    import transformers
    from peft import PeftModel

    transformers.utils.logging.disable_progress_bar()
    # The attention of the engine (a key-value tree) stays out of the exported configuration.
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32, use_safetensors=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.to({"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def refill_memory(job: Job) -> Json:
    """Delete the vector memory: whoever opens it then fills it with the examples of all frozen datasets."""
    shutil.rmtree(job.run_dir / "memory", ignore_errors=True)
    store = RunStore(job.run_dir)
    rows = frozen_examples(store)
    if rows:
        _ = job.resident.memory
    return {"num_examples": len(rows), "num_datasets": len(store.datasets("train"))}


def model_card(record: Json, store: RunStore, model_id: str, final: Json | None, adapter_only: bool, dtype: str) -> str:
    """Return README.md: front matter, scores with n and interval, lineage, how to load it.

    record is run.json; final the final evaluation (None while it is not opened); dtype that of the saved weights.
    """
    config = record["config"]
    policy = store.champion_policy()
    identity = (store.score(model_id, policy=policy) or {}).get("identity", {})
    evaluated = ", ".join(f"{name} {value}" for name, value in ({"dtype": "of the endpoint"} | identity).items())
    front = {
        "base_model": config["model"],
        "library_name": "peft" if adapter_only else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["autodidact", "self-improvement", "adapter" if adapter_only else "merged"],
    }
    how = "the PEFT adapter alone" if adapter_only else f"merged in float32, saved as {dtype} safetensors"
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),  # JSON is YAML
        "---",
        f"# {Path(config['model']).name}, improved by Autodidact",
        "",
        f"Model `{model_id}` of run `{record['run']}` ({record.get('created')}{_parent(record)}), {_origin(model_id)}",
        f"to `{config['task']}`. These files: {how}.",
        "",
        *_brought(store, model_id),
        f"It was evaluated with {evaluated}; at another dtype, or after merging, single answers can differ.",
        "",
        "## Scores",
        "",
        *_score_table(store, model_id, final),
        "",
        "## Lineage",
        "",
        f"Base: `{config['model']}` (fingerprint `{record['identity']['model']}`).",
        "",
        *_lineage_table(store, model_id),
        "",
        "## Use",
        "",
        *_loading(config["model"], adapter_only),
        *policy_section(store, model_id),
    ]
    return "\n".join(lines) + "\n"


def _parent(record: Json) -> str:
    origin = record.get("forked_from")
    return f", a fork of run `{origin['run']}` at step {origin['step']}" if origin else ""


def _origin(model_id: str) -> str:
    return (
        "the base, asked as said under inference policy," if model_id == BASE else "trained on its own verified answers"
    )


def _brought(store: RunStore, model_id: str) -> list[str]:
    """Return a line for each source and teacher that the user brought: rows that are not the model's own alone."""
    rows = [row for name in store.trained_on(model_id) for row in store.rows("data", name, "train.jsonl")]
    counts = Counter(row["generation"] for row in rows if "source" in row or row.get("method") == "distil_answers")
    lines = []
    for name, count in counts.items():
        source = store.get("data", name) or {}
        if "teacher" in source:
            lines += [f"It also learned from {count} answers of the teacher `{source['teacher']}`.", ""]
            continue
        licence = source.get("licence") or "not told"
        lines += [f"It also learned from {count} rows of `{source.get('name')}` (licence: {licence}).", ""]
    return lines


def _score_table(store: RunStore, model_id: str, final: Json | None) -> list[str]:
    rows = ["| split | model | score | 95 % interval | n |", "|---|---|---|---|---|"]
    for name in FINAL_ARMS if final else ():
        assert final is not None, "the loop above is empty without it"
        if name not in final:
            continue
        rows.append(_score_row("final", name.replace("_", " "), final[name] | {"n": final["n"]}))
    policy = store.champion_policy()
    for model, name, asked in ((BASE, "base zero shot", GREEDY), (model_id, "champion", policy)):
        if (score := store.score(model, policy=asked)) is not None:
            rows.append(_score_row("search", name, score))
    opened = f"was {opened_text(final)}, when the run had ended" if final else "is not opened yet"
    return [
        *rows,
        "",
        f"The final split {opened}. The planner saw the scores on the search split while training went on.",
    ]


def _score_row(split: str, name: str, score: Json) -> str:
    low, high = score["ci95"]
    return f"| {split} | {name} | {100 * score['score']:.1f} % | {100 * low:.1f} to {100 * high:.1f} | {score['n']} |"


def _lineage_table(store: RunStore, model_id: str) -> list[str]:
    rows = ["| model | parent | datasets | examples | settings | verdict |", "|---|---|---|---|---|---|"]
    details = {row["candidate"]: row for row in read_jsonl(store.run_dir / "referee" / "verdicts.jsonl")}
    for model in store.lineage(model_id):
        settings = ", ".join(f"{name} {value}" for name, value in model["settings"].items())
        said = _verdict_text(details.get(model["id"]))
        cells = (model["id"], model["parent"], " ".join(model["datasets"]), model["num_examples"], settings, said)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def _verdict_text(detail: Any) -> str:
    if detail is None:
        return "none"
    told = f"{detail['num_fixed']} fixed, {detail['num_broken']} broken of n={detail['num_items']}"
    return f"{'accepted' if detail['accepted'] else 'rejected'} ({told})"


def _loading(base: str, adapter_only: bool) -> list[str]:
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")  # "." = this folder',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    if adapter_only:
        code = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f"base = AutoModelForCausalLM.from_pretrained(BASE, dtype='auto')  # the folder or hub id of {base}",
            'model = PeftModel.from_pretrained(base, ".")  # "." = this folder',
        ]
    return ["```python", *code, "```"]
