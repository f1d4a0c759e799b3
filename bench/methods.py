"""Every method of the four processes from one and the same run, each beside its control: gain over doing nothing, cost.

    .venv/bin/python -m bench.methods [--quick] [--json] [--seed 0] [--methods kto random] [--run RUNS/RUN]

One run of the default task (few-shot answers, a first adapter, its own answers) is forked where a method of each
process has its place, so that all methods of a process begin with the same model and the same data; after it the run
goes on as its control does. Scores are those of the search items, which no arm trains on; a gain is the paired
difference to the model that was there before. --quick: one method of each process, fewer items. --run: fork this run
of an earlier call again. The bench has no target of its own: it says what helps here and what does not.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from agent.statistics import PairedTest, paired_gain, paired_test
from bench.common import ROOT, finish, fresh_folder, machine, percent, points, try_run
from memory.records import read_jsonl, write_jsonl
from memory.store import BASE, GREEDY, RunStore

Json = dict[str, Any]
Line = tuple[str, Json]
NUM_SEARCH, NUM_GATE, NUM_FINAL = 600, 200, 60


def generate(num_items: int, samples: int, prompting: str = "zero_shot", temperature: float = 1.2) -> Line:
    """Return a call of generate_data."""
    sizes = {"num_items": num_items, "samples_per_item": samples}
    return "generate_data", sizes | {"temperature": temperature, "prompting": prompting}


def curate(choice: str = "diverse", size: int = 512) -> Line:
    """Return a call of curate_data."""
    return "curate_data", {"size": size, "keep": "not_too_easy", "choice": choice}


def train(start_from: str = "latest", **settings: Any) -> Line:
    """Return a call of finetune_model."""
    usual = {"method": "lora", "learning_rate": 0.001, "schedule": "linear", "epochs": 2}
    return "finetune_model", {"start_from": start_from} | usual | settings


JUDGE: Line = ("evaluate_model", {"target": "candidate"})
FIRST = [generate(512, 32, "few_shot", 1.0), curate(), train("base"), JUDGE]
SECOND = [generate(1536, 32), curate(), train(), JUDGE]
FIRST_OPTIMIZE, ACQUIRE, SELECT, OPTIMIZE, MERGE, REFINE = 3, 5, 6, 7, 9, 5
"""The step at which a method of each process has its place in FIRST and SECOND."""


class Method(NamedTuple):
    """What a run does from a step on, and the name of the method that does the same without it."""

    step: int
    lines: list[Line]
    control: str = ""
    num_by_rules: int = 0
    """Most steps after these, until the verdict, that the fixed schedule decides: how much data a source brings, and
    whether more must be sampled, is not known before."""


def selector(choice: str) -> Method:
    """Return the training on what a selector takes of the same candidates."""
    return Method(SELECT, [curate(choice), train(), JUDGE], "" if choice == "random" else "random")


def optimizer(tool: str, **args: Any) -> Method:
    """Return another way to train on the same rows."""
    return Method(OPTIMIZE, [(tool, args), JUDGE], "finetune_model")


def source(tool: str, **args: Any) -> Method:
    """Return another way to come by the data."""
    return Method(ACQUIRE, [(tool, args)], "generate_data", 4)


METHODS: dict[str, Method] = {
    "generate_data": Method(ACQUIRE, [generate(1024, 32)], "", 3),
    "vote_labels": source("vote_labels", num_items=512, least_agreement=0.5),
    "self_instruct": source("self_instruct", num_drafts=512, reward="agreement"),
    "evolve_questions": source("evolve_questions", num_items=512, reward="agreement"),
    "self_play": source("self_play", num_drafts=512),
    "magpie": source("magpie", num_drafts=512, prompting="few_shot", reward="agreement"),
    "random": selector("random"),
    "diverse": selector("diverse"),
    "cluster_capped": selector("cluster_capped"),
    "curriculum": selector("curriculum"),
    "ifd": selector("ifd"),
    "influence": selector("influence"),
    "judged": selector("judged"),
    "learned": selector("learned"),
    "mmr": selector("mmr"),
    "finetune_model": Method(OPTIMIZE, [train(), JUDGE]),
    "finetune_model, from base": Method(OPTIMIZE, [train("base"), JUDGE], "finetune_model"),
    "prefer_answers": optimizer("prefer_answers", learning_rate=0.0005, epochs=1),
    "kto": optimizer("kto", learning_rate=0.0005, epochs=1),
    "grpo": optimizer("grpo", learning_rate=0.0001, steps=12),
    # Legal only while the model answers better with examples.
    "self_distill": Method(FIRST_OPTIMIZE, [("self_distill", {"learning_rate": 0.0005, "epochs": 1}), JUDGE]),
    "average_models": Method(MERGE, [("average_models", {"num_models": 2, "champion_share": 0.5}), JUDGE]),
    "scale_adapter": Method(MERGE, [("scale_adapter", {"factor": 1.2}), JUDGE]),
    "vote_on_answers": Method(REFINE, [("vote_on_answers", {"samples": 8})]),
    "take_judged_answer": Method(REFINE, [("take_judged_answer", {"samples": 8})], "vote_on_answers"),
    # It measures fixed examples too, as its control.
    "show_examples": Method(REFINE, [("show_examples", {"source": "nearest", "count": 4})]),
    "search_prompt": Method(REFINE, [("search_prompt", {"proposals": 4})]),
}  # fmt: skip
"""A method of your own: one line. The rest have another place: bench.policies runs test-time training and those for
programs with tests, bench.acquire write_programs and, with a teacher, distil_answers, bench.upper_arm gold answers."""
QUICK = ("vote_labels", "mmr", "random", "scale_adapter", "show_examples")


def first_run(seed: int, quick: bool) -> Path:
    """Run what all methods share, once; returns the run's folder."""
    folder = Path(fresh_folder())
    # The last call is never judged: a merge has its place before it.
    first = [*FIRST, *SECOND, SECOND[0]]
    optional = {tool for method in METHODS.values() for tool, _ in method.lines} | set(METHODS)
    told = {
        "planner": f"scripted:{_script(folder, 'first', first)}", "seed": seed, "budget_tokens": 100_000_000,
        "runs_dir": folder, "search_items": NUM_SEARCH // 4 if quick else NUM_SEARCH, "gate_items": NUM_GATE,
        "final_items": NUM_FINAL, "max_steps": len(first),
        "tools": sorted(optional & _offered()),
    }  # fmt: skip
    code, report = try_run(told)
    if code != 0:
        raise SystemExit(f"the first run ended with exit code {code}")
    return folder / str(report["run"])


