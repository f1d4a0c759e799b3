"""The nodes that `follow` shows: an artifact with what it was made from, and what it led to, as lines and facts."""

from collections import Counter
from pathlib import Path
from typing import Any

from agent.follow_rows import CHAT, UNKNOWN, Part, Rows, first_ids, is_combined
from agent.views import Json, count_text, read_report, score_text, verdict_details, verdict_text
from memory.records import content_id
from memory.store import BASE, GREEDY, RunStore, candidate_of
from tools.refine.policy import datasets_of

Node = dict[str, Any]


def node(kind: str, artifact_id: str, text: str, children: list[Node] | None = None, **facts: Any) -> Node:
    """Return a node: a line of text, and the same facts as plain values."""
    return {"kind": kind, "id": artifact_id, "text": text} | facts | {"children": children or []}


def root(about: Node, made_from: list[Node], led_to: list[Node]) -> Node:
    """Return the node that was asked for, with both directions in place of children."""
    return {key: value for key, value in about.items() if key != "children"} | {
        "made_from": made_from,
        "led_to": led_to,
    }


def sample_id(row: Json) -> str:
    """Return the id that the `parents` of a training row name."""
    return content_id({key: row[key] for key in ("generation", "item_id", "sample")})


def removed_text(model: Json) -> str:
    """Return what to say of a model whose weights were removed to save disk; nothing for another."""
    gone = model.get("removed")
    return "" if gone is None else f"; its weights ({gone['bytes'] / 2**20:.1f} MiB) were removed after the verdict"


