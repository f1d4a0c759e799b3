"""Best of n by a judge: of several sampled answers the one that the base model grades highest (arXiv 2110.14168).

The grades are those of tools/tasks/judge.py with the default rubric; a small model grades badly, which the control, a
vote of as many samples, shows. Where a judge is the task's scorer, nothing may choose by it.
"""

from pathlib import Path
from typing import Literal

from memory.store import BASE, RunStore
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.engines.base import Completion, Message
from tools.refine.policy import Asked
from tools.refine.proposal import changed, proposal_tokens, propose, untried
from tools.refine.self_consistency import TEMPERATURE, draw, majority, vote_settings

GRADING_COST = 3.0
"""Tokens of drawing and grading an answer, in those of drawing it: a grade reads a rubric and the question again."""
USE = (
    "Sample `samples` answers at `temperature`, let the base model grade each different one from 0 to 10 (the prompt "
    "is prompts/judge_rubric.md), and take the one with the highest grade, of equal ones the most frequent."
)


def choose(choice: Json, asked: Asked, prompts: list[list[Message]]) -> list[Completion]:
    """Return for each prompt the sample with the highest grade; of equal grades the most frequent answer."""
    samples = draw(choice, asked, prompts)
    different = [
        (place, text) for place, mine in enumerate(samples) for text in dict.fromkeys(one.text.strip() for one in mine)
    ]
    grades = grade_answers(asked, prompts, different)
    found = []
    for place, drawn in enumerate(samples):
        mine = [one for one in drawn if one.finish == "stop"] or drawn
        best = max(grades[place, one.text.strip()] for one in mine)
        found.append(majority([one for one in mine if grades[place, one.text.strip()] == best]))
    return found


def grade_answers(
    asked: Asked, prompts: list[list[Message]], answers: list[tuple[int, str]]
) -> dict[tuple[int, str], float]:
    """Return the base model's grade, from 0 to 1, of each (place of its prompt, answer)."""
    from tools.tasks.base import Item
    from tools.tasks.judge import JudgeScorer, make_judge_spec

    judge = JudgeScorer(make_judge_spec("judge:self", {"judge_unchecked": True}, Path()), asked.ask_base)
    pairs = [(Item(prompts[place][-1]["content"], "(none is given)", "all"), text) for place, text in answers]
    return dict(zip(answers, (verdict.score for verdict in judge.score(pairs)), strict=True))


def judged_settings(samples: int) -> Json:
    """Return the part of a policy that takes the answer with the highest grade."""
    return {"kind": "judged_answer", "samples": samples, "temperature": TEMPERATURE}


def scored_by_a_judge(store: RunStore) -> bool:
    """Whether a judge is the task's scorer."""
    return "scorer_note" in (store.score(BASE) or {})


def legal_judged(context: ToolContext) -> Grid | None:
    """No judge scores the task, nothing waits for a verdict, and the champion was not asked so yet."""
    store = context.store
    if store.candidate() is not None or scored_by_a_judge(store):
        return None
    wanted = [number for number in (4, 8) if untried(store, changed(store, choice=judged_settings(number)))]
    return {"samples": wanted} if wanted else None


def judged_tokens(context: ToolContext, samples: int) -> int:
    """Tokens of measuring it and a vote of as many samples on search items, and it on gate items."""
    return proposal_tokens(context, GRADING_COST * samples, 2)


@tool(stage="refine", section="best of n", optional=True, when=legal_judged, estimate_tokens=judged_tokens)
def take_judged_answer(run: ToolRun, samples: Literal[4, 8] = 4) -> Json:
    """Let the base model grade several answers of the champion to each question and take the best one.

    Use it where answers are texts that seldom agree word for word, so that a vote says nothing. A vote of as many
    samples is measured as the control. Returns the search score, how many times the champion's tokens an answer costs,
    and whether the champion answers so from now on.
    """
    store = run.context.store
    if scored_by_a_judge(store):
        raise ToolError("a judge scores this task, and a policy may not look at what scores it")
    control = changed(store, choice=vote_settings(samples))
    return propose(run.context, changed(store, choice=judged_settings(samples)), control)