def _offered() -> set[str]:
    """Return the names of the optional tools and selectors."""
    command = [sys.executable, str(ROOT / "run_agent.py"), "tools", "list", "--json"]
    listed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)
    return {entry["name"] for entry in listed if entry["optional"]}


def _script(folder: Path, name: str, lines: list[Line]) -> Path:
    path = folder / f"{name}.jsonl"
    write_jsonl(path, [{"tool": tool, "arguments": args} for tool, args in lines])
    return path


def run_method(name: str, method: Method, first: Path) -> Json:
    """Fork the first run, let it do what the method says, and return what came of it; "right": of each search item."""
    lines = [*FIRST, *SECOND][: method.step - 1] + method.lines
    script = _script(first.parent, name.replace(" ", "-"), lines)
    command = [sys.executable, str(ROOT / "run_agent.py"), "fork", "--json", "--runs-dir", str(first.parent)]
    num_steps = len(method.lines) + method.num_by_rules
    last = str(method.step + num_steps - 1)
    command += ["--at", str(method.step), "--max-steps", last, "--planner", f"scripted:{script}", first.name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        return {"method": name, "problem": f"exit code {done.returncode}"}
    run_dir = first.parent / json.loads(done.stdout.splitlines()[-1])["run"]
    events = list(read_jsonl(run_dir / "events.jsonl"))
    steps = [event for event in events if event["kind"] == "tool_finished" and event["step"] >= method.step]
    called = [event["tool"] for event in steps]
    last_tool = "evaluate_model" if method.num_by_rules else method.lines[-1][0]
    followed = [(event["tool"], event["args"]) for event in steps[: len(method.lines)]] == method.lines
    if not followed or last_tool not in called:
        return {"method": name, "problem": f"not legal here, or failed; it called {', '.join(called)}"}
    steps = steps[: called.index(last_tool) + 1]
    result = steps[-1]["result"]
    store = RunStore(run_dir)
    model, policy = result.get("model", store.champion()), result.get("policy", GREEDY)
    found = store.score(model, policy=policy) or store.score(store.champion())
    assert found is not None, "the search items were measured"
    rows = store.rows("evals", found["id"], "items.jsonl")
    return {
        "method": name, "control": method.control, "score": found["score"], "ci95": found["ci95"], "n": found["n"],
        "tokens": sum(event["usage"]["tokens"] for event in steps),
        "wall_s": round(sum(event["usage"]["wall_s"] for event in steps), 1),
        "accepted": result.get("accepted", False), "told": result.get("told", ""),
        "right": [row["verdict"] == "right" for row in rows],
    }  # fmt: skip


def before(first: Path, step: int) -> list[bool]:
    """Return which search items the model was right about that a method at this step begins with."""
    store = RunStore(first)
    earlier = store.verdicts()[: sum(step > verdict for verdict in (len(FIRST), len(FIRST + SECOND)))]
    known = [verdict["model"] for verdict in earlier if verdict["accepted"]]
    found = store.score(known[-1] if known else BASE)
    assert found is not None, "a judged model was measured on the search items"
    return [row["verdict"] == "right" for row in store.rows("evals", found["id"], "items.jsonl")]


def gain_of(test: PairedTest, n: int) -> Json:
    """Return a paired difference with its interval."""
    gain, low, high = paired_gain(test.num_fixed, test.num_broken, n)
    return {"points": gain, "ci95": [low, high], "fixed": test.num_fixed, "broken": test.num_broken}


def line(row: Json) -> str:
    """Return a row of the table."""
    if "problem" in row:
        return f"| {row['method']} | did not run: {row['problem']} | | | | | |"
    gain, over = row["gain"], row.get("over_control")
    against = f"{points(over['points'], over['ci95'])} over {row['control']}" if over else ""
    kept = "kept" if row["accepted"] else "not kept"
    cost = f"{row['tokens']} | {row['wall_s']:.0f}"
    gained = f"{points(gain['points'], gain['ci95'])}, {kept}"
    return f"| {row['method']} | {percent(row)} | {row['n']} | {gained} | {against} | {cost} |"


def main() -> None:
    """Run the methods one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a method of each process, fewer items")
    parser.add_argument("--json", action="store_true", help="figures as the last line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="all by default")
    parser.add_argument("--run", type=Path, help="a first run of an earlier call")
    given = parser.parse_args()
    names = given.methods or list(QUICK if given.quick else METHODS)
    names = list(dict.fromkeys([*(METHODS[name].control for name in names if METHODS[name].control), *names]))
    first = given.run or first_run(given.seed, given.quick)
    print(f"machine: {machine()}; seed {given.seed}; first run {first}")
    print("| method | right | n | gain over doing nothing | gain over its control | tokens | s |")
    print("|---|---|---|---|---|---|---|")
    rows: dict[str, Json] = {}
    for name in names:
        row = rows[name] = run_method(name, METHODS[name], first)
        control = rows.get(METHODS[name].control, {"problem": ""})
        if "problem" not in row:
            row["gain"] = gain_of(paired_test(before(first, METHODS[name].step), row["right"]), row["n"])
            if "problem" not in control:
                row["over_control"] = gain_of(paired_test(control["right"], row["right"]), row["n"])
        print(line(row), flush=True)
    shown = [{key: value for key, value in row.items() if key != "right"} for row in rows.values()]
    ok = all("problem" not in row for row in shown)
    figures = {"bench": "methods", "quick": given.quick, "machine": machine(), "methods": shown, "ok": ok}
    finish(figures, given.json)


if __name__ == "__main__":
    main()
