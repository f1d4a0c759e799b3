"""Where something came from and what it led to: `follow` for any id of a run.

The answer is a tree of nodes {"kind", "id", "text", ..., "children"}: `text` is the line that people read, the other
keys are the same facts as plain values.
"""

import difflib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from agent.follow_jobs import Work
from agent.follow_nodes import Node, Thread, node, one_line, root, sample_id, tally
from agent.follow_rows import CHAT, first_ids
from agent.views import Json, count_text
from memory.store import BASE
from tools.refine.policy import datasets_of
from tools.select.curate_data import ANSWERS

IDS = "example, question, dataset, model, policy, evaluation, job or call"
"""What has an id that can be followed."""


def follow(run_dir: Path, artifact_id: str) -> Node:
    """Return the node of an id with "made_from" and "led_to". Raises ValueError for an unknown id."""
    roots = Roots(run_dir)
    of_kind: dict[str, Callable[[str], Node]] = {
        "model": roots.model,
        "dataset": roots.dataset,
        "eval": roots.evaluation,
        "policy": roots.policy,
    }
    kinds, work = roots.kinds(), Work(roots)
    if artifact_id in kinds:
        about = of_kind[kinds[artifact_id]](artifact_id)
        return about | {"made_from": about["made_from"] + work.made(artifact_id)}
    call = work.call_named(artifact_id)
    if call is not None:
        return work.call(call)
    if work.is_job(artifact_id):
        return work.job(artifact_id)
    for name in roots.chats:
        if any(row["id"] == artifact_id for row in roots.rows(name, "train.jsonl")):
            return roots.chat(name, artifact_id)
    samples = [row for name in roots.answers for row in roots.rows(name, "samples.jsonl")]
    found = [row for row in samples if artifact_id in (row["example_id"], sample_id(row))]
    if found:
        return roots.example(found[0]["example_id"], samples)
    asked = [row for row in samples if row["item_id"] == artifact_id]
    if asked:
        return roots.item(artifact_id, asked)
    known = {row["item_id"]: "question" for row in samples} | {row["example_id"]: "example" for row in samples}
    known |= dict.fromkeys(work.calls, "call") | {path.name: "job" for path in (run_dir / "jobs").glob("*")} | kinds
    near = [name for name in known if len(artifact_id) >= 4 and name.startswith(artifact_id)]
    near = near or difflib.get_close_matches(artifact_id, known, n=1)
    hint = f"did you mean {near[0]!r} ({known[near[0]]})? " if near else ""
    raise ValueError(
        f"run {run_dir.name} has no {IDS} {artifact_id!r}; {hint}`run_agent.py trace show {run_dir.name}` names "
        "datasets and models, and following one of these names its first rows"
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
    for index, one in enumerate(nodes):
        last = index == len(nodes) - 1
        name = f"{one['kind']} {one['id']}".strip()
        lines.append(f"{indent}{'└─' if last else '├─'} {name}: {one['text']}")
        lines += _tree(one["children"], indent + ("   " if last else "│  "))
    return lines


class Roots(Thread):
    """What is told of each kind of id."""

    def example(self, example_id: str, samples: list[Json]) -> Node:
        """Who gave this answer, what the scorer said, which dataset holds or rejected it, and the models after it."""
        mine = [row for row in samples if row["example_id"] == example_id]
        uses = self.uses(example_id)
        direct: dict[str, str] = {}
        for row in mine:
            direct |= {} if row["right"] else self.contrasted(row)
        for use in uses:
            direct |= self.readers(use["id"], example_id)
        if not uses:
            right = any(row["right"] for row in mine)
            why = "not frozen yet" if right else "no right answer by the scorer, so it is never trained on as one"
            uses = [node("no dataset", "", why)]
        text = f"{one_line(mine[0]['prompt'])} -> {one_line(mine[0]['completion'], 60)}"
        facts = {name: mine[0][name] for name in ("prompt", "completion", "item_id", "difficulty")}
        return root(node("example", example_id, text, **facts), [self.sample_up(row) for row in mine],
                    uses + self.reached_by(direct))  # fmt: skip

    def chat(self, dataset: str, row_id: str) -> Node:
        """Follow one of the general chats: the base model that wrote it, the models that read it."""
        row = next(row for row in self.rows(dataset, "train.jsonl") if row["id"] == row_id)
        text = f"{one_line(row['prompt'])} -> {one_line(row['completion'], 60)}"
        about = node("chat", row_id, text, prompt=row["prompt"], completion=row["completion"])
        return root(about, [self.generation_up(dataset)], self.reached_by(self.readers(dataset, row_id)))

    def item(self, item_id: str, rows: list[Json]) -> Node:
        """Who was asked a question, and the rows that answer it."""
        asked = Counter(row["generation"] for row in rows)
        right = Counter(row["generation"] for row in rows if row["right"])
        above = [
            above | {"text": f"{right[name]} of {count} answers right, of {above['text']}"}
            for name, count in asked.items()
            for above in [self.generation_up(name)]
        ]
        answers = {row["example_id"]: row for row in rows}
        times = Counter(row["example_id"] for row in rows)
        below = [
            node("example", name, f"{one_line(row['completion'], 60)}: {row['verdict']}, given {times[name]} times",
                 self.uses(name))
            for name, row in answers.items() if row["right"]
        ]  # fmt: skip
        wrong = [name for name, row in answers.items() if not row["right"]]
        if wrong:
            below.append(node("wrong answers", "", f"{len(wrong)} different ones; {first_ids(wrong)}", rows=wrong))
        return root(node("question", item_id, one_line(rows[0]["prompt"]), prompt=rows[0]["prompt"]), above, below)

    def dataset(self, dataset_id: str) -> Node:
        """What a dataset is, who wrote it, its first rows, and the models that its rows reached."""
        kind = self.datasets[dataset_id]["kind"]
        if kind in ANSWERS:
            return self._answers(dataset_id)
        if kind in ("train", CHAT):
            return self._training_set(dataset_id)
        led_to = []
        if kind in ("source", "document"):
            imported = [name for name in self.answers if self.datasets[name].get("of") == dataset_id]
            led_to = [self.generation_up(name) for name in imported]
        elif kind == "teacher":
            led_to = [self.generation_up(name) for name in self.answers if "teacher" in self.datasets[name]]
        elif kind == "prompt_search":
            tried = self.rows(dataset_id, "tried.jsonl")
            told = (f"{row['score']:.3f} on search items: {one_line(row['system'])}" for row in tried)
            led_to = [node("prompt", "", line) for line in told]
        elif kind == "pool":
            led_to = [self.brief(name) for name in self.frozen if self.datasets[name].get("pool") == dataset_id]
        return root(self.brief(dataset_id), [], led_to)

    def _answers(self, dataset_id: str) -> Node:
        """Count answers by source, model and difficulty; the sets that took some, and the models after these."""
        rows = self.rows(dataset_id, "samples.jsonl")
        about, right = (
            self.generation_up(dataset_id),
            list(dict.fromkeys(row["example_id"] for row in rows if row["right"])),
        )
        sets = [
            self.brief(name) | {"text": f"{len(taken)} rows of {self.dataset_text(name)}"}
            for name, taken in self.users(dataset_id).items()
        ]
        direct: dict[str, str] = {}
        for name in self.users(dataset_id):
            direct |= self.readers(name)
        facts = tally(rows) | {"num_right": sum(row["right"] for row in rows), "rows": right}
        text = f"{about['text']}; {_counted(facts)}; right {first_ids(right)}"
        return root(about | facts | {"text": text}, about["children"], sets + self.reached_by(direct))

    def _training_set(self, dataset_id: str) -> Node:
        """Count rows by source, model and difficulty; the models that were trained on them or rehearsed them."""
        rows = self.rows(dataset_id, "train.jsonl")
        ids = [row["id"] for row in rows]
        about, facts, told = self.brief(dataset_id), {"rows": ids}, ""
        made_from = [self.model_up(BASE)]
        if dataset_id not in self.chats:
            facts |= tally(rows) | {"rejected": self.datasets[dataset_id].get("rejected", {})}
            told, made_from = f"{_counted(facts)}; ", self.sources(rows)
        led_to = self.reached_by(self.readers(dataset_id))
        uses = (name for name, one in self.policies.items() if dataset_id in dict(datasets_of(one["settings"])))
        led_to += [self.policy_up(name) | {"children": []} for name in uses]
        return root(about | facts | {"text": f"{about['text']}; {told}{first_ids(ids)}"}, made_from, led_to)

    def model(self, model_id: str) -> Node:
        """Its parents and all rows that it read; its verdict, scores, data and the models that went on from it."""
        about = self.model_up(model_id, in_full=True)
        written = [
            node("dataset", name, self.dataset_text(name), list(map(self.brief, self.users(name))))
            for name in self.answers
            if self.datasets[name].get("model") == model_id
        ]
        if model_id == BASE:
            written += [self.brief(name) for name in self.chats]
        heirs = {
            name: "went on from it"
            for name, model in self.models.items()
            if model_id in (model["parent"], *model.get("members", []))
        }
        return root(about, about["children"], self.outcome(model_id) + written + self.reached_by(heirs))

    def policy(self, policy_id: str) -> Node:
        """What it was made from; the models asked by it, with scores and verdicts; the samples taken under it."""
        asked = [row for row in self.evals.values() if row.get("policy") == policy_id]
        led_to = [node("eval", row["id"], f"model {row['model']}: {self.eval_text(row)}") for row in asked]
        led_to += [self.brief(name) for name in self.answers if self.datasets[name].get("policy") == policy_id]
        about = self.policy_up(policy_id)
        return root(about, about["children"], led_to)

    def evaluation(self, eval_id: str) -> Node:
        """The model that it measured, and what the verdict led to."""
        record = self.evals[eval_id]
        led_to = []
        if record["split"] == "gate":
            now = "the champion" if self.store.champion() == record["model"] else "not the champion now"
            quarantined = self.models.get(record["model"], {}).get("dataset") in self.store.quarantined()
            led_to = [node("outcome", "", now + ("; its newest dataset is quarantined" if quarantined else ""))]
        facts = {key: value for key, value in record.items() if key not in ("id", "diagnosis")}
        about = node("eval", eval_id, self.eval_text(record), **facts)
        asked = [self.policy_up(record["policy"])] if record.get("policy") in self.policies else []
        return root(about, [self.model_up(record["model"]), *asked], led_to)


def _counted(facts: Json) -> str:
    return "; ".join(f"{name.replace('_', ' ')}: {count_text(facts[name])}" for name in ("by_model", "by_difficulty"))
