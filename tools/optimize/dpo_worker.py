"""Train a candidate on pairs of a right and a wrong answer to the same item: direct preference optimisation.

DPO (arXiv 2305.18290) with the negative log-likelihood of the right answer beside it, as in iterative reasoning
preference optimisation (arXiv 2404.19733): without it DPO may make both answers unlikely. TRL 1.16 has no `rpo_alpha`
any more; the losses "sigmoid" and "sft" with weights are the same. The reference is the model that training starts
from. Files, checkpoints, progress and what a candidate is are those of sft_worker.py.
"""

from functools import partial
from typing import Any

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from memory.store import RunStore
from tools.contract import Json, ToolError
from tools.engines.base import build_messages
from tools.jobs.job import Job
from tools.optimize.collate import IGNORED, tokenise
from tools.optimize.prefer_answers import likelihood
from tools.optimize.sft_worker import BATCH_EXAMPLES, Watch, arguments, run_training
from tools.optimize.shared_prompts import SharedPrompts

BETA = 0.1
NLL_WEIGHT = 1.0
"""Of the right answer's mean negative log-likelihood per token, beside the preference's loss of 1."""
LEAST_PAIRS = 2 * BATCH_EXAMPLES


def preference_pairs(store: RunStore, rows: list[Json]) -> list[Json]:
    """Return {"prompt", "chosen", "rejected"} for each training row whose item has a wrong sample.

    chosen: the row's answer. rejected: the likeliest of the wrong answers that ended, in the generation that the row is
    from; it is what the model must unlearn most. Where an endpoint told no log-probability, the first one counts. Rows
    that the user brought have no samples, so they make no pairs.
    """
    likeliest: dict[tuple[str, str], Json] = {}
    for generation in dict.fromkeys(row["generation"] for row in rows):
        for sample in store.rows("data", generation, "samples.jsonl"):
            if sample["right"] or sample.get("finish") != "stop" or not sample["completion"]:
                continue
            key = generation, sample["item_id"]
            if key not in likeliest or likelihood(sample) > likelihood(likeliest[key]):
                likeliest[key] = sample
    found = [(row, likeliest.get((row["generation"], row["item_id"]))) for row in rows]
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": wrong["completion"]}
        for row, wrong in found
        if wrong is not None
    ]


def preference_trainer(job: Job, rows: list[Json], settings: Json, seed: int, model: Any, watch: Watch) -> Any:
    """Return the trainer. Raises ToolError when too few rows have a wrong answer beside the right one."""
    pairs = preference_pairs(RunStore(job.run_dir), rows)
    if len(pairs) < LEAST_PAIRS:
        raise ToolError(
            f"only {len(pairs)} of {len(rows)} rows have a wrong answer beside the right one (at least {LEAST_PAIRS}); "
            "call finetune_model"
        )
    engine, system_prompt = job.resident.local_engine, job.resident.settings["system_prompt"]
    trainer = PairTrainer(
        model=model,
        args=DPOConfig(
            **arguments(job, settings, seed),
            beta=BETA,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, NLL_WEIGHT],
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list([_tokens(engine.tokenizer, system_prompt, pair) for pair in pairs]),
        processing_class=engine.tokenizer,
        callbacks=[watch],
    )
    model.delete_adapter("ref")  # its log-probabilities are known now; checkpoints would hold it too
    return trainer


train = partial(run_training, preference_trainer)
"""The job; num_examples counts pairs."""


def _tokens(tokenizer: Any, system_prompt: str, pair: Json) -> dict[str, list[int]]:
    """Return TRL's columns: prompt_ids, chosen_ids, rejected_ids, tokenised as everywhere."""
    columns: dict[str, list[int]] = {}
    for name in ("chosen", "rejected"):
        tokens = tokenise(tokenizer, build_messages(pair["prompt"], [], system_prompt), pair[name])
        num_prompt = tokens.labels.count(IGNORED)
        columns["prompt_ids"], columns[f"{name}_ids"] = tokens.input_ids[:num_prompt], tokens.input_ids[num_prompt:]
    return columns


class PairTrainer(SharedPrompts, DPOTrainer):
    """DPOTrainer on rows that are tokens already, in batches that share the beginnings of their prompts."""

    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")
