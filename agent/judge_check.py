"""May a judge's scores be used? Its agreement with a gold set and its known answers, before the first score of a run.

<run>/referee/judge.json: what was found, by the hash of the judge and its gold set; a resumed run reads it.
"""

from pathlib import Path

from agent.statistics import wilson_interval
from memory.records import content_id, read_json, write_json
from tools.contract import Json
from tools.tasks.base import Item
from tools.tasks.judge import Gold, JudgeScorer, read_gold
from tools.tasks.known_answers import COINCIDENCE_LIMIT, known_answer_checks

NUM_CHECKED = 8
"""Items that the known-answer checks use: each costs a judge ten replies."""


def check_judge(judge: JudgeScorer, items: list[Item], referee_dir: Path) -> str:
    """Measure a judge once, write it down, and return the words that its scores carry from now on.

    Raises ValueError when it misses more than a quarter of the known answers of a kind, or when the lower end of the
    interval of its agreement with the gold set is no better than always giving the gold set's more frequent verdict.
    """
    gold = read_gold(Path(judge.spec["gold"])) if judge.spec["gold"] else []
    identity = content_id([judge.spec, [[row.item.to_json(), row.answer, row.right] for row in gold]])
    path = referee_dir / "judge.json"
    known = read_json(path) if path.exists() else {}
    if known.get("identity") != identity:
        known = {"identity": identity} | _measure(judge, items, gold)
        write_json(path, known)
    if known["failures"]:
        raise ValueError(
            f"the judge fails its known-answer checks: {'; '.join(known['failures'][:3])}; use a stronger judge or a"
            " clearer rubric"
        )
    judge.agreement = known["agreement"]
    return f"judge, {judge.agreement}"


def agreement(says: list[bool], right: list[bool]) -> Json:
    """Return n, accuracy, its 95 % Wilson interval, chance (the more frequent verdict's share) and Cohen's kappa."""
    n = len(right)
    agreed = sum(one == two for one, two in zip(says, right, strict=True))
    low, high = wilson_interval(agreed, n)
    share, said = sum(right) / n, sum(says) / n
    expected = share * said + (1 - share) * (1 - said)
    kappa = (agreed / n - expected) / (1 - expected) if expected < 1 else 0.0
    return {
        "n": n,
        "accuracy": agreed / n,
        "ci95": [low, high],
        "chance": max(share, 1 - share),
        "kappa": kappa,
    }


def _measure(judge: JudgeScorer, items: list[Item], gold: list[Gold]) -> Json:
    failures = known_answer_checks(items[:NUM_CHECKED], judge.score, COINCIDENCE_LIMIT)
    if not gold:
        return {"agreement": "unchecked", "failures": failures}
    verdicts = judge.score([(row.item, row.answer) for row in gold])
    found = agreement([verdict.right for verdict in verdicts], [row.right for row in gold])
    low, high = found["ci95"]
    words = (
        f"agrees with {100 * found['accuracy']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of n={found['n']} gold rows"
    )
    if low <= found["chance"]:
        failures.append(f"it {words}, and {100 * found['chance']:.0f} % would be chance (more gold rows narrow this)")
    return found | {"agreement": f"{words}, kappa {found['kappa']:.2f}", "failures": failures}
