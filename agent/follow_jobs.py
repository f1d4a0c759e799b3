"""Jobs and tool calls as nodes of `follow`: what they did, what it cost, and which artifacts came of it.

What a job was given is told by its short values alone: the questions of the referee's splits are in there too.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.decision_text import decides_text, why_text
from agent.follow_nodes import Node, Thread, node, one_line, root
from agent.trace import Event, read_events
from agent.trace_search import leaves
from agent.trace_view import call_text, cost_text, result_text
from memory.records import read_json
from tools.optimize.rehearsal import DATASET

Json = dict[str, Any]
_FUNCTION = re.compile(r'"function": "([^"]+)"')
_WRITES_CHATS = "tools.optimize.rehearsal:write_chats"
"""The one job whose artifact neither its result nor that of its call names."""


class Work:
    """The jobs and tool calls of a run."""

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.run_dir = thread.store.run_dir
        found = sorted((self.run_dir / "calls").glob("[0-9]*"))
        self.calls = list(dict.fromkeys(path.name.partition(".")[0] for path in found))
        """Names of the calls, in order of their steps."""

    def call_named(self, name: str) -> str | None:
        """Return the call of a name (a file of calls/ or the hash in it), None without one."""
        wanted = name.partition(".")[0]
        return next((call for call in self.calls if wanted in (call, call.rpartition("-")[2])), None)

    def is_job(self, name: str) -> bool:
        """Whether jobs/ has a job of that name."""
        return re.fullmatch("[0-9a-f]+", name) is not None and (self.run_dir / "jobs" / name / "spec.json").exists()

    # --- roots

    def call(self, call: str) -> Node:
        """Who decided for a call and why, its jobs, what it returned and the artifacts that it names."""
        events = [event for event in read_events(self.run_dir) if event["step"] == int(call[:4])]
        mine = [event for event in events if event.get("job") == call]
        decided = [event for event in events if event["kind"] == "decided"]
        above = [node("decision", "", _decision_text(event), **{"step": event["step"]}) for event in decided[-1:]]
        result = self._call_record(call).get("result", {})
        about = self.call_node(call)
        attempts = sum(event["kind"] == "tool_started" for event in mine)
        ended = [event for event in events if event["kind"] in ("tool_finished", "tool_failed")][-1:]
        told = [_ended_text(event) for event in ended] or ["not finished"]
        facts = {"attempts": attempts, "result": result, "usage": ended[0]["usage"] if ended else None}
        about |= facts | {"text": f"{about['text']}; {_times(attempts)}; {'; '.join(told)}"}
        return root(about, above, about["children"] + self._named(result))

    def job(self, job: str) -> Node:
        """The call that asked for a job, the artifacts that it was given and those that its result names."""
        spec = self._spec(job)
        call = next((call for call in self.calls for note in self._notes(call) if _is_of(spec, note)), None)
        step = int(call[:4]) if call else spec["inputs"].get("step") or self._step_at(job)
        about = self._job_node(job)
        about |= {"step": step, "text": about["text"] + ("" if step is None else f"; in step {step}")}
        result = self._read(job, "result.json").get("value")
        made = [self.thread.brief(DATASET)] if spec["function"] == _WRITES_CHATS and result else self._named(result)
        above = [self.call_node(call) | {"children": []}] if call else []
        given = self._named({"args": spec["args"], "inputs": spec["inputs"]})
        return root(about, above + [one for one in given if one["id"] not in {one["id"] for one in made}], made)

    # --- beside artifacts

    def made(self, artifact_id: str) -> list[Node]:
        """Return the call that made an artifact, with its jobs: the first one whose result names it; [] without one."""
        if artifact_id == DATASET:
            noted = [call for call in self.calls for note in self._notes(call) if note.suffix == ".write_chats"]
            return [self.call_node(call) for call in noted[:1]]
        measured = self.thread.evals.get(artifact_id)
        for call in self.calls:
            record = self._call_record(call)
            found = [value for _, value in leaves(record.get("result"))]
            of_eval = measured is not None and record.get("tool") == "evaluate_model" and measured["model"] in found
            if artifact_id in found or of_eval:
                return [self.call_node(call)]
        return []

    def call_node(self, call: str) -> Node:
        """Return a call with its jobs below it."""
        record = self._call_record(call)
        tool = call.partition("-")[2].rpartition("-")[0]
        what = call_text(record) if record else f"{tool} (no result)"
        notes = list(self._notes(call))
        wanted = {note.suffix[1:] for note in notes}
        jobs = []
        for folder in sorted((self.run_dir / "jobs").glob("*")) if notes else ():
            if self._function(folder).rpartition(":")[2] in wanted:
                spec = self._spec(folder.name)
                jobs += [self._job_node(folder.name) for note in notes if _is_of(spec, note)]
        return node("call", call, f"step {int(call[:4])}: {what}", jobs, step=int(call[:4]), tool=tool)

    def _job_node(self, job: str) -> Node:
        spec, status, result = self._spec(job), self._read(job, "status.json"), self._read(job, "result.json")
        state, attempts = status.get("state", "not begun"), status.get("attempts", 0)
        args = ", ".join(f"{name}={_short(value)}" for name, value in spec["args"].items())
        cost = f"; {cost_text(result['usage'])}" if result else ""
        error = f" ({one_line(str(status['error']))})" if status.get("error") else ""
        text = f"{spec['function']}({args}): {state}{error}, {_times(attempts)}{cost}"
        facts = {"function": spec["function"], "state": state, "attempts": attempts, "usage": result.get("usage")}
        return node("job", job, text, **facts)

    def _named(self, value: Any) -> list[Node]:
        known = self.thread.kinds()
        named = dict.fromkeys(name for _, name in leaves(value) if isinstance(name, str) and name in known)
        return [self.thread.brief(name) for name in named]

    def _step_at(self, job: str) -> int | None:
        """Return the step in which a job's newest file was written, None after the run's end (as in a plain copy)."""
        folder = self.run_dir / "jobs" / job
        at = max(path.stat().st_mtime for path in folder.glob("*.json"))
        before: Event | None = None
        for event in read_events(self.run_dir):
            if datetime.fromisoformat(event["ts"]).astimezone(UTC).timestamp() > at:
                return None if before is None else before["step"]
            before = event if event["step"] is not None else before
        return None

    def _notes(self, call: str) -> Iterator[Path]:
        """Yield the files that hold what the jobs of a call were given; the suffix is the function's name."""
        found = sorted((self.run_dir / "calls").glob(f"{call}.*"))
        return (path for path in found if path.suffix not in (".json", ".damaged"))

    def _call_record(self, call: str) -> Json:
        path = self.run_dir / "calls" / f"{call}.json"
        return read_json(path) if path.exists() else {}

    def _spec(self, job: str) -> Json:
        return self._read(job, "spec.json")

    def _read(self, job: str, name: str) -> Json:
        path = self.run_dir / "jobs" / job / name
        return read_json(path) if path.exists() else {}

    def _function(self, folder: Path) -> str:
        # Its place is the file's beginning; the rest may be long, and a run may have ten thousands of jobs.
        path = folder / "spec.json"
        if not path.exists():
            return ""
        with path.open() as file:
            found = _FUNCTION.search(file.read(300))
        return found.group(1) if found else ""


def _is_of(spec: Json, note: Path) -> bool:
    """Whether a job is the one that a call noted."""
    if spec["function"].rpartition(":")[2] != note.suffix[1:]:
        return False
    noted = read_json(note)
    inputs = {name: value for name, value in spec["inputs"].items() if name != "config"}
    return bool(noted["args"] == spec["args"] and (noted["inputs"] or {}) == inputs)


def _decision_text(event: Event) -> str:
    by = event["decided_by"]
    return f"{decides_text(by)}; {why_text(by, not event['alternatives'])}: {one_line(event['reasoning'])}"


def _ended_text(event: Event) -> str:
    told = f"refused: {event['error']}" if event["kind"] == "tool_failed" else f"result: {result_text(event['result'])}"
    return f"{told}; {cost_text(event['usage'])}"


def _times(attempts: int) -> str:
    return "begun once" if attempts == 1 else f"begun {attempts} times"


def _short(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (list, dict)) else one_line(str(value), 40)
