"""The artifacts of a run, read from files: datasets, models, policies, evaluations. Files are the truth; no cache.

    <run>/data/<id>/{train,rejected,samples}.jsonl + manifest.json      <run>/models/<id>/{weights..., model.json}
    <run>/evals/<id>/{record.json, items.jsonl}                         <run>/policies/<id>/policy.json

An artifact exists once its manifest does: files first, manifest last, both atomically.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from memory.records import file_sha256, read_json, read_jsonl, write_json, write_jsonl

Record = dict[str, Any]
BASE = "base"
"""Id of the model that the run started from."""
REMOVED = "removed.json"
"""Beside the manifest of a model whose weights were removed to save disk: {"bytes"}."""
GREEDY = "greedy"
"""Id of the inference policy that the run started with: greedy answers, zero-shot (see tools/refine/policy.py)."""

FINAL_ARMS = ("base_zero_shot", "base_few_shot", "champion_greedy", "champion")
"""Who answers the final split; "champion_greedy": the champion's weights without its policy, where it has one."""

FIELDS = {
    "samples": (
        "model", "shots", "seed", "temperature", "samples_per_item", "num_items", "next_index", "num_samples",
        "num_right", "num_tokens",
    ),
    "train": ("num_examples", "rejected"),
}  # fmt: skip
"""What other steps read of a dataset's manifest, by its "kind". Other kinds are their makers' own. "samples" also
have "health" (tools/acquire/health.py) where the champion's own answers were scored: it tells how the model is."""
MANIFESTS = {
    "data": "manifest.json", "models": "model.json", "policies": "policy.json", "evals": "record.json",
    "lessons": "lesson.json",
}  # fmt: skip
"""Folder of each kind of artifact -> its manifest, which is written last."""


def opened_text(final: Record) -> str:
    """Return how the final split was opened; for a fork of a run that had opened it, that this was no first look."""
    looks = final.get("looks_before", 0)
    return f"opened again (its family had looked {looks} times when this fork began)" if looks else "opened once"