def one_line(text: str, length: int = 100) -> str:
    """Return a text without line breaks, cut to a length."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + "..."


class Thread(Rows):
    """The artifacts of one run, read once, and the nodes about them."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(RunStore(run_dir))
        self.policies = {policy["id"]: policy for policy in self.store.all("policies")}
        self.evals = {record["id"]: record for record in self.store.all("evals")}
        self.details = verdict_details(run_dir)
        self.final: Json | None = (read_report(run_dir) or {}).get("final")

    def kinds(self) -> dict[str, str]:
        """Return the kind of each artifact's id; rows, items, jobs and calls have others."""
        groups = {"model": self.models, "dataset": self.datasets, "eval": self.evals, "policy": self.policies}
        return {name: kind for kind, group in groups.items() for name in group} | {BASE: "model"}

    def brief(self, artifact_id: str) -> Node:
        """Return the node of an artifact without children."""
        kind = self.kinds()[artifact_id]
        if kind in ("model", "policy"):
            return (self.model_up(artifact_id) if kind == "model" else self.policy_up(artifact_id)) | {"children": []}
        text = self.dataset_text(artifact_id) if kind == "dataset" else self.eval_text(self.evals[artifact_id])
        return node(kind, artifact_id, text)

    # --- upwards: what it was made from

    def policy_up(self, policy_id: str) -> Node:
        """Return a policy with the one that it was proposed in place of, and the datasets whose rows it shows."""
        policy = self.policies[policy_id]
        settings = policy["settings"]
        parent = [self.policy_up(policy["parent"])] if policy["parent"] in self.policies else []
        shown = [self.brief(name) for name in dict(datasets_of(settings)) if name in self.datasets]
        text = f"{policy['kind']}, proposed for model {policy['model']} in place of policy {policy['parent']}"
        return node("policy", policy_id, text, [*parent, *shown], settings=settings)

    def sample_up(self, row: Json) -> Node:
        """Return a sample, or a row that the user brought, with the dataset that it is from."""
        above = [self.generation_up(row["generation"])]
        if "source" in row:
            facts = {key: row[key] for key in ("verdict", "right", "source", "place")}
            text = f"{row['place']} of {row['source']}: the scorer says {row['verdict']}"
            return node("row", sample_id(row), text, above, **facts)
        num_samples = row["num_samples"]
        num_right = round(row["pass_rate"] * num_samples)
        text = (
            f"number {row['sample']} in chunk {row['chunk']}, ended by {row['finish']}: the scorer says "
            f"{row['verdict']}; {num_right} of this item's {num_samples} samples are right"
        )
        keys = ("verdict", "right", "score", "finish", "logprob", "chunk", "sample", "pass_rate")
        facts = {key: row[key] for key in keys}
        return node("sample", sample_id(row), text, above, **facts)

    def generation_up(self, dataset_id: str) -> Node:
        """Return a dataset of answers, or general chats, with who wrote it."""
        dataset, text = self.datasets[dataset_id], self.dataset_text(dataset_id)
        if dataset["kind"] == "imported":
            facts = {key: dataset[key] for key in ("source", "licence", "num_rows", "num_checked", "num_wrong")}
            return node("dataset", dataset_id, text, **facts)
        if dataset["kind"] == CHAT:
            return node("dataset", dataset_id, text, [self.model_up(BASE)])
        facts = {key: dataset[key] for key in ("model", "temperature", "seed", "shots", "num_samples", "num_right")}
        facts |= {key: dataset[key] for key in ("method", "teacher") if key in dataset}
        return node("dataset", dataset_id, text, [self.model_up(dataset["model"])], **facts)

    def dataset_text(self, dataset_id: str) -> str:
        """Return what a dataset is, on one line."""
        dataset = self.datasets[dataset_id]
        match dataset["kind"]:
            case "source" | "document":
                return f"{dataset['num_rows']} rows that the user brought from {dataset['source']}"
            case "teacher":
                return f"the teacher {dataset['model']} at {dataset['address']}, whom the user named"
            case "general_chats":
                return f"{dataset['num_examples']} chats of the base model's own, read beside every training set"
            case "prompt_search":
                return f"{dataset['num_tried']} system prompts tried for model {dataset['model']}"
            case "samples" | "imported":
                return self._generation_text(dataset_id)
            case "train":
                return f"{dataset['num_examples']} frozen examples, rejected: {count_text(dataset['rejected'])}"
            case "pool":
                return f"{dataset['num_rows']} candidates of a curation, of which it chose"
            case "refused":
                return "what a curation rejected that left too few examples for a set"
            case kind:
                return f"{kind}, which a curation made on its way"

    def _generation_text(self, dataset_id: str) -> str:
        dataset = self.datasets[dataset_id]
        if dataset["kind"] == "imported":
            return (
                f"{dataset['num_rows']} rows that the user brought from {dataset['source']} (licence "
                f"{dataset['licence'] or 'not told'}); of {dataset['num_checked']} that the scorer could check "
                f"{dataset['num_wrong']} were wrong"
            )
        prompting = "few-shot" if dataset["shots"] else "zero-shot"
        method = f"{dataset['method']}: " if "method" in dataset else ""
        writer = f"teacher {dataset['teacher']}" if "teacher" in dataset else f"model {dataset['model']}"
        if dataset.get("policy"):
            prompting = f"policy {dataset['policy']}"
        return (
            f"{method}{dataset['num_samples']} samples by {writer} ({prompting}, temperature "
            f"{dataset['temperature']:g}, seed {dataset['seed']}), {dataset['num_right']} right"
        )

    def sources(self, rows: list[Json]) -> list[Node]:
        """Return the datasets of answers that training rows are from, each with how many."""
        found = []
        for name, count in Counter(row["generation"] for row in rows if "generation" in row).most_common():
            above = self.generation_up(name)
            found.append(above | {"num_rows": count, "text": f"{count} rows from {above['text']}"})
        return found

    def part(self, part: Part, in_full: bool) -> Node:
        """Return a part of what a training read; in full: with the ids of its rows and the answers they are from."""
        named = f"{part.num_rows} {part.name} rows"
        if part.rows is None:
            return node("rows", "", f"{named}; the run does not tell which", list(map(self.brief, part.datasets)))
        [dataset] = part.datasets
        facts: Json = {"part": part.name, "num_rows": part.num_rows}
        text = f"{named} of {self.dataset_text(dataset)}"
        if not in_full:
            return node("dataset", dataset, text, **facts)
        ids = [row["id"] for row in part.rows]
        sources = [source | {"children": []} for source in self.sources(part.rows)]
        return node("dataset", dataset, f"{text}; {first_ids(ids)}", sources, **facts | {"rows": ids})

    def model_up(self, model_id: str, in_full: bool = False) -> Node:
        """Return a model with its parents and what its training read."""
        if model_id == BASE:
            return node("model", BASE, "the model that the run began with")
        model = self.models[model_id]
        chain = [BASE, *(entry["id"] for entry in self.store.lineage(model_id))]
        settings = ", ".join(f"{name} {value}" for name, value in model["settings"].items())
        made = f"{self._read_text(model)} ({settings}); {self.verdict_text(model_id)}{removed_text(model)}"
        parents = dict.fromkeys([model["parent"], *model.get("members", [])])
        children = [self.model_up(name) for name in parents] + [
            self.part(part, in_full) for part in self.parts(model_id)
        ]
        facts = {name: model[name] for name in ("parent", "datasets", "settings", "seed")} | self.read_counts(model_id)
        return node("model", model_id, made, children, chain=chain, **facts)

    def _read_text(self, model: Json) -> str:
        if is_combined(model):
            return f"made of the weights of {', '.join(model['members'])}, without training"
        counts, num_read = self.read_counts(model["id"]), sum(part.num_rows for part in self.parts(model["id"]))
        made = "" if num_read == model["num_examples"] else f", of which {model['num_examples']} examples were made,"
        by_part, by_model = counts["examples_by_part"], counts["examples_by_model"]
        return f"{num_read} examples ({count_text(by_part)}){made} written by {count_text(by_model)}"

    # --- downwards: what it led to

    def reached_by(self, direct: dict[str, str]) -> list[Node]:
        """Return the models whose weights something touched; direct: see `Rows.reached`."""
        return [self.model_down(name, how) for name, how in self.reached(direct).items()]

    def model_down(self, model_id: str, how: str = "") -> Node:
        """Return a model with its scores and its verdict; how: in what way it was reached."""
        model = self.models[model_id]
        told = f"{how}; " if how else ""
        text = f"{told}from {model['parent']}, {model['num_examples']} examples; {self.verdict_text(model_id)}"
        facts = {"parent": model["parent"]} | ({"how": how} if how else {})
        return node("model", model_id, text + removed_text(model), self.outcome(model_id), **facts)

    def outcome(self, model_id: str) -> list[Node]:
        """Return a model's evaluations, and its final score where it became the champion."""
        mine = [record for record in self.evals.values() if record["model"] == model_id]
        nodes = [node("eval", record["id"], self.eval_text(record), split=record["split"]) for record in mine]
        if self.final and model_id == self.store.champion():
            nodes.append(node("final", "", score_text(self.final["champion"], self.final["n"]), **self.final))
        return nodes

    def eval_text(self, record: Json) -> str:
        """Return the score of an evaluation, or the verdict that it led to."""
        if record["split"] == "gate":
            return f"gate split: {self.verdict_text(candidate_of(record))}"
        policy = record.get("policy", GREEDY)
        asked = (
            "" if policy == GREEDY else f", policy {policy} at {record['tokens_per_question']:.1f} tokens a question"
        )
        return f"{record['split']} split, {record['shots']} shots{asked}: {score_text(record)}"

    def verdict_text(self, model_id: str) -> str:
        """Return the verdict on a candidate."""
        if model_id in self.details:
            return verdict_text(self.details[model_id])
        return "no verdict yet"

    def uses(self, example_id: str) -> list[Node]:
        """Return the frozen datasets that hold an example or rejected it, and which of its copies stayed."""
        found = []
        for name in self.frozen:
            held = [row for row in self.rows(name, "train.jsonl") if row["id"] == example_id]
            rejected = [row for row in self.rows(name, "rejected.jsonl") if row["id"] == example_id]
            copies = [row for row in rejected if row.get("neighbour") == example_id]
            left_out = f"{_copies(copies)} left out as exact duplicates of it" if copies else ""
            if held:
                which = f" as {_copies(held)}" if copies else ""
                text = f"in the set{which}{f'; {left_out}' if copies else ''}: {self.dataset_text(name)}"
                found.append(node("dataset", name, text, in_set=True))
            elif copies and len(copies) == len(rejected):
                why = f"not chosen for the set; {left_out}"
                found.append(node("dataset", name, why, in_set=False, reason="exact_duplicate"))
            found += [self._rejection(name, row, left_out) for row in rejected if row not in copies]
        return found

    def _rejection(self, dataset_id: str, row: Json, left_out: str) -> Node:
        facts = {key: row.get(key) for key in ("reason", "neighbour", "similarity")}
        near = facts["neighbour"]
        what = f"rejected when it was frozen: {row['reason']}"
        if near is not None:
            what += f", neighbour {near} (similarity {facts['similarity']:.3f}) {self._place(dataset_id, near)}"
        return node("dataset", dataset_id, what + (f"; {left_out}" if left_out else ""), in_set=False, **facts)

    def _place(self, dataset_id: str, example_id: str) -> str:
        """Return where the other one of two that are alike is."""
        holding = [
            name for name in self.frozen if any(row["id"] == example_id for row in self.rows(name, "train.jsonl"))
        ]
        if dataset_id in holding:
            return "stayed"
        if holding:
            return f"is in dataset {holding[0]}"
        rejected = self.rows(dataset_id, "rejected.jsonl")
        why = next(
            (row["reason"] for row in rejected if row["id"] == example_id and row.get("neighbour") != example_id), ""
        )
        return f"was then rejected too: {why}" if why else "stayed a candidate that was not chosen"

    def users(self, dataset_id: str) -> dict[str, list[Json]]:
        """Return the frozen datasets that hold rows of a dataset of answers, with these rows."""
        found: dict[str, list[Json]] = {}
        for name in self.frozen:
            rows = [row for row in self.rows(name, "train.jsonl") if row["generation"] == dataset_id]
            found |= {name: rows} if rows else {}
        return found


def _copies(rows: list[Json]) -> str:
    """Return the samples that rows with one question and answer came from."""
    parents = [name for row in rows for name in row["parents"]]
    return f"{'sample' if len(parents) == 1 else 'samples'} {', '.join(parents) or UNKNOWN}"


def tally(rows: list[Json]) -> Json:
    """Count rows by source, model and difficulty."""
    columns = {"by_source": "generation", "by_model": "model", "by_difficulty": "difficulty"}
    return {name: dict(Counter(row[column] for row in rows).most_common()) for name, column in columns.items()}
