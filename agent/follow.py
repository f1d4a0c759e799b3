"""Where an artifact came from and what it led to: `follow` for an example, a dataset, a model, a policy, an evaluation.

The answer is a tree of nodes {"kind", "id", "text", ..., "children"}: `text` is the line that people read, the other
keys are the same facts as plain values.
"""

import difflib
from collections import Counter
from pathlib import Path
from typing import Any

from agent.views import Json, count_text, read_report, score_text, verdict_details, verdict_text
from memory.records import content_id
from memory.store import BASE, GREEDY, RunStore, candidate_of
from tools.refine.policy import datasets_of
from tools.select.curate_data import ANSWERS, INTERMEDIATE

Node = dict[str, Any]


def follow(run_dir: Path, artifact_id: str) -> Node:
    """Return the node of an id with "made_from" and "led_to". Raises ValueError for an unknown id."""
    thread = Thread(run_dir)
    if artifact_id == BASE or artifact_id in thread.models:
        return thread.model(artifact_id)
    if artifact_id in thread.datasets:
        return thread.dataset(artifact_id)
    if artifact_id in thread.evals:
        return thread.evaluation(artifact_id)
    if artifact_id in thread.policies:
        return thread.policy(artifact_id)
    samples = [row for name in thread.samples for row in thread.rows(name, "samples.jsonl")]
    found = [row for row in samples if artifact_id in (row["example_id"], _sample_id(row))]
    if found:
        return thread.example(found[0]["example_id"], samples)
    known = {row["example_id"]: "example" for row in samples} | thread.kinds()
    near = [name for name in known if len(artifact_id) >= 4 and name.startswith(artifact_id)]
    near = near or difflib.get_close_matches(artifact_id, known, n=1)
    hint = f"did you mean {near[0]!r} ({known[near[0]]})? " if near else ""
    raise ValueError(
        f"run {run_dir.name} has no example, dataset, model, policy or evaluation {artifact_id!r}; {hint}"
        f"`run_agent.py trace show {run_dir.name}` names datasets and models, data/<dataset>/*.jsonl the examples"
    )


def follow_text(node: Node) -> str:
    """Return the tree as text."""
    lines = [f"{node['kind']} {node['id']}: {node['text']}"]
    for title, key in (("came from", "made_from"), ("led to", "led_to")):
        lines.append(title)
        lines += _tree(node[key]) or ["└─ nothing"]
    return "\n".join(lines)


def _tree(nodes: list[Node], indent: str = "") -> list[str]:
    lines = []
    for index, node in enumerate(nodes):
        last = index == len(nodes) - 1
        name = f"{node['kind']} {node['id']}".strip()
        lines.append(f"{indent}{'└─' if last else '├─'} {name}: {node['text']}")
        lines += _tree(node["children"], indent + ("   " if last else "│  "))
    return lines


def _node(kind: str, artifact_id: str, text: str, children: list[Node] | None = None, **facts: Any) -> Node:
    return {"kind": kind, "id": artifact_id, "text": text} | facts | {"children": children or []}


def _root(node: Node, made_from: list[Node], led_to: list[Node]) -> Node:
    return {key: value for key, value in node.items() if key != "children"} | {"made_from": made_from, "led_to": led_to}


def _sample_id(row: Json) -> str:
    """Return the id that the `parents` of a training row name."""
    return content_id({key: row[key] for key in ("generation", "item_id", "sample")})


def removed_text(model: Json) -> str:
    """Return what to say of a model whose weights were removed to save disk; nothing for another."""
    gone = model.get("removed")
    return "" if gone is None else f"; its weights ({gone['bytes'] / 2**20:.1f} MiB) were removed after the verdict"


