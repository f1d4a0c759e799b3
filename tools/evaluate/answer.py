"""Answer questions greedily with one model: the job behind every evaluation. It sees questions, never answers."""

from typing import Any

from memory.store import RunStore
from tools.contract import Json
from tools.jobs.job import Job

BATCH_ITEMS = 256


def answer_questions(job: Job, model: str, questions: list[str], shots: bool, max_new_tokens: int) -> Json:
    """Return the greedy answers, in order, and the tokens spent per item.

    shots: with the task's seed examples.
    """
    from tools.engines.base import Sampling, build_messages

    resident = job.resident
    examples = [(item.question, item.answer) for item in resident.task.seed_examples()] if shots else []
    resident.engine.use_model(RunStore(job.run_dir).model_dir(model))
    system_prompt = resident.settings["system_prompt"]
    answers: list[Any] = []
    before = resident.engine.tokens_processed
    for first in range(0, len(questions), BATCH_ITEMS):
        prompts = [build_messages(text, examples, system_prompt) for text in questions[first : first + BATCH_ITEMS]]
        completions = resident.engine.generate(prompts, Sampling(max_new_tokens))
        answers += [samples[0] for samples in completions]
        job.progress(len(answers), len(questions))
    tokens = resident.engine.tokens_processed - before
    generated = sum(answer.num_tokens for answer in answers)
    return {
        "answers": [answer.text for answer in answers],
        "stopped": [answer.finish == "stop" for answer in answers],
        "num_tokens": [answer.num_tokens for answer in answers],
        "logprobs": [None if answer.logprob != answer.logprob else round(answer.logprob, 4) for answer in answers],
        # The last token of an answer is drawn and never read.
        "prompt_tokens_per_item": (tokens - generated) / len(questions) + 1,
        "answer_tokens_per_item": generated / len(questions),
        "identity": resident.engine.identity(),
    }
