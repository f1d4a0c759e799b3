"""What each tool has brought so far: gain and cost of the rounds it took part in, for the planner's menu.

A round is what happened since the verdict before: all tools called in it share its outcome, each with its own cost.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.statistics import paired_gain
from agent.trace import Event, read_events
from memory.records import read_json
from memory.store import GREEDY, RunStore
from tools.contract import Json


@dataclass
class Outcome:
    """Of one tool, over rounds that ended with a verdict."""

    num_rounds: int = 0
    num_kept: int = 0
    num_fixed: int = 0
    """Search items that the candidates got right and the champions of then did not; summed over rounds."""
    num_broken: int = 0
    num_items: int = 0
    num_tokens: int = 0
    """Of the tool's own calls."""

    def text(self) -> str:
        """Return it in a few words, with the 95 % interval of the gain of a round."""
        gain, low, high = (100 * share for share in paired_gain(self.num_fixed, self.num_broken, self.num_items))
        kept = f"{self.num_kept} of {self.num_rounds} kept"
        cost = round(self.num_tokens / self.num_rounds / 1000)
        return f"{kept}, {gain:+.0f} points [{low:.0f}, {high:.0f}] and {cost}k tokens a round"


def outcomes_of(store: RunStore, earlier: dict[str, Outcome] | None = None) -> dict[str, Outcome]:
    """Return the outcome of each tool that took part in a judged round of a run, added to `earlier`."""
    found = {tool: Outcome(**vars(outcome)) for tool, outcome in (earlier or {}).items()}
    for tokens_of, judged in _rounds(store.run_dir):
        change = changed_items(store, judged["candidate"], judged["champion"], judged)
        if change is None:
            continue
        for tool, tokens in tokens_of.items():
            outcome = found.setdefault(tool, Outcome())
            outcome.num_rounds += 1
            outcome.num_kept += judged["accepted"]
            outcome.num_fixed += change["fixed"]
            outcome.num_broken += change["broken"]
            outcome.num_items += change["n"]
            outcome.num_tokens += tokens
    return found


def earlier_outcomes(run_dir: Path) -> dict[str, Outcome]:
    """Return the outcomes of the runs beside this one that had the same task and model; a damaged run has none."""
    here = _learned(run_dir / "run.json")
    found: dict[str, Outcome] = {}
    for path in sorted(run_dir.parent.glob("*/run.json")):
        # Whatever became of an old run must not stop a new one: `doctor` says what is wrong with it.
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            if path.parent != run_dir and _learned(path) == here:
                found = outcomes_of(RunStore(path.parent), found)
    return found


def _learned(path: Path) -> list[Json]:
    identity = read_json(path).get("identity", {})
    return [identity.get(name) for name in ("task", "model")]


def changed_items(store: RunStore, candidate: str, champion: str, verdict: Json) -> Json | None:
    """Return how many search items a candidate fixed and broke against a champion; None when one was not measured.

    verdict: says by which policy both were asked; that of a policy has the champion's model on both sides.
    """
    model = champion if verdict.get("tries_policy") else candidate
    records = [
        store.score(champion, policy=verdict.get("champion_policy", GREEDY)),
        store.score(model, policy=verdict.get("policy", GREEDY)),
    ]
    before, after = (
        {row["id"]: row["verdict"] == "right" for row in store.rows("evals", record["id"], "items.jsonl")}
        if record
        else {}
        for record in records
    )
    if not before or not after:
        return None
    fixed = sum(right and not before[item] for item, right in after.items())
    broken = sum(before[item] and not right for item, right in after.items())
    return {"fixed": fixed, "broken": broken, "n": len(after)}


def _rounds(run_dir: Path) -> Iterator[tuple[dict[str, int], Event]]:
    """Yield the tokens of each tool and the verdict's event of each judged round."""
    calls: dict[int, tuple[str, int]] = {}  # by step: a step that was killed after its end is told twice
    for event in read_events(run_dir):
        if event["kind"] == "tool_finished":
            calls[event["step"]] = event["tool"], event["usage"]["tokens"]
        elif event["kind"] == "judged":
            tokens_of: dict[str, int] = {}
            for tool, tokens in calls.values():
                tokens_of[tool] = tokens_of.get(tool, 0) + tokens
            calls = {}
            if tokens_of:
                yield tokens_of, event
