"""What a person sees while a run goes on: one line per event, and on a terminal a live line with progress.

Everything goes to standard error, so that `--json` leaves standard output to the final line.
"""

import time
from typing import TYPE_CHECKING, Any

from agent.decision_text import decides_text, sureness_text, why_text
from agent.sealing import looks_text
from agent.views import final_lines, verdict_text
from memory.store import opened_text
from tools.contract import Json

if TYPE_CHECKING:
    from rich.status import Status


class Console:
    """Prints events; quiet=True prints nothing (tests)."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole  # commands that only read need not wait for it

        self.rich = RichConsole(stderr=True, quiet=quiet, highlight=False)
        self.rich.soft_wrap = not self.rich.is_terminal  # in a log a line stays a line
        self._status: Status | None = None
        self._headline = ""
        self._job_started = 0.0
        self._job = ""

    def say(self, text: str) -> None:
        """Print one line."""
        self.rich.print(escape(text))

    def ask(self, text: str) -> str:
        """Return what a person types; raises EOFError when there is no more input."""
        self.end()
        return self.rich.input(escape(text))

    def observed(self, step: int, situation: Json) -> None:
        """Remember the best score and the budget left for the live line."""
        score = situation["score"]
        best = f"{100 * score['score']:.1f} % {_interval(score['ci95'])} n={score['n']}" if score else "not measured"
        best += note_text(score or {})
        self._headline = f"step {step} | champion {best} | {situation['budget_left_percent']} % of the budget left"

    def decided(self, step: int, decision: Any) -> None:
        """Show who decided what, and why."""
        args = ", ".join(f"{name}={value}" for name, value in decision["args"].items())
        sure, by = sureness_text(decision), decision["decided_by"]
        self.rich.print(f"[bold]{escape(self._headline)}[/bold]")
        self.say(f"  {decides_text(by)}: {decision['tool']}({args}){sure and f', {sure}'}")
        if decision["reasoning"] and by != "only_choice":  # whose name says why
            self.say(f"  {why_text(by, not decision['alternatives'])}: {decision['reasoning'][:200]}")

    def started(self, step: int, tool: str, args: Json) -> None:
        """Begin a live line for a tool."""
        self.begin(f"step {step} {tool}")

    def begin(self, label: str) -> None:
        """Begin a live line."""
        self._job = label
        self._job_started = time.monotonic()
        if self.rich.is_terminal and self._status is None:
            self._status = self.rich.status(escape(label))
            self._status.start()

    def progress(self, function: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Update the live line with progress and time left."""
        if self._status is None or total <= 0 or done <= 0:
            return
        elapsed = time.monotonic() - self._job_started
        left = elapsed / done * (total - done)
        shown = "".join(f" {name} {value:.3f}" for name, value in metrics.items())
        name = function.rpartition(":")[2]
        self._status.update(escape(f"{self._job}: {name} {done}/{total}{shown}, {left:.0f} s left | {self._headline}"))

    def end(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def finished(self, step: int, tool: str, result: Json, usage: Json, error: str | None) -> None:
        """Show a tool's result and cost."""
        self.end()
        if error is not None:
            self.say(f"  {tool} was refused: {error}")
            return
        shown = ", ".join(f"{name} {_short(value)}" for name, value in result.items() if value is not None)
        self.say(f"  -> {shown}  [{usage['wall_s']:.0f} s, {usage['tokens']} tokens]")

    def judged(self, detail: Json) -> None:
        """Show the referee's verdict with the numbers behind it (they never reach the planner)."""
        self.say(f"  referee: {verdict_text(detail)}")

    def final(self, report: Json) -> None:
        """Show the result and where the time went."""
        final = report.get("final")
        self.rich.print()
        self.say(f"{report['stop_sentence']}  Run: {report['run']}")
        if final:
            self.say(f"Final split, {opened_text(final)}, n={final['n']}:")
            for line in final_lines(final):
                self.say(f"  {line}")
            self.say(f"  {gain_text(final['gain'])}")
        self.say(f"Accepted {report['accepted']}, rejected {report['rejected']} candidates in {report['steps']} steps.")
        self.say(f"Looks at sealed items: {looks_text(report['looks'], report['resumes'])}.")
        for name, seconds in report["time_s"].items():
            self.say(f"  {name:<22} {seconds:7.1f} s  {100 * seconds / max(report['wall_s'], 1e-9):5.1f} %")
        self.say(
            f"  wall {report['wall_s']:.0f} s, overhead {100 * report['overhead_share']:.1f} %, "
            f"{report['tokens']} tokens, peak memory {report['peak_rss_gib']:.2f} GiB"
        )


def escape(text: str) -> str:
    """Return a text that rich shows as it is."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def note_text(score: Json) -> str:
    """Return what must stand beside a judge's score, in brackets; nothing for a verified one."""
    return f" ({score['scorer_note']})" if score.get("scorer_note") else ""


def gain_text(gain: Json) -> str:
    """Return the champion's gain over the better baseline on the final items, in words."""
    return f"champion against {gain['over'].replace('_', ' ')}: {change_text(gain)}"


def change_text(gain: Json) -> str:
    """Return in words what `agent.figures.gain` found between two models' answers to the same items."""
    clear = min(gain["p_better"], gain["p_worse"]) < 0.025
    direction = "no clear change" if not clear else "better" if gain["p_better"] < 0.025 else "WORSE"
    points = f"estimated {100 * gain['points']:+.1f} points {_interval(gain['ci95'])} (one change added on each side)"
    changed = f"{gain['num_fixed']} items fixed, {gain['num_broken']} broken"
    return f"{direction}, {points}; {changed}"


def _interval(ci95: list[float]) -> str:
    return f"[{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + "}"
    return str(value)
