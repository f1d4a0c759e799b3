"""Train a candidate on right and on wrong answers, each by itself: Kahneman-Tversky optimisation (arXiv 2402.01306).

Unlike DPO it needs no pairs: a right answer is to become likelier than the model that training starts from makes it, a
wrong one less likely, each measured against the mean change of answers that belong to other questions. Files,
checkpoints, progress and what a candidate is are those of sft_worker.py.
"""

import random
from functools import partial
from typing import Any

from datasets import Dataset
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from memory.store import RunStore
from tools.contract import Json, ToolError
from tools.engines.base import build_messages
from tools.jobs.job import Job
from tools.optimize.collate import IGNORED, tokenise
from tools.optimize.dpo_worker import LEAST_PAIRS, preference_pairs
from tools.optimize.sft_worker import Watch, arguments, run_training
from tools.optimize.shared_prompts import SharedPrompts

BETA = 0.1


def labelled_answers(store: RunStore, rows: list[Json], seed: int) -> list[Json]:
    """Return {"prompt", "completion", "label"}: each row's right answer, and the likeliest wrong one to its question.

    In random order, which is the order of training. A row without a wrong answer is there with its right one.
    """
    right = [{"prompt": row["prompt"], "completion": row["completion"], "label": True} for row in rows]
    wrong = [
        {"prompt": pair["prompt"], "completion": pair["rejected"], "label": False}
        for pair in preference_pairs(store, rows)
    ]
    answers = [*right, *wrong]
    random.Random(seed).shuffle(answers)
    return answers


def answer_trainer(job: Job, rows: list[Json], settings: Json, seed: int, model: Any, watch: Watch) -> Any:
    """Return the trainer. Raises ToolError when too few answers are wrong."""
    engine, system_prompt = job.resident.local_engine, job.resident.settings["system_prompt"]
    answers = labelled_answers(RunStore(job.run_dir), rows, seed)
    num_wrong = sum(not answer["label"] for answer in answers)
    if num_wrong < LEAST_PAIRS:
        raise ToolError(
            f"only {num_wrong} of {len(answers)} answers are wrong (at least {LEAST_PAIRS}); call finetune_model"
        )
    config = KTOConfig(
        **arguments(job, settings, seed),
        beta=BETA,
        # Both kinds weigh the same in sum, as the paper advises.
        undesirable_weight=round((len(answers) - num_wrong) / num_wrong, 2),
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
    )
    tokens = [_tokens(engine.tokenizer, system_prompt, answer) for answer in answers]
    size = config.per_device_train_batch_size
    batches = [with_other_answers(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    trainer = AnswerTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([row for batch in batches for row in batch]),
        processing_class=engine.tokenizer,
        callbacks=[watch],
    )
    model.delete_adapter("ref")  # its log-probabilities are known now; checkpoints would hold it too
    return trainer


train = partial(run_training, answer_trainer)
"""The job; num_examples counts right and wrong answers."""


def with_other_answers(rows: list[Json]) -> list[Json]:
    """Return a batch's rows, each with the answer of the one before it: what TRL measures the mean change on."""
    return [row | {"KL_completion_ids": rows[place - 1]["completion_ids"]} for place, row in enumerate(rows)]


def _tokens(tokenizer: Any, system_prompt: str, answer: Json) -> Json:
    """Return TRL's columns: prompt_ids, completion_ids, label, tokenised as everywhere."""
    tokens = tokenise(tokenizer, build_messages(answer["prompt"], [], system_prompt), answer["completion"])
    start = tokens.labels.count(IGNORED)
    return {
        "prompt_ids": tokens.input_ids[:start],
        "completion_ids": tokens.input_ids[start:],
        "label": answer["label"],
    }


class AnswerTrainer(SharedPrompts, KTOTrainer):
    """KTOTrainer on rows that are tokens already, in batches that share the beginnings of their prompts."""

    reference_columns = ("ref_logps", "ref_KL_logps")
