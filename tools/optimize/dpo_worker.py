"""Train a candidate on pairs of a right and a wrong answer to the same item: direct preference optimisation.

DPO (arXiv 2305.18290) with the negative log-likelihood of the right answer beside it, as in iterative reasoning
preference optimisation (arXiv 2404.19733): without it DPO may make both answers unlikely. TRL 1.16 has no `rpo_alpha`
any more; the losses "sigmoid" and "sft" with weights are the same. The reference is the model that training starts
from. Files, checkpoints, progress and what a candidate is are those of sft_worker.py.
"""

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import log_softmax
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from memory.store import RunStore
from tools.contract import Json, ToolError
from tools.engines.base import build_messages
from tools.evaluate.costs import TRAINED_TOKEN_COST
from tools.jobs.job import Job
from tools.optimize.collate import IGNORED, PrefixCollator, tokenise
from tools.optimize.sft_worker import BATCH_EXAMPLES, Watch, arguments, run_training

BETA = 0.1
NLL_WEIGHT = 1.0
"""Of the right answer's mean negative log-likelihood per token, beside the preference's loss of 1."""
LEAST_PAIRS = 2 * BATCH_EXAMPLES


def train(
    job: Job, model_id: str, settings: Json, parent: str, datasets: list[str], rehearse: list[str], seed: int
) -> Json:
    """Train and save one candidate on preferences; returns what sft_worker's does, num_examples being pairs."""
    return run_training(job, preference_trainer, model_id, settings, parent, datasets, rehearse, seed)


def preference_pairs(store: RunStore, rows: list[Json]) -> list[Json]:
    """Return {"prompt", "chosen", "rejected"} for each training row whose item has a wrong sample.

    chosen: the row's answer. rejected: the likeliest of the wrong answers that ended, in the generation that the row is
    from; it is what the model must unlearn most. Rows that the user brought have no samples, so they make no pairs.
    """
    likeliest: dict[tuple[str, str], Json] = {}
    for generation in dict.fromkeys(row["generation"] for row in rows):
        for sample in store.rows("data", generation, "samples.jsonl"):
            if sample["right"] or sample.get("finish") != "stop" or not sample["completion"]:
                continue
            key = generation, sample["item_id"]
            if key not in likeliest or sample["logprob"] > likeliest[key]["logprob"]:
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


def _tokens(tokenizer: Any, system_prompt: str, pair: Json) -> dict[str, list[int]]:
    """Return TRL's columns: prompt_ids, chosen_ids, rejected_ids, tokenised as everywhere."""
    columns: dict[str, list[int]] = {}
    for name in ("chosen", "rejected"):
        tokens = tokenise(tokenizer, build_messages(pair["prompt"], [], system_prompt), pair[name])
        num_prompt = tokens.labels.count(IGNORED)
        columns["prompt_ids"], columns[f"{name}_ids"] = tokens.input_ids[:num_prompt], tokens.input_ids[num_prompt:]
    return columns


class PairTrainer(DPOTrainer):
    """DPOTrainer on rows that are tokens already, in batches that share the beginnings of their prompts."""

    num_seen = num_batches = num_reference = 0

    def count_tokens(self) -> int:
        """Return the tokens that were trained on, the reference's forward pass at what it costs of that.

        Of all processes; what a batch's prompts share counts once. Steps before a resume, which another process did,
        are taken at the mean of those since.
        """
        counted = torch.tensor(self.num_seen, device=self.accelerator.device)
        trained = int(self.accelerator.reduce(counted, "sum")) * self.state.global_step // max(1, self.num_batches)
        return trained + self.num_reference // TRAINED_TOKEN_COST

    def _count(self, num_tokens: int) -> None:
        if torch.is_grad_enabled():
            self.num_seen += num_tokens
            self.num_batches += 1
        else:
            self.num_reference += num_tokens

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Each process computes all: TRL hands them over in a file that other processes of this job cannot find."""
        adapted: Any = self.model
        share_prompts(adapted.get_base_model(), self._count)
        columns: dict[str, list[float]] = {"ref_chosen_logps": [], "ref_rejected_logps": []}
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[place] for place in range(start, min(start + batch_size, len(dataset)))]
            batch = {key: value.to(self.accelerator.device) for key, value in self.data_collator(rows).items()}
            for column, logprobs in zip(columns.values(), self.compute_ref_log_probs(self.model, batch), strict=True):
                column += logprobs.float().tolist()
        for column_name, values in columns.items():
            dataset = dataset.add_column(column_name, values)
        return dataset


def share_prompts(model: Any, count: Callable[[int], None]) -> None:
    """Let a model answer TRL's calls (per-token log-probabilities of padded rows) from a PrefixCollator batch.

    What the prompts share goes through once, padding and the vocabulary of unlabelled tokens not at all. count: told
    the tokens of each batch.
    """
    plain = model.forward

    def forward(_: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **__: Any) -> SimpleNamespace:
        """Return log_probs, entropy, mean_logits, is_top1: (B, T - 1), 0 where there is no label."""
        rows = [
            {"input_ids": ids[: int(length)].tolist(), "labels": marks[: int(length)].tolist()}
            for ids, marks, length in zip(input_ids, labels, attention_mask.sum(1), strict=True)
        ]
        batch = {name: value.to(input_ids.device) for name, value in PrefixCollator()(rows).items()}
        labels_T = batch.pop("labels")[0]
        count(len(labels_T))
        predicting = (labels_T[1:] != IGNORED).nonzero()[:, 0]
        targets = labels_T[predicting + 1]
        logits = plain(**batch, use_cache=False, logits_to_keep=predicting).logits[0].float()
        logprobs = log_softmax(logits, dim=-1)
        labelled = labels[:, 1:] != IGNORED  # row by row, as the collator lays them out

        def placed(values: Tensor) -> Tensor:
            return torch.zeros(labelled.shape, dtype=values.dtype, device=values.device).masked_scatter(
                labelled, values
            )

        return SimpleNamespace(
            log_probs=placed(logprobs[torch.arange(len(targets)), targets]),
            entropy=placed(-(logprobs.exp() * logprobs).sum(-1).detach()),
            mean_logits=placed(logits.mean(-1).detach()),
            is_top1=placed(logits.argmax(-1) == targets),
        )

    model.forward = MethodType(forward, model)