class RunStore:
    """Reads and writes the artifacts in a run folder."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def folder(self, kind: str, artifact_id: str) -> Path:
        """Return the folder of an artifact; kind is one of MANIFESTS."""
        return self.run_dir / kind / artifact_id

    def put(self, kind: str, artifact_id: str, manifest: Record, files: dict[str, list[Any]] | None = None) -> Record:
        """Write an artifact's JSONL files, then its manifest with the order in which it was made. Idempotent."""
        path = self.folder(kind, artifact_id) / MANIFESTS[kind]
        if path.exists():
            return read_json(path)
        for name, rows in (files or {}).items():
            write_jsonl(path.parent / name, rows)
        hashes = {name: file_sha256(path.parent / name) for name in files or {}}
        about = {"id": artifact_id, "order": len(self.all(kind))}
        manifest = about | ({"hashes": hashes} if hashes else {}) | manifest
        write_json(path, manifest)
        return manifest

    def get(self, kind: str, artifact_id: str) -> Record | None:
        """Return an artifact's manifest, or None when it does not exist; a model without weights has "removed"."""
        return self._manifest(kind, str(self.folder(kind, artifact_id)))

    def all(self, kind: str) -> list[Record]:
        """Return all manifests of a kind, oldest first."""
        root = self.run_dir / kind
        if not root.exists():
            return []
        found = [self._manifest(kind, entry.path) for entry in os.scandir(root)]
        return sorted((record for record in found if record is not None), key=lambda record: record["order"])

    def _manifest(self, kind: str, folder: str) -> Record | None:
        path = Path(folder) / MANIFESTS[kind]
        if not path.exists():
            return None
        record: Record = read_json(_no_link(path))
        gone = path.with_name(REMOVED)
        return record | {"removed": read_json(_no_link(gone))} if kind == "models" and gone.exists() else record

    def unreadable(self) -> dict[Path, str]:
        """Return the manifests in the folders that tools write to and that no step could read, with what each lacks."""
        found = {}
        fields = {"data": ("kind",), "lessons": ("model",), "policies": ("kind", "settings", "parent", "model")}
        for kind, always in fields.items():
            for path in sorted((self.run_dir / kind).glob(f"*/{MANIFESTS[kind]}")):
                record = read_json(_no_link(path))
                known = record if isinstance(record, dict) else {}
                needed = ("id", "order", *always, *FIELDS.get(str(known.get("kind")), ()))
                if missing := [name for name in needed if name not in known]:
                    found[path] = ", ".join(missing)
        return found

    def rows(self, kind: str, artifact_id: str, name: str) -> list[Any]:
        """Return the rows of one of an artifact's JSONL files. Raises ValueError when they are not those written."""
        return list(self.each_row(kind, artifact_id, name))

    def each_row(self, kind: str, artifact_id: str, name: str) -> Iterator[Any]:
        """Yield the rows that `rows` returns, one at a time in memory."""
        path = _no_link(self.folder(kind, artifact_id) / name)
        written = (self.get(kind, artifact_id) or {}).get("hashes", {}).get(name)
        if written is not None and (not path.exists() or _hash_now(path) != written):
            raise ValueError(f"{path} is not what was written (its hash differs); restore it from a copy")
        yield from read_jsonl(path)

    def verdicts(self) -> list[Record]:
        """Return the referee's verdicts on trained models, oldest first."""
        return [verdict for verdict in self.all_verdicts() if not verdict.get("tries_policy")]

    def all_verdicts(self) -> list[Record]:
        """Return the referee's verdicts on models and on policies, oldest first."""
        return [record for record in self.all("evals") if record["split"] == "gate"]

    def champion(self) -> str:
        """Return the id of the model that is kept now: the last accepted candidate, or "base"."""
        accepted = [verdict["model"] for verdict in self.verdicts() if verdict["accepted"]]
        return accepted[-1] if accepted else BASE

    def champion_policy(self) -> str:
        """Return the id of the inference policy that is kept now: the last accepted one, or "greedy"."""
        accepted = [one["policy"] for one in self.all_verdicts() if one["accepted"] and one.get("tries_policy")]
        return accepted[-1] if accepted else GREEDY

    def policy_verdict(self, model_id: str, policy_id: str) -> Record | None:
        """Return the referee's verdict on a policy for a model, None without one."""
        tried = (one for one in self.all_verdicts() if one.get("tries_policy"))
        return next((one for one in tried if (one["model"], one["policy"]) == (model_id, policy_id)), None)

    def policy(self, policy_id: str) -> Record:
        """Return the manifest of a policy. Raises ValueError for one that the run does not have."""
        if policy_id == GREEDY:
            return {"id": GREEDY, "kind": GREEDY, "settings": {}, "parent": None, "model": None}
        found = self.get("policies", policy_id)
        if found is None:
            raise ValueError(f"there is no policy {policy_id!r}; `run_agent.py follow` knows the ids of a run")
        return found

    def candidate(self) -> Record | None:
        """Return the newest trained model without a verdict, or None."""
        judged = {verdict["model"] for verdict in self.verdicts()}
        waiting = [model for model in self.all("models") if model["id"] not in judged]
        return waiting[-1] if waiting else None

    def quarantined(self) -> set[str]:
        """Return the ids of datasets in the lineage of rejected candidates only."""
        verdicts = self.verdicts()
        kept = {name for verdict in verdicts if verdict["accepted"] for name in self.trained_on(verdict["model"])}
        return {name for verdict in verdicts for name in self.trained_on(verdict["model"])} - kept

    def lineage(self, model_id: str) -> list[Record]:
        """Return the manifests of the models from the first after the base to this one; [] for the base.

        Raises ValueError when the chain of parents is broken.
        """
        chain: list[Record] = []
        while model_id != BASE:
            model = self.get("models", model_id)
            if model is None or model in chain:
                raise ValueError(f"the lineage of the model is broken at {model_id!r}: run `run_agent.py doctor`")
            chain.insert(0, model)
            model_id = model["parent"]
        return chain

    def trained_on(self, model_id: str) -> list[str]:
        """Return the ids of the datasets that made a model what it is, oldest first."""
        return list(dict.fromkeys(name for model in self.lineage(model_id) for name in model["datasets"]))

    def datasets(self, kind: str) -> list[Record]:
        """Return the datasets of a kind ("samples", "train", "imported", ...), oldest first."""
        return [dataset for dataset in self.all("data") if dataset["kind"] == kind]

    def untrained_datasets(self) -> list[Record]:
        """Return the frozen datasets on which no model was trained yet, newest first."""
        used = {model["dataset"] for model in self.all("models")}
        return [dataset for dataset in self.datasets("train") if dataset["id"] not in used][::-1]

    def score(self, model_id: str, split: str = "search", shots: int = 0, policy: str = GREEDY) -> Record | None:
        """Return the evaluation of a model under a policy on a split, or None when it was not evaluated."""
        wanted = (model_id, split, shots, policy)
        records = [
            record
            for record in self.all("evals")
            if (record["model"], record["split"], record["shots"], record.get("policy", GREEDY)) == wanted
        ]
        return records[-1] if records else None

    def champion_score(self) -> Record | None:
        """Return the search score of the champion under the champion's policy, None before it was measured."""
        return self.score(self.champion(), policy=self.champion_policy())

    def model_dir(self, model_id: str) -> Path | None:
        """Return the folder of a model's weights; None for the base model."""
        return None if model_id == BASE else self.folder("models", model_id)


def _hash_now(path: Path) -> str:
    about = path.stat()
    return _hash_of(path, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_of(path: Path, *_: int) -> str:
    """Hash a file once for each inode, size and time of writing."""
    return file_sha256(path)


def policy_candidate(policy_id: str, model_id: str) -> str:
    """Return the name under which a policy for a model is a candidate."""
    return f"{policy_id}@{model_id}"


def candidate_of(verdict: Record) -> str:
    """Return what a verdict is on: a model's id, or POLICY@MODEL."""
    return str(verdict.get("candidate", verdict["model"]))


def _no_link(path: Path) -> Path:
    """Return the path of an artifact's file; a link there was planted to make a reader open something else."""
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError(f"{path} is a symbolic link, which no artifact is; delete it")
    return path
