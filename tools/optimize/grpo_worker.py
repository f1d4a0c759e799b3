"""Train a candidate by reinforcement on its own samples: group relative policy optimisation (arXiv 2402.03300).

TRL's GRPOTrainer with DAPO's loss and dynamic sampling (arXiv 2503.14476): groups whose samples all got the same reward
teach nothing and are replaced by others before the step. Samples come from the run's engine, with the weights of the
moment. Part of the items is held out of the training; when its score has not risen for a while the training ends, and
the weights of its peak are kept. Files, checkpoints, progress and what a candidate is are those of sft_worker.py.

A reward of your own: a function from verdicts and answers to numbers in REWARDS, with its weight.
"""

import random
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from memory.records import read_json, write_json
from tools.contract import Json
from tools.engines.base import Completion, Sampling
from tools.engines.transformers_engine import encode_chat
from tools.jobs.job import Job
from tools.optimize.on_policy import chat, completion_ids, items_of, sampling_with
from tools.optimize.sft_worker import Watch, arguments, run_training
from tools.optimize.shared_prompts import SharedPrompts, share_prompts
from tools.tasks.base import Item, Verdict

SAMPLES = 8
"""Of each item: a group."""
GROUPS = 8
MOST_SAMPLED_TOKENS = 2048
"""Of a step: long answers make fewer groups, for memory."""
TRIES = 3
"""Batches of items that are sampled for a step before groups without a difference are taken to fill it."""
HELD_OUT = 48
STEPS_BETWEEN_LOOKS = 4
PATIENCE = 2
"""Looks at the held-out items without a new peak after which training ends."""


def right_answer(verdicts: list[Verdict], answers: list[Completion]) -> list[float]:
    """Return the task's score; an answer that was cut off is worth nothing."""
    return [
        verdict.score if answer.finish == "stop" else 0.0 for verdict, answer in zip(verdicts, answers, strict=True)
    ]


def good_form(verdicts: list[Verdict], answers: list[Completion]) -> list[float]:
    """Return 1 for an answer that ended and can be read."""
    return [
        float(answer.finish == "stop" and verdict.kind not in ("malformed", "error"))
        for verdict, answer in zip(verdicts, answers, strict=True)
    ]


REWARDS: dict[Callable[[list[Verdict], list[Completion]], list[float]], float] = {right_answer: 1.0, good_form: 0.1}
"""Reward -> its weight in the sum."""


