"""Before a run goes on: what a full disk, a power cut or a hand damaged is found, and made again where it can be.

Set aside (renamed to *.damaged) is what the run makes again by itself: results and notes of jobs and calls, the report.
Everything else that cannot be read is refused with what to do. Rows and weights have their hashes in their manifest
(see memory/store.py), measured weights also with the referee; the vector memory is compared with the files when it is
opened.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from agent.console import Console
from agent.identity import fingerprint_of, known_weights
from agent.trace import Trace, read_events
from memory.records import read_json, read_jsonl
from memory.store import MANIFESTS, RunStore
from tools.engines.models import WEIGHT_FILES

MADE_AGAIN = ("jobs/*/*.json", "calls/*.json", "report.json", "clock.json")
READ_ALWAYS = ("events.jsonl", "referee/*.json", "referee/*.jsonl", "task/*.jsonl")
DAMAGED = ".damaged"


def mend(run_dir: Path, console: Console) -> None:
    """Set damaged files aside that are made again, and tell. Raises ValueError for one that is not."""
    mended = []
    for path in sorted({path for pattern in MADE_AGAIN for path in run_dir.glob(pattern)}):
        if _is_damaged(path):
            _set_aside(path)
            mended.append(path.relative_to(run_dir).as_posix())
            if path.name == "spec.json" and path.with_name("result.json").exists():  # whose result it is, nobody knows
                _set_aside(path.with_name("result.json"))
    for path in sorted({path for pattern in READ_ALWAYS for path in run_dir.glob(pattern)}):
        try:
            list(read_jsonl(path)) if path.suffix == ".jsonl" else read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; nothing makes it again: restore it from a copy, or start a new run") from error
    store = RunStore(run_dir)
    for kind in MANIFESTS:
        store.all(kind)  # raises ValueError for a manifest that cannot be read
    check_weights(store)
    check_state(run_dir)
    if mended:
        Trace(run_dir).emit("mended", files=mended)
        console.say(f"damaged, set aside and made again: {', '.join(mended)}")


def _is_damaged(path: Path) -> bool:
    try:
        return not isinstance(read_json(path), dict)
    except ValueError:
        return True


def _set_aside(path: Path) -> None:
    path.replace(path.with_name(path.name + DAMAGED))


def check_weights(store: RunStore) -> None:
    """Raise ValueError when a model's weights are not those that were measured, or, before that, trained."""
    for model in store.all("models"):
        known = known_weights(store, model["id"])
        if model.get("removed") or known is None:
            continue
        folder = store.folder("models", model["id"])
        if fingerprint_of(folder, WEIGHT_FILES) != known:
            raise ValueError(f"the weights in {folder} are not those that were written; restore them")


def check_state(run_dir: Path) -> None:
    """Raise ValueError when LangGraph's checkpoints are gone or damaged: a run without them would begin anew."""
    path = run_dir / "state.sqlite"
    cure = "restore it from a copy (with state.sqlite-wal beside it, if there is one), or start a new run"
    if not path.exists():
        if any(event["kind"] == "decided" for event in read_events(run_dir)):
            raise ValueError(f"{path} is gone, and with it at which step the run is; {cure}")
        return
    try:
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            [said] = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return  # locked by another process: the run itself waits for it and says so
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        raise ValueError(f"{path} is damaged ({said}); {cure}")
