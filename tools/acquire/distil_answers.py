"""Take a stronger model's right answers to training items: exploring alone, but by another.

Distillation of whole answers (arXiv 1606.07947), verified by the task's scorer like the model's own. Every row names
its teacher. Legal only when the user names one (`--teacher URL#MODEL`): whether its answers may be trained on is for
the user to know. An answer that does not come, or is refused, costs one row; a teacher that gives none to a whole
chunk ends the call, and what it gave before is there when it is called again. Not on the menu by default; `--tools
distil_answers` offers it.
"""

from typing import Any, Literal

from tools.acquire.questions import refused_row
from tools.acquire.sampling import (
    Chunk,
    acquire,
    answer_row,
    chat,
    common_args,
    fresh_items,
    sampling_tokens,
    summary,
    verify,
    wants_data,
)
from tools.acquire.teacher import ROOM, known_teacher
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.engines.base import Sampling
from tools.jobs.job import Job

CHUNK_ITEMS = 32


def legal_distilling(context: ToolContext) -> Grid | None:
    """While data is wanted and the user named a teacher."""
    return {} if known_teacher(context.store) and wants_data(context) else None


def distilling_tokens(context: ToolContext, num_items: int) -> int:
    """Tokens of the teacher, and of the training and verdict that make its answers useful."""
    return sampling_tokens(context, num_items, 1)


@tool(
    stage="acquire",
    section="synthetic generation",
    optional=True,
    when=legal_distilling,
    estimate_tokens=distilling_tokens,
)
def distil_answers(run: ToolRun, num_items: Literal[128, 256, 512] = 256) -> Json:
    """Let the user's teacher answer new training items and keep what the scorer says is right.

    Use it when the champion hardly finds right answers by itself. Returns how many items have a right answer.
    """
    teacher = known_teacher(run.context.store)
    if teacher is None:
        raise ToolError("the user named no teacher; choose another action")
    args = common_args(run.context, "distil_answers") | {"num_items": num_items, "samples_per_item": 1}
    # A teacher has seen no example of the task's form and is not at fault for it.
    args |= {"teacher": teacher["model"], "shots": True, "temperature": 0.0}
    made, _ = run.context.jobs.run("tools.acquire.distil_answers:ask_teacher", args)
    return dict(made)


def ask_teacher(job: Job, **args: Any) -> Json:
    """Ask and verify in the worker, chunk by chunk; see `acquire`."""
    return summary(acquire(job, args, fresh_items, _ask, chunk_size=CHUNK_ITEMS))


def _ask(chunk: Chunk) -> list[Json]:
    resident, items = chunk.job.resident, chunk.units
    teacher = resident.teacher
    sampling = Sampling(ROOM * resident.task.max_new_tokens)
    answers = teacher.generate([chat(chunk, item.question) for item in items], sampling)
    if not any(answers):
        raise ToolError(
            f"the teacher {chunk.args['teacher']} answered none of {len(items)} questions: {teacher.failures[-1]}; "
            "mend that and call distil_answers again, or choose another action"
        )
    answered = [(item, samples[0]) for item, samples in zip(items, answers, strict=True) if samples]
    about = {"model": chunk.args["teacher"], "distilled": True, "pass_rate": 0.0, "sample": 0, "num_samples": 1}
    rows = []
    for (item, answer), verdict in zip(
        answered, verify(chunk, [(item, answer.text) for item, answer in answered]), strict=True
    ):
        right = verdict.right and answer.finish == "stop"
        rows.append(answer_row(chunk, item, answer, right, verdict.kind, **about))
    silent = [item for item, samples in zip(items, answers, strict=True) if not samples]
    return rows + [refused_row(chunk, item, "no_answer") | {"model": about["model"]} for item in silent]