def reward_trainer(job: Job, rows: list[Json], settings: Json, seed: int, model: Any, watch: Watch) -> Any:
    """Return the trainer. Raises ToolError when there are too few items."""
    items = items_of(job, rows)
    random.Random(seed).shuffle(items)
    task = job.resident.task
    num_groups = max(1, min(GROUPS, MOST_SAMPLED_TOKENS // (SAMPLES * task.max_new_tokens)))
    rollouts = Rollouts(job, items[HELD_OUT:], num_groups, seed)
    shared = arguments(job, settings, seed)
    del shared["max_length"], shared["num_train_epochs"]
    shared |= {"per_device_train_batch_size": num_groups * SAMPLES, "include_num_input_tokens_seen": "no"}
    config = GRPOConfig(
        **shared,
        max_steps=settings["steps"],
        num_generations=SAMPLES,
        max_completion_length=task.max_new_tokens,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        reward_weights=list(REWARDS.values()),
    )
    peak = Peak(job, items[:HELD_OUT])
    trainer = RewardTrainer(
        model=model,
        reward_funcs=[_told(reward.__name__) for reward in REWARDS],
        args=config,
        # The rollouts choose the items; the trainer only counts places.
        train_dataset=Dataset.from_list([{"prompt": ""}] * (num_groups * settings["steps"])),
        processing_class=job.resident.local_engine.tokenizer,
        rollout_func=rollouts,
        callbacks=[watch, peak],
    )
    trainer.notes = peak.notes
    share_prompts(model.get_base_model(), trainer._count)
    return trainer


train = partial(run_training, reward_trainer)
"""The job; num_examples counts groups of samples."""


class RewardTrainer(SharedPrompts, GRPOTrainer):
    """GRPOTrainer in whose batches what the prompts share goes through the model once."""

    notes: Json


class Rollouts:
    """Samples a step's groups with the model of the moment. The same step of the same training gets the same groups."""

    def __init__(self, job: Job, items: list[Item], num_groups: int, seed: int) -> None:
        self.job, self.items, self.num_groups, self.seed = job, items, num_groups, seed

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Return what GRPOTrainer asks of a rollout for as many samples as prompts, and the rewards by name."""
        groups = self.groups(trainer, len(prompts) // SAMPLES)
        told: dict[str, list[Any]] = {name: [] for name in ("prompt_ids", "completion_ids")}
        told |= {reward.__name__: [] for reward in REWARDS}
        tokenizer = self.job.resident.local_engine.tokenizer
        for item, answers, rewards in groups:
            told["prompt_ids"] += [encode_chat(tokenizer, chat(self.job, item))] * len(answers)
            told["completion_ids"] += [completion_ids(tokenizer, answer) for answer in answers]
            for name, values in rewards.items():
                told[name] += values
        return {"logprobs": None} | told  # the same weights drew them: nothing to correct for

    def groups(self, trainer: Any, count: int) -> list[tuple[Item, list[Completion], dict[str, list[float]]]]:
        """Return count groups, those whose samples differ in reward before the others."""
        engine, scorer = self.job.resident.local_engine, self.job.resident.scorer
        model = trainer.accelerator.unwrap_model(trainer.model)
        useful: list[Any] = []
        useless: list[Any] = []
        for attempt in range(TRIES):
            name = f"{self.seed}/{trainer.state.global_step}/{attempt}/{trainer.accelerator.process_index}"
            chosen = random.Random(name).sample(self.items, min(2 * count, len(self.items)))
            sampling = Sampling(self.job.resident.task.max_new_tokens, SAMPLES, 1.0, zlib.crc32(name.encode()))
            with sampling_with(engine, model):
                sampled = engine.generate([chat(self.job, item) for item in chosen], sampling)
            pairs = [(item, one.text) for item, answers in zip(chosen, sampled, strict=True) for one in answers]
            verdicts = scorer.score(pairs)
            for place, (item, answers) in enumerate(zip(chosen, sampled, strict=True)):
                own = verdicts[place * SAMPLES : (place + 1) * SAMPLES]
                rewards = {reward.__name__: reward(own, answers) for reward in REWARDS}
                differ = len(set(zip(*rewards.values(), strict=True))) > 1
                (useful if differ else useless).append((item, answers, rewards))
            if len(useful) >= count:
                break
        return [*useful, *useless][:count]


class Peak(TrainerCallback):
    """Looks at held-out items every few steps, ends training behind the peak, and brings the peak's weights back."""

    def __init__(self, job: Job, items: list[Item]) -> None:
        self.job, self.items = job, items
        self.best, self.looks = job.folder / "best.safetensors", job.folder / "looks.json"
        self.notes: Json = {"held_out": {"n": len(items), "right": {}}}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the model that training starts from. After a kill, forget what lies behind the checkpoint.

        The weights of a peak behind it stay until the same steps, done again, write the same ones.
        """
        known = read_json(self.looks) if self.looks.exists() else {}
        right = self.notes["held_out"]["right"]
        right.update({step: count for step, count in known.items() if int(step) <= state.global_step})
        if "0" not in right:
            self._look(0, kwargs["model"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Look, and stop when the last looks brought nothing."""
        if state.global_step % STEPS_BETWEEN_LOOKS and state.global_step < state.max_steps:
            return control
        right = self.notes["held_out"]["right"]
        if str(state.global_step) not in right:
            self._look(state.global_step, kwargs["model"])
        counts = list(right.values())
        if len(counts) - 1 - counts.index(max(counts)) >= PATIENCE:
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the weights of the peak."""
        set_peft_model_state_dict(kwargs["model"], load_file(self.best))

    def _look(self, step: int, model: Any) -> None:
        engine, right = self.job.resident.local_engine, self.notes["held_out"]["right"]
        with sampling_with(engine, model):
            answers = engine.generate(
                [chat(self.job, item) for item in self.items], Sampling(self.job.resident.task.max_new_tokens)
            )
        pairs = [(item, samples[0].text) for item, samples in zip(self.items, answers, strict=True)]
        count = sum(verdict.right for verdict in self.job.resident.scorer.score(pairs))
        if count > max(right.values(), default=-1):
            self._keep(model)
        right[str(step)] = count
        write_json(self.looks, right)

    def _keep(self, model: Any) -> None:
        temporary = self.best.with_suffix(".tmp")
        save_file({name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(model).items()}, temporary)
        temporary.replace(self.best)


def _told(name: str) -> Any:
    """Return TRL's reward function of that name: what the rollout said."""

    def reward(**columns: Any) -> list[float]:
        return list(columns[name])

    reward.__name__ = name
    return reward
