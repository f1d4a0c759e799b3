"""The trace of a run: `events.jsonl`, one fsynced line per event, readable while the run goes on and after a kill.

An event: {"seq", "ts" (UTC), "spent_s", "kind", "span", "parent", "step" (None outside steps), ...data}. Kinds, data:
  run_started   config, identity, isolation           run_resumed   config, identity, isolation
  observed      situation, menu[{tool, arguments (name -> its legal values), outcome (what it has brought)}]
                too_dear (of an empty menu: the legal action that lacks least, with what it lacks)
  decided       action{tool,args}, decided_by, reasoning, logprob (of the tool), alternatives[{tool,logprob}], usage,
                argument_logprobs (of each value among the legal ones; absent: unknown), problems,
                probabilities[{argument (None = the tool), among[{values, probability}]}] (with the values not chosen)
  tool_started  tool, args, job, spent (by units, when the call first began)
  tool_finished tool, args, job, result, usage        tool_failed   tool, args, error
  judged        what referee/verdicts.jsonl holds     run_stopped   reason, sentence
  answered      who ("person"), answer ("yes", "no", "edit"), action (asked about), edited (None or action), reason
  forked        from_run, from_step, planner, forced (whether the first decision was): what follows is this run's own
  collapsed     sign (what in the samples says so)    judge_checked note (what the gold set said of a judge)
  changes_accepted  changes (a line each: settings, files, code, libraries), revision (of the code, None = no git)
  freed         models (id -> bytes of its weights), checkpoints (number of trainings), bytes: removed after a verdict
  retried       function, why: a job was done again (its worker died or hung, or with less memory: see `why`)
  mended        files: damaged ones that were set aside when the run went on, and are made again
  plateau       sign (what in the verdicts says so)
  final         n, base_zero_shot, base_few_shot, champion (scores with intervals)
`usage` is {"wall_s", "cpu_s", "tokens"}. A step's events share the span "step-<n>" whose parent is "run".
"""

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memory.records import append_jsonl, is_secret, read_jsonl

Event = dict[str, Any]

_SECRET = re.compile(
    r"(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|Bearer\s+[A-Za-z0-9._~+/-]{12,})"
)


class Trace:
    """Appends events to a run's `events.jsonl`; one writer per run (the run's lock sees to that)."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "events.jsonl"
        self._secrets = [value for name, value in os.environ.items() if len(value) >= 12 and is_secret(name)]
        self.last_seq = max((event["seq"] for event in read_events(run_dir)), default=0)
        self.clock: Callable[[], float] = lambda: 0.0
        """Wall seconds of the run so far; each event records it as spent_s."""

    def emit(self, kind: str, *, step: int | None = None, **data: Any) -> Event:
        """Write one event, redacted, to disk and return it."""
        self.last_seq += 1
        span, parent = ("run", None) if step is None else (f"step-{step}", "run")
        head = {
            "seq": self.last_seq,
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "spent_s": round(self.clock(), 2),
        }
        event = head | {"kind": kind, "span": span, "parent": parent, "step": step} | data
        event = self._redact(event)
        append_jsonl(self.path, [event])
        return event

    def _redact(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._redact(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self._redact(entry) for entry in value]
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, "[redacted]")
            return _SECRET.sub("[redacted]", value)
        return value


def read_events(run_dir: Path) -> Iterator[Event]:
    """Yield the events written so far, oldest first; a line torn by a kill is left out."""
    yield from read_jsonl(run_dir / "events.jsonl")
