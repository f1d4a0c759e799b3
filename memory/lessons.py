"""Lessons of all runs: `runs/lessons.jsonl` is the truth, a collection of the vector memory finds the fitting ones."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from memory.records import append_jsonl, content_id

COLLECTION = "lessons"


def lessons_file(run_dir: Path) -> Path:
    """Return the file that all runs beside this one share."""
    return run_dir.parent / "lessons.jsonl"


def lock_file(run_dir: Path) -> Path:
    """Return the file by which runs take turns in writing lessons."""
    return run_dir.parent / ".lessons.lock"


def remember(job: Any, lesson: dict[str, Any]) -> dict[str, Any]:
    """Append a lesson (a job in the worker); the same lesson of the same run is kept once."""
    path = lessons_file(job.run_dir)
    with lock_file(job.run_dir).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {content_id(row) for row in _lessons(path)}
        if content_id(lesson) not in known:
            append_jsonl(path, [lesson])
    return {"lessons": len(known | {content_id(lesson)})}


def recall(job: Any, task: str, count: int) -> list[dict[str, Any]]:
    """Return the lessons of earlier runs whose tasks are nearest to this one, nearest first (a job in the worker)."""
    lessons = [row for row in _lessons(lessons_file(job.run_dir)) if row["run"] != job.run_dir.name]
    if not lessons:
        return []
    memory = job.resident.memory
    texts = [row["text"] for row in lessons]
    rows = {content_id(row): row for row in lessons}
    memory.upsert(COLLECTION, list(rows), memory.embed(texts), texts, [{"task": row["task"]} for row in lessons])
    found = memory.neighbours(COLLECTION, memory.embed([f"On {task}:"]), 3 * count)[0]
    nearest = [rows[name] | {"similarity": round(similarity, 3)} for name, similarity, _, _ in found]
    # Same task first: vectors of two task names differ less than those of two sentences about one task.
    return sorted(nearest, key=lambda row: (row["task"] != task, -row["similarity"]))[:count]


def _lessons(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lessons that can be read: a damaged line of one run must not stop all later ones."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError):
            yield json.loads(line)