def _one_line(text: str, length: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + "..."


class Thread:
    """The artifacts of one run, read once, and the nodes about them."""

    def __init__(self, run_dir: Path) -> None:
        self.store = RunStore(run_dir)
        self.models = {model["id"]: model for model in self.store.all("models")}
        found = self.store.all("data")
        self.datasets = {dataset["id"]: dataset for dataset in found if dataset["kind"] not in INTERMEDIATE}
        self.policies = {policy["id"]: policy for policy in self.store.all("policies")}
        self.evals = {record["id"]: record for record in self.store.all("evals")}
        self.samples = [name for name, dataset in self.datasets.items() if dataset["kind"] in ANSWERS]
        self.frozen = [name for name, dataset in self.datasets.items() if dataset["kind"] == "train"]
        self.details = verdict_details(run_dir)
        self.final: Json | None = (read_report(run_dir) or {}).get("final")
        self._rows: dict[tuple[str, str], list[Json]] = {}

    def kinds(self) -> dict[str, str]:
        """Return the kind of each id that is no example."""
        groups = {"model": self.models, "dataset": self.datasets, "eval": self.evals, "policy": self.policies}
        return {name: kind for kind, group in groups.items() for name in group} | {BASE: "model"}

    def rows(self, dataset: str, name: str) -> list[Json]:
        """Return the rows of a dataset's file; [] when the file is not there."""
        if (dataset, name) not in self._rows:
            self._rows[dataset, name] = self.store.rows("data", dataset, name)
        return self._rows[dataset, name]

    # --- the four roots

    def example(self, example_id: str, samples: list[Json]) -> Node:
        """Who gave this answer, what the scorer said, which dataset holds or rejected it, and the models after it."""
        mine = [row for row in samples if row["example_id"] == example_id]
        led_to = [self._dataset_down(name) for name in self.frozen if self._holds(name, example_id)]
        led_to += [self._rejection(name, row) for name in self.frozen for row in self._rejected(name, example_id)]
        if not led_to:
            right = any(row["right"] for row in mine)
            why = "not frozen yet" if right else "no right answer by the scorer, so it is never trained on"
            led_to = [_node("no dataset", "", why)]
        text = f"{_one_line(mine[0]['prompt'])} -> {_one_line(mine[0]['completion'], 60)}"
        facts = {name: mine[0][name] for name in ("prompt", "completion", "item_id", "difficulty")}
        return _root(_node("example", example_id, text, **facts), [self._sample_up(row) for row in mine], led_to)

    def dataset(self, dataset_id: str) -> Node:
        """Count its rows by source, model and difficulty; the models trained on it."""
        dataset = self.datasets[dataset_id]
        if dataset["kind"] in ("source", "document"):
            imported = [name for name in self.samples if self.datasets[name].get("of") == dataset_id]
            text = f"{dataset['num_rows']} rows that the user brought from {dataset['source']}"
            return _root(_node("dataset", dataset_id, text), [], [self._generation_up(name) for name in imported])
        if dataset["kind"] == "teacher":
            taught = [name for name in self.samples if "teacher" in self.datasets[name]]
            text = f"the teacher {dataset['model']} at {dataset['address']}, whom the user named"
            return _root(_node("dataset", dataset_id, text), [], [self._generation_up(name) for name in taught])
        if dataset["kind"] == "general_chats":
            text = f"{dataset['num_examples']} chats of the base model's own, read beside every training set"
            return _root(_node("dataset", dataset_id, text), [], [])
        if dataset["kind"] == "prompt_search":
            told = (
                f"{row['score']:.3f} on search items: {_one_line(row['system'])}"
                for row in self.rows(dataset_id, "tried.jsonl")
            )
            text = f"{dataset['num_tried']} system prompts tried for model {dataset['model']}"
            return _root(_node("dataset", dataset_id, text), [], [_node("prompt", "", line) for line in told])
        if dataset["kind"] in ANSWERS:
            rows = self.rows(dataset_id, "samples.jsonl")
            facts = self._counts(rows) | {"num_right": sum(row["right"] for row in rows)}
            node = self._generation_up(dataset_id)
            led_to = [self._dataset_down(name, only_from=dataset_id) for name in self._users(dataset_id)]
        else:
            facts = self._counts(self.rows(dataset_id, "train.jsonl")) | {"rejected": dataset.get("rejected", {})}
            node = self._dataset_up(dataset_id)
            led_to = self._models_trained_on(dataset_id)
            uses = (name for name, one in self.policies.items() if dataset_id in dict(datasets_of(one["settings"])))
            led_to += [self._policy_up(name) | {"children": []} for name in uses]
        shown = [f"{name.replace('_', ' ')}: {count_text(facts[name])}" for name in ("by_model", "by_difficulty")]
        return _root(node | facts | {"text": "; ".join([node["text"], *shown])}, node["children"], led_to)

    def model(self, model_id: str) -> Node:
        """Its parents, datasets and the models that wrote its examples; its verdict, scores, data and children."""
        node = self._model_up(model_id)
        written = [
            _node("dataset", name, self._generation_text(name), list(map(self._frozen, self._users(name))))
            for name in self.samples
            if self.datasets[name].get("model") == model_id
        ]
        children = [self._model_down(name) for name, model in self.models.items() if model["parent"] == model_id]
        return _root(node, node["children"], self._outcome(model_id) + written + children)

    def policy(self, policy_id: str) -> Node:
        """What it was made from; the models asked by it, with scores and verdicts; the samples taken under it."""
        asked = [row for row in self.evals.values() if row.get("policy") == policy_id]
        led_to = [_node("eval", row["id"], f"model {row['model']}: {self._eval_text(row)}") for row in asked]
        samples = [name for name in self.samples if self.datasets[name].get("policy") == policy_id]
        led_to += [_node("dataset", name, self._generation_text(name)) for name in samples]
        node = self._policy_up(policy_id)
        return _root(node, node["children"], led_to)

    def evaluation(self, eval_id: str) -> Node:
        """The model that it measured, and what the verdict led to."""
        record = self.evals[eval_id]
        led_to = []
        if record["split"] == "gate":
            now = "the champion" if self.store.champion() == record["model"] else "not the champion now"
            quarantined = self.models.get(record["model"], {}).get("dataset") in self.store.quarantined()
            led_to = [_node("outcome", "", now + ("; its newest dataset is quarantined" if quarantined else ""))]
        facts = {key: value for key, value in record.items() if key not in ("id", "diagnosis")}
        node = _node("eval", eval_id, self._eval_text(record), **facts)
        asked = [self._policy_up(record["policy"])] if record.get("policy") in self.policies else []
        return _root(node, [self._model_up(record["model"]), *asked], led_to)

    # --- upwards: what it was made from

    def _policy_up(self, policy_id: str) -> Node:
        policy = self.policies[policy_id]
        settings = policy["settings"]
        parent = [self._policy_up(policy["parent"])] if policy["parent"] in self.policies else []
        shown = [self._frozen(name) for name in dict(datasets_of(settings)) if name in self.datasets]
        text = f"{policy['kind']}, proposed for model {policy['model']} in place of policy {policy['parent']}"
        return _node("policy", policy_id, text, [*parent, *shown], settings=settings)

    def _sample_up(self, row: Json) -> Node:
        above = [self._generation_up(row["generation"])]
        if "source" in row:
            facts = {key: row[key] for key in ("verdict", "right", "source", "place")}
            text = f"{row['place']} of {row['source']}: the scorer says {row['verdict']}"
            return _node("row", _sample_id(row), text, above, **facts)
        num_samples = row["num_samples"]
        num_right = round(row["pass_rate"] * num_samples)
        text = (
            f"number {row['sample']} in chunk {row['chunk']}, ended by {row['finish']}: the scorer says "
            f"{row['verdict']}; {num_right} of this item's {num_samples} samples are right"
        )
        keys = ("verdict", "right", "score", "finish", "logprob", "chunk", "sample", "pass_rate")
        facts = {key: row[key] for key in keys}
        return _node("sample", _sample_id(row), text, above, **facts)

    def _generation_up(self, dataset_id: str) -> Node:
        dataset = self.datasets[dataset_id]
        if dataset["kind"] == "imported":
            facts = {key: dataset[key] for key in ("source", "licence", "num_rows", "num_checked", "num_wrong")}
            return _node("dataset", dataset_id, self._generation_text(dataset_id), **facts)
        facts = {key: dataset[key] for key in ("model", "temperature", "seed", "shots", "num_samples", "num_right")}
        facts |= {key: dataset[key] for key in ("method", "teacher") if key in dataset}
        children = [self._model_up(dataset["model"])]
        return _node("dataset", dataset_id, self._generation_text(dataset_id), children, **facts)

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

    def _dataset_up(self, dataset_id: str) -> Node:
        sources = self._counts(self.rows(dataset_id, "train.jsonl"))["by_source"]
        children = [self._generation_up(name) | {"num_rows": count} for name, count in sources.items()]
        for child in children:
            child["text"] = f"{child['num_rows']} rows from {child['text']}"
        return _node("dataset", dataset_id, self._frozen_text(dataset_id), children)

    def _frozen(self, dataset_id: str) -> Node:
        return _node("dataset", dataset_id, self._frozen_text(dataset_id))

    def _frozen_text(self, dataset_id: str) -> str:
        dataset = self.datasets[dataset_id]
        return f"{dataset['num_examples']} frozen examples, rejected: {count_text(dataset['rejected'])}"

    def _model_up(self, model_id: str) -> Node:
        if model_id == BASE:
            return _node("model", BASE, "the model that the run began with")
        model = self.models[model_id]
        rows = [row for name in model["datasets"] for row in self.rows(name, "train.jsonl")]
        writers = dict(Counter(row["model"] for row in rows).most_common())
        chain = [BASE, *(entry["id"] for entry in self.store.lineage(model_id))]
        settings = ", ".join(f"{name} {value}" for name, value in model["settings"].items())
        written = f"{model['num_examples']} examples written by {count_text(writers)}"
        text = f"{written} ({settings}); {self._verdict_text(model_id)}{removed_text(model)}"
        children = [self._model_up(model["parent"])]
        children += [self._frozen(name) for name in model["datasets"]]
        facts = {name: model[name] for name in ("parent", "datasets", "settings", "seed")}
        return _node("model", model_id, text, children, chain=chain, examples_by_model=writers, **facts)

    # --- downwards: what it led to

    def _dataset_down(self, dataset_id: str, only_from: str | None = None) -> Node:
        counts = self._counts(self.rows(dataset_id, "train.jsonl"))
        part = "" if only_from is None else f"{counts['by_source'].get(only_from, 0)} rows of "
        return _node("dataset", dataset_id, part + self._frozen_text(dataset_id), self._models_trained_on(dataset_id))

    def _models_trained_on(self, dataset_id: str) -> list[Node]:
        return [self._model_down(name) for name, model in self.models.items() if dataset_id in model["datasets"]]

    def _model_down(self, model_id: str) -> Node:
        model = self.models[model_id]
        examples = f"from {model['parent']}, {model['num_examples']} examples"
        text = f"{examples}; {self._verdict_text(model_id)}{removed_text(model)}"
        return _node("model", model_id, text, self._outcome(model_id), parent=model["parent"])

    def _outcome(self, model_id: str) -> list[Node]:
        mine = [record for record in self.evals.values() if record["model"] == model_id]
        nodes = [_node("eval", record["id"], self._eval_text(record), split=record["split"]) for record in mine]
        if self.final and model_id == self.store.champion():
            nodes.append(_node("final", "", score_text(self.final["champion"], self.final["n"]), **self.final))
        return nodes

    def _eval_text(self, record: Json) -> str:
        if record["split"] == "gate":
            return f"gate split: {self._verdict_text(candidate_of(record))}"
        policy = record.get("policy", GREEDY)
        asked = (
            "" if policy == GREEDY else f", policy {policy} at {record['tokens_per_question']:.1f} tokens a question"
        )
        return f"{record['split']} split, {record['shots']} shots{asked}: {score_text(record)}"

    def _verdict_text(self, model_id: str) -> str:
        if model_id in self.details:
            return verdict_text(self.details[model_id])
        return "no verdict yet"

    def _rejection(self, dataset_id: str, row: Json) -> Node:
        facts = {key: row.get(key) for key in ("reason", "neighbour", "similarity")}
        found = facts["neighbour"] is not None
        near = f", neighbour {facts['neighbour']} (similarity {facts['similarity']:.3f})" if found else ""
        return _node("dataset", dataset_id, f"rejected when it was frozen: {row['reason']}{near}", **facts)

    def _rejected(self, dataset_id: str, example_id: str) -> list[Json]:
        return [row for row in self.rows(dataset_id, "rejected.jsonl") if row["id"] == example_id]

    def _holds(self, dataset_id: str, example_id: str) -> bool:
        return any(row["id"] == example_id for row in self.rows(dataset_id, "train.jsonl"))

    def _users(self, dataset_id: str) -> list[str]:
        def holds(name: str) -> bool:
            return any(row["generation"] == dataset_id for row in self.rows(name, "train.jsonl"))

        return [name for name in self.frozen if holds(name)]

    def _counts(self, rows: list[Json]) -> Json:
        columns = {"by_source": "generation", "by_model": "model", "by_difficulty": "difficulty"}
        return {name: dict(Counter(row[column] for row in rows).most_common()) for name, column in columns.items()}
