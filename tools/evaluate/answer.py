"""Answer questions with a model under a policy: the job behind every evaluation. It sees questions, never answers."""

from typing import Any

from memory.store import GREEDY, RunStore
from tools.contract import Json
from tools.jobs.job import Job

BATCH_ITEMS = 256


def answer_questions(
    job: Job,
    model: str,
    questions: list[str],
    shots: bool,
    max_new_tokens: int,
    policy: str = GREEDY,
    tests: list[list[Any]] | None = None,
) -> Json:
    """Return the answers, in order, and the tokens spent per item.

    shots: with the task's seed examples, an arm of its own beside the policies. tests: see `tools.refine.policy`.
    """
    from tools.refine.policy import answer

    resident, store = job.resident, RunStore(job.run_dir)
    answers: list[Any] = []
    before = resident.tokens_processed  # also of a judge, or of a training, that a policy asks for
    for first in range(0, len(questions), BATCH_ITEMS):
        part = slice(first, first + BATCH_ITEMS)
        if shots:
            answers += _with_seed_examples(resident, store, model, questions[part], max_new_tokens)
        else:
            shown = None if tests is None else tests[part]
            answers += answer(resident, store, model, policy, questions[part], max_new_tokens, shown)
        job.progress(len(answers), len(questions))
    tokens = resident.tokens_processed - before
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


def _with_seed_examples(
    resident: Any, store: RunStore, model: str, questions: list[str], max_new_tokens: int
) -> list[Any]:
    from tools.engines.base import Sampling, build_messages

    examples = [(item.question, item.answer) for item in resident.task.seed_examples()]
    prompts = [build_messages(text, examples, resident.settings["system_prompt"]) for text in questions]
    resident.engine.use_model(store.model_dir(model))
    return [samples[0] for samples in resident.engine.generate(prompts, Sampling(max_new_tokens))]
