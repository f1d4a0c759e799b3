"""Probe what a model may lose while it learns a task: the job behind the referee's guards.

The suite (probe_suite.jsonl) is fixed: plain chat prompts, questions of other skills and requests to refuse. The base
model's greedy answers to it are the reference, along which a model's next-token distributions are compared with its.
"""

from pathlib import Path

from memory.records import read_jsonl
from memory.store import RunStore
from tools.contract import Json
from tools.engines.base import Sampling, build_messages
from tools.jobs.job import Job

SUITE = Path(__file__).with_name("probe_suite.jsonl")
"""Rows of {"kind": "chat" | "skill" | "refusal", "prompt"}."""
ANSWER_TOKENS = 16


def probe_model(job: Job, model: str, reference: Json | None) -> Json:
    """Return, for each row of the suite in order, what a model does with it.

    reference: {"answers", "stopped"} of the base model; None when it is the base model that is probed. Returns
    {"kinds", "answers", "stopped", "usual": the base model's mean log-probability per token of these answers, "kl":
    KL(base || model) per token of the reference}.
    """
    from tools.engines.likelihood import AnswerReader

    engine = job.resident.local_engine
    suite = list(read_jsonl(SUITE))
    prompts = [build_messages(row["prompt"], [], job.resident.settings["system_prompt"]) for row in suite]
    engine.use_model(RunStore(job.run_dir).model_dir(model))
    completions = [samples[0] for samples in engine.generate(prompts, Sampling(ANSWER_TOKENS))]
    answers, stopped = [one.text for one in completions], [one.finish == "stop" for one in completions]
    job.progress(1, 3)
    usual = AnswerReader(engine, prompts, answers, stopped).base_logprobs()
    job.progress(2, 3)
    kl = [0.0] * len(suite) if reference is None else AnswerReader(engine, prompts, **reference).divergences()
    return {
        "kinds": [row["kind"] for row in suite],
        "answers": answers,
        "stopped": stopped,
        "usual": [round(value, 4) for value in usual],
        "kl": [round(value, 4) for value in kl],
    }


def sample_answers(job: Job, model: str, questions: list[str], num_samples: int, max_new_tokens: int) -> Json:
    """Return num_samples answers of a model to each question: {"answers": [[text]]}."""
    engine = job.resident.engine
    engine.use_model(RunStore(job.run_dir).model_dir(model))
    prompts = [build_messages(text, [], job.resident.settings["system_prompt"]) for text in questions]
    completions = engine.generate(prompts, Sampling(max_new_tokens, num_samples, temperature=1.0))
    return {"answers": [[sample.text for sample in samples] for samples in completions]}
