"""Whether the champions of two runs differ on the final items, as the end of a run says it of its own."""

from pathlib import Path

from agent.console import change_text
from agent.figures import gain
from agent.views import open_run, read_report
from memory.records import read_jsonl
from tools.contract import Json

FINAL_ANSWERS = "final_answers.jsonl"
"""In <run>/referee: {"id", "verdict"} of the champion's answer to each final item, written as the split is opened."""
JUDGED_BY = ("task", "scorer code")
"""Of the hashes in run.json: where they differ, the same answer may be right in one run and wrong in the other."""


def final_pair(run_a: Path, run_b: Path) -> Json:
    """Return {"why"} where the final scores cannot be compared, else {"n"} with the gain of B's champion over A's.

    See `agent.figures.gain`; the items are matched by their ids.
    """
    if not all((read_report(run) or {}).get("final") for run in (run_a, run_b)):
        return {"why": "not both runs have opened it"}
    ids = [{row["id"] for row in read_jsonl(run / "referee" / "final.jsonl")} for run in (run_a, run_b)]
    if ids[0] != ids[1]:
        return {"why": "not the same items"}
    hashes = [open_run(run).get("identity", {}).get("hashes", {}) for run in (run_a, run_b)]
    if changed := [part for part in JUDGED_BY if hashes[0].get(part) != hashes[1].get(part)]:
        return {"why": f"the same items, but not the same {' and '.join(changed)}"}
    a, b = (_right(run) for run in (run_a, run_b))
    if without := [run.name for run, found in ((run_a, a), (run_b, b)) if not found]:
        told = "which ones were right was not kept by the version that made"
        return {"why": f"the same items, but {told} {' and '.join(without)}"}
    return {"why": None, "n": len(a)} | gain(list(a.values()), [b[item] for item in a])


def _right(run_dir: Path) -> dict[str, bool]:
    return {row["id"]: row["verdict"] == "right" for row in read_jsonl(run_dir / "referee" / FINAL_ANSWERS)}


def final_pair_text(pair: Json) -> str:
    """Return it in words."""
    if pair["why"]:
        return f"final split not compared item by item: {pair['why']}"
    return f"final split, B against A on the same {pair['n']} items: {change_text(pair)}"
