"""What keeps evaluation items from tools and models.

- The splits are drawn before anything is learned and written where only their owner can read them.
- With --fresh-evaluation the items of a generator are drawn with a secret seed, told when the run ends. Otherwise who
  knows the task and the seed can draw them again; training on them is refused all the same (see the referee).
- The places that the tool host and the worker are locked out of, whatever else they may read.
- The count of looks: how often a model's answers to gate and final items were scored, in run.json.
"""

import random
import secrets
from pathlib import Path

from agent.config import RunConfig
from memory.records import read_json, write_json, write_jsonl
from memory.store import RunStore
from tools.contract import Json
from tools.jobs import landlock
from tools.jobs.client import REPOSITORY
from tools.tasks.base import Splits, SplitSizes, Task
from tools.tasks.known_answers import known_answer_checks
from tools.tasks.scoring import ScorerProcess
from tools.tasks.training_view import source_files

PROCESS_ONLY = (
    "isolation: this system has no Landlock (Linux 5.13 or later, enabled), so tools run in their own process but only "
    "file permissions keep them from the referee's items; use tools that you trust"
)


def isolation() -> str:
    """Return what keeps tools from the referee's files here: "landlock" or "process only"."""
    return "landlock" if landlock.interface() else "process only"


def evaluation_seed(config: RunConfig) -> int:
    """Return the seed that evaluation items are drawn with: the run's own, or a secret one for --fresh-evaluation."""
    return secrets.randbits(62) if config.fresh_evaluation else config.seed


def draw_splits(task: Task, sizes: SplitSizes, seed: int) -> Splits:
    """Return the evaluation splits, with the scorer checked on known answers (a judge: when its model is loaded).

    Raises ValueError when there are too few items or the scorer cannot tell right from wrong.
    """
    splits = task.splits(sizes, seed)
    random.Random(seed).shuffle(splits.gate)  # a verdict may be clear after the first items: no kind may come first
    if task.scorer["name"] == "judge":
        return splits
    with ScorerProcess(task.scorer) as scorer:
        failures = known_answer_checks(splits.search[:16], scorer.score)
    if failures:
        raise ValueError(f"the scorer fails its known-answer checks: {'; '.join(failures[:3])}")
    return splits


def seal_splits(run_dir: Path, splits: Splits, seed: int) -> None:
    """Write the splits where only their owner can read them, and the hashes by which others avoid their items."""
    folder = run_dir / "referee"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, items in splits._asdict().items():
        write_jsonl(folder / f"{name}.jsonl", [item.to_json() for item in items])
        (folder / f"{name}.jsonl").chmod(0o600)
    write_json(folder / "evaluation_seed.json", seed)
    write_json(folder / "evaluation_ids.json", sorted({key for items in splits for item in items for key in item.keys}))


def closed_places(run_dir: Path, task: Task) -> list[Path]:
    """Return what neither tools nor the worker may read: runs (this one is granted piece by piece) and items."""
    runs_dir = run_dir.resolve().parent
    runs = [runs_dir]
    if REPOSITORY.is_relative_to(runs_dir):  # a runs folder that holds the program itself: its runs alone
        runs = [path for path in runs_dir.iterdir() if (path / "run.json").exists() or (path / "referee").exists()]
    return [run_dir, *runs, REPOSITORY / "runs", *source_files(task)]


def count_look(run_dir: Path, split: str) -> None:
    """Count one model's answers to a sealed split in run.json, before they are scored."""
    record: Json = read_json(run_dir / "run.json")
    looks = looks_of(record)
    write_json(run_dir / "run.json", record | {"looks": looks | {split: looks[split] + 1}})


def looks_of(record: Json) -> dict[str, int]:
    """Return how often gate and final were looked at, from run.json; a model counts each time."""
    return {"gate": 0, "final": 0} | record.get("looks", {})


def looks_before(run_dir: Path) -> int:
    """Return how often the final split was looked at by the relatives of a fork when it began; 0 for other runs."""
    looks: int = read_json(run_dir / "run.json").get("family", {}).get("looks", {}).get("final", 0)
    return looks


def verdicts_before(store: RunStore) -> list[bool]:
    """Return whether each candidate that was tested on this gate was accepted, oldest first.

    In a fork, those that its relatives tested behind the verdicts it shares count as rejected (see agent/fork.py).
    """
    accepted = [verdict["accepted"] for verdict in store.all_verdicts()]
    family = read_json(store.run_dir / "run.json").get("family", {"shared_verdicts": 0, "other_verdicts": 0})
    shared = family["shared_verdicts"]
    if len(accepted) < shared:  # a replay of a fork, still on the way to where it forked
        return accepted
    return [*accepted[:shared], *[False] * family["other_verdicts"], *accepted[shared:]]


def looks_text(looks: dict[str, int], num_resumed: int = 0) -> str:
    """Return the counts in words; of a run that was resumed, why there may be more than its verdicts took."""
    again = "; a look that a stop or kill cut off and the run repeated counts, too" if num_resumed else ""
    return f"gate {looks['gate']}, final {looks['final']} (a model's answers scored on it, each time{again})"
