"""Tree search (arXiv 2305.10601): an answer is written step by step, and the best of several beginnings go on.

The base model grades each beginning, as in self-evaluation guided beam search (arXiv 2305.00633), by the rubric of
judged_answer.py, as if it were the answer. A small model grades badly, which the control, a vote of as many samples as
are drawn for a step, shows. Grading each step costs many times what that vote does.
"""

import zlib
from typing import Literal

from memory.store import RunStore
from tools.contract import Grid, Json, ToolContext, ToolError, ToolRun, tool
from tools.engines.base import Completion, Message, Sampling
from tools.evaluate.costs import answer_tokens, base_record, split_sizes
from tools.refine.judged_answer import GRADING_COST, grade_answers, scored_by_a_judge
from tools.refine.policy import Asked
from tools.refine.proposal import changed, proposal_tokens, propose, untried
from tools.refine.self_consistency import TEMPERATURE, vote_settings

BEAM, STEP_TOKENS = 2, 32
USE = (
    "Write an answer in steps; a step ends with a line, or after `step_tokens` tokens. Draw `branches` next steps at "
    "`temperature` for each of the `beam` best beginnings, let the base model grade each different one from 0 to 10 "
    "(the prompt is prompts/judge_rubric.md) and keep the `beam` best, of equal grades the likelier, until all of them "
    "have ended. Take the ended answer with the highest grade."
)


def choose(choice: Json, asked: Asked, prompts: list[list[Message]]) -> list[Completion]:
    """Return for each prompt the ended answer with the highest grade, of equal grades the likeliest one.

    Where none has ended within the task's length, a cut one. Log-probabilities are the mean of a token's.
    """
    grades: dict[tuple[int, str], float] = {}

    def best(place: int, answers: list[Completion], count: int) -> list[Completion]:
        def worth(one: Completion) -> tuple[float, float]:
            return grades[place, one.text.strip()], one.logprob / one.num_tokens

        return sorted(answers, key=worth, reverse=True)[:count]

    beams = [[Completion("", 0, 0.0, "length")] for _ in prompts]
    ended: list[list[Completion]] = [[] for _ in prompts]
    turn = 0
    while growing := [(place, one) for place, beam in enumerate(beams) for one in beam if _grows(one, asked)]:
        drawn = _draw_steps(choice, asked, prompts, growing, turn)
        texts = dict.fromkeys((place, one.text.strip()) for place, mine in enumerate(drawn) for one in mine)
        grades |= grade_answers(asked, prompts, [text for text in texts if text not in grades])
        for place, mine in enumerate(drawn):
            resting = [one for one in beams[place] if not _grows(one, asked)]
            beams[place] = best(place, resting + mine, choice["beam"])
            ended[place] += [one for one in mine if one.finish == "stop"]
        turn += 1
    return [best(place, ended[place] or beam, 1)[0] for place, beam in enumerate(beams)]


def _grows(answer: Completion, asked: Asked) -> bool:
    return answer.finish != "stop" and answer.num_tokens < asked.max_new_tokens


def _draw_steps(
    choice: Json, asked: Asked, prompts: list[list[Message]], growing: list[tuple[int, Completion]], turn: int
) -> list[list[Completion]]:
    """Return for each prompt its growing answers with one more step, different ones; the same for the same policy."""
    drawn: list[dict[tuple[str, str], Completion]] = [{} for _ in prompts]
    rooms = [min(choice["step_tokens"], asked.max_new_tokens - one.num_tokens) for _, one in growing]
    seed = zlib.crc32(f"{asked.policy}/{turn}".encode())
    for room in sorted(set(rooms)):
        mine = [pair for pair, its_room in zip(growing, rooms, strict=True) if its_room == room]
        chats = [[*prompts[place], *_begun(before.text)] for place, before in mine]
        sampling = Sampling(room, choice["branches"], choice["temperature"], seed)
        for (place, before), samples in zip(mine, asked.engine.generate(chats, sampling), strict=True):
            for one in (_with_step(before, sample) for sample in samples):
                drawn[place].setdefault((one.text, one.finish), one)
    return [list(different.values()) for different in drawn]


def _begun(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)] if text else []


def _with_step(before: Completion, drawn: Completion) -> Completion:
    """Return an answer with what was drawn, up to the end of its first line that says something.

    Tokens and log-probability of a part are its share by length of text: an estimate.
    """
    # A cut may fall between the tokens of one letter, which the next step writes anew.
    text = drawn.text if drawn.finish == "stop" else drawn.text.rstrip("\N{REPLACEMENT CHARACTER}")
    blank = len(text) - len(text.lstrip())
    step = text[: text.find("\n", blank) + 1] or text
    share = (len(step) + 1) / (len(drawn.text) + 1)
    num_tokens = before.num_tokens + max(1, round(share * drawn.num_tokens))
    finish = drawn.finish if step == drawn.text else "length"
    return Completion(before.text + step, num_tokens, before.logprob + share * drawn.logprob, finish)


def tree_settings(branches: int) -> Json:
    """Return the part of a policy that searches a tree."""
    sizes = {"beam": BEAM, "branches": branches, "step_tokens": STEP_TOKENS}
    return {"kind": "tree_search", "temperature": TEMPERATURE} | sizes


def legal_tree(context: ToolContext) -> Grid | None:
    """Answers have several steps, no judge scores the task, nothing waits for a verdict, and it was not tried yet."""
    store = context.store
    if store.candidate() is not None or scored_by_a_judge(store) or not _has_several_steps(store):
        return None
    wanted = [number for number in (2, 4) if untried(store, changed(store, choice=tree_settings(number)))]
    return {"branches": wanted} if wanted else None


def _has_several_steps(store: RunStore) -> bool:
    """Whether the base model's answers are longer than a step; with examples they are about as long as right ones."""
    few_shot = base_record(store, few_shot=True) is not None
    return answer_tokens(store, few_shot)[1] > STEP_TOKENS


def tree_tokens(context: ToolContext, branches: int) -> int:
    """Tokens of measuring it on search and gate items, each step drawn and graded, and a vote on search items."""
    store, samples = context.store, BEAM * branches
    vote = split_sizes(store)["search"] * samples * sum(answer_tokens(store))
    return int(vote) + proposal_tokens(context, GRADING_COST * samples * _most_steps(store))


def _most_steps(store: RunStore) -> float:
    """Return how many steps the base model's answers have at most: one a line, and one every STEP_TOKENS tokens."""
    record = base_record(store, few_shot=False)
    rows = [] if record is None else store.rows("evals", record["id"], "items.jsonl")
    lines = sum(bool(line.strip()) for row in rows for line in row["answer"].splitlines())
    return lines / max(1, len(rows)) + answer_tokens(store)[1] / STEP_TOKENS


@tool(stage="refine", section="tree search", optional=True, when=legal_tree, estimate_tokens=tree_tokens)
def search_answer_tree(run: ToolRun, branches: Literal[2, 4] = 2) -> Json:
    """Let the champion write answers step by step, with the base model grading each step and the best going on.

    Use it where answers have several lines and go wrong on the way. A vote of as many samples as are drawn for a step
    is measured as the control. Returns the search score, how many times the champion's tokens an answer costs, and
    whether the champion answers so from now on.
    """
    store = run.context.store
    if scored_by_a_judge(store):
        raise ToolError("a judge scores this task, and a policy may not look at what scores it")
    control = changed(store, choice=vote_settings(BEAM * branches))
    return propose(run.context, changed(store, choice=tree_settings(branches)), control)
