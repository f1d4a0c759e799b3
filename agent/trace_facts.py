"""What status, list and the pages need to know of a whole trace, gathered event by event: no event is kept.

So a trace of any length is read once in constant memory, and who follows a live one adds only what was appended.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from agent.trace import Event, read_events


@dataclass
class TraceFacts:
    """The facts of the events added so far."""

    num_events: int = 0
    step: int = 0
    """The highest step; 0 = none began."""
    tool: str | None = None
    """The tool under way: started and neither finished nor refused."""
    decided_by: Counter[str] = field(default_factory=Counter)
    """Steps by who decided them last."""
    last_decided: tuple[int, str] | None = None
    """Step and decider of the newest decision."""
    budget_left_percent: int | None = None
    """As the newest step began; None before the first."""
    spent_s: float = 0.0
    """Wall seconds of the run up to the newest event."""
    began_s: float | None = None
    """Wall seconds when the first step began, the base being measured; None before."""
    last_ts: str | None = None
    under_way: int | None = None
    """The step that was decided and has neither result nor refusal (yet)."""
    num_resumed: int = 0
    """How often this run was resumed; that a fork begins, and what its parent did before, does not count."""
    begins: bool = False
    """Whether a fork was made and has not begun to work."""
    ended: bool = False
    """Whether an ending was written and the run was not resumed after it."""
    judged_s: dict[str, float] = field(default_factory=dict)
    """Wall seconds at the first verdict on each candidate."""

    def add(self, event: Event) -> None:
        """Take in the next event."""
        kind = event["kind"]
        self.num_events += 1
        self.last_ts = event["ts"]
        self.spent_s = max(self.spent_s, event["spent_s"])
        if event["step"] is not None:
            self.step = max(self.step, event["step"])
        match kind:
            case "observed":
                self.budget_left_percent = event["situation"]["budget_left_percent"]
                self.began_s = event["spent_s"] if self.began_s is None else self.began_s
            case "decided":
                if self.last_decided is not None and self.last_decided[0] == event["step"]:
                    self.decided_by[self.last_decided[1]] -= 1  # a person edited it, or a kill repeated it
                    self.decided_by += Counter()  # drops zeros
                self.last_decided = event["step"], event["decided_by"]
                self.under_way = event["step"]
                self.decided_by[event["decided_by"]] += 1
            case "tool_started":
                self.tool = event["tool"]
            case "tool_finished" | "tool_failed":
                self.tool = self.under_way = None
            case "judged":
                self.judged_s.setdefault(event["candidate"], event["spent_s"])
            case "forked":
                self.num_resumed, self.begins = 0, True
            case "run_resumed":
                self.num_resumed += not self.begins
                self.begins = self.ended = False
            case "run_stopped":
                self.ended = True


def facts_of(run_dir: Path) -> TraceFacts:
    """Return the facts of a run's whole trace."""
    facts = TraceFacts()
    for event in read_events(run_dir):
        facts.add(event)
    return facts
