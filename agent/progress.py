"""How far a run got, in words: steps taken, the one under way, what was left of the budget."""

from tools.contract import Json

HALFWAY = {
    "waiting": "waits for approval", "stopped": "is not finished", "failed": "is not finished",
    "killed": "is not finished",
}  # fmt: skip
"""What is said of a step under way in a run that nobody works on."""


def steps_text(status: Json) -> str:
    """Return how many steps a run finished, and which one it is at or was left at."""
    most, state, under_way = status["config"]["max_steps"], status["state"], status["under_way"]
    if state == "running":
        at = _work_text(status)
        return f"{status['step']} of at most {most}{at and f'; at {at}'}"
    step = "" if under_way is None else f"step {under_way} "
    work = _work_text(status) if state == "killed" else ""
    left = f"killed at {work}" if work else HALFWAY.get(state, "") if step else ""
    return f"{status['steps'] - bool(step)} taken of at most {most}{left and f'; {step}{left}'}"


def resumed_text(status: Json) -> str:
    """Return where a run goes on, in one line."""
    verdicts = "{accepted} accepted, {rejected} rejected".format(**status["verdicts"])
    return f"goes on with run {status['run']}; steps: {steps_text(status)}; {status['spent_s']:.0f} s spent; {verdicts}"


def _work_text(status: Json) -> str:
    """Return the tool and the job at work; "" without one."""
    job = status["job"]
    parts = [status["tool"]] if status["tool"] else []
    if job is not None:
        metrics = "".join(f", {name} {value:.3f}" for name, value in job["metrics"].items())
        parts.append(f"{job['function']} {job['done']}/{job['total']}{metrics}" if job["total"] else job["function"])
    return ": ".join(parts)


def left_text(status: Json) -> str:
    """Return how much of the budget is left, with its semicolon; nothing before it is known."""
    return "" if status["budget_left_percent"] is None else f"; {status['budget_left_percent']} % left"
