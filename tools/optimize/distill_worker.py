"""Train a candidate to do without examples what it does with them: on-policy self-distillation (arXiv 2601.19897).

The base model, shown the task's seed examples, is the teacher of the adapted one that is not: on the student's own
samples, token by token. No scorer is asked. Files, checkpoints, progress and what a candidate is are those of
sft_worker.py; the trainer is in distill_trainer.py, because TRL calls what it builds on experimental.
"""

from tools.contract import Json, ToolError
from tools.jobs.job import Job
from tools.optimize.sft_worker import run_training


def train(
    job: Job, model_id: str, settings: Json, parent: str, datasets: list[str], rehearse: list[str], seed: int
) -> Json:
    """Train and save one candidate; returns what sft_worker's does. Raises ToolError when TRL has no such trainer."""
    try:
        from tools.optimize.distill_trainer import distilling_trainer
    except ImportError as missing:
        raise ToolError(
            f"the installed TRL has no self-distillation ({missing}); call finetune_model, or install the version of "
            "constraints.txt"
        ) from missing
    return run_training(distilling_trainer, job, model_id, settings, parent, datasets, rehearse, seed)
