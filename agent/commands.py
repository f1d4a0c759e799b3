"""What each command of run_agent.py does. A command takes the parsed options and returns an Outcome; it prints nothing.

Commands that only read import nothing heavy. Those that work on a run (start, resume, try, export, doctor --rebuild)
import the loop when they are called, and the weights stay in the worker's process.
"""

import dataclasses
import shutil
import sys
import textwrap
import types
from argparse import SUPPRESS, Namespace
from collections.abc import Container, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from agent import follow, views
from agent.config import GIVEN_AGAIN, RunConfig, load_config, unknown
from agent.methods_table import methods_table
from agent.moving import read_places
from agent.state import StopReason
from memory.records import read_json
from memory.store import BASE, GREEDY, RunStore
from tools.contract import Json, ToolError

REPOSITORY = Path(__file__).resolve().parents[1]
INTERRUPTED = 130
WAITING = 3


class Outcome(NamedTuple):
    """What a command answers."""

    lines: Iterable[str]
    """For people, printed as they come; empty when everything was told on stderr meanwhile."""
    data: Any
    """The same as plain JSON values, for --json; None = the lines are JSON already."""
    code: int = 0
    """Exit code."""


def printable(text: str) -> str:
    """Return text without control characters: what a model or a foreign run folder says must not steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def config_options(names: Container[str] | None = None) -> Iterator[tuple[str, Json]]:
    """Yield (flag, keyword arguments of add_argument) for the file of settings and each setting, or only those named.

    An option that is not given stays out of the namespace, so that it does not hide the value of a TOML file.
    """
    if names is None:
        yield "--config", {"metavar": "FILE.toml", "help": "settings from a TOML file; options win"}
    hints = get_type_hints(RunConfig)
    for setting in dataclasses.fields(RunConfig):
        if names is not None and setting.name not in names:
            continue
        hint = hints[setting.name]
        kinds = [kind for kind in get_args(hint) if kind is not types.NoneType] if "|" in str(hint) else [hint]
        shown = "" if setting.default is None or setting.default == () else f" (default: {setting.default!r})"
        keywords: Json = {"default": SUPPRESS, "help": (setting.metadata["help"] + shown).replace("%", "%%")}
        if kinds[0] is bool:
            keywords |= {"action": "store_true"}
        elif get_origin(kinds[0]) is tuple:
            keywords |= {"action": "append", "metavar": "TOOL" if setting.name == "approve_tools" else "FILE"}
        else:
            keywords |= {"type": kinds[0], "metavar": kinds[0].__name__.upper().replace("STR", "TEXT")}
        yield f"--{setting.name.replace('_', '-')}", keywords


def runs_dir(args: Namespace) -> Path:
    """Return the folder of runs that the options name."""
    return Path(args.runs_dir)


def run_of(args: Namespace) -> Path:
    """Return the run that the options name, else the newest."""
    return views.find_run(runs_dir(args), args.run)


# --- work on a run


def start(args: Namespace) -> Outcome:
    """Begin a run and work until it ends."""
    names = {setting.name for setting in dataclasses.fields(RunConfig)}
    config = load_config(args.config, {name: value for name, value in vars(args).items() if name in names})
    from agent.console import Console
    from agent.run import start as start_run

    return ended(start_run(config, Console()))


def resume(args: Namespace) -> Outcome:
    """Go on with a run; by default the newest that can be resumed."""
    if args.run is None:
        runs = views.run_folders(runs_dir(args))
        resumable = (path for path in runs if views.run_state(path) in views.RESUMABLE)
        run_dir = next(resumable, None)
        if run_dir is None:
            busy = "".join(f"; run {path.name} is at work" for path in runs if views.is_locked(path))
            raise ValueError(
                f"no run in {runs_dir(args)} waits to be resumed{busy}; `run_agent.py list` shows the runs"
            )
    else:
        run_dir = run_of(args)
    from agent.console import Console
    from agent.run import resume as resume_run

    given = {name: vars(args)[name] for name in GIVEN_AGAIN if name in args}
    given |= {} if args.approve is None else {"approve": args.approve}
    given |= {"approve_tools": []} if args.approve is False else {}
    if given and views.run_state(run_dir) == "finished":
        raise ValueError(f"run {run_dir.name} has ended, so no setting changes it; `fork` it, or start a new run")
    return ended(resume_run(run_dir, Console(), None, given, args.accept_changes, read_places(args.moved)))


def ended(report: Json) -> Outcome:
    """Return the report of a run with the exit code that its ending means."""
    codes = {StopReason.FAILED.value: 1, StopReason.USER_STOPPED.value: INTERRUPTED, StopReason.WAITING.value: WAITING}
    return Outcome((), report, codes.get(report["stop_reason"], 0))


def try_prompt(args: Namespace) -> Outcome:
    """Answer a prompt with base and champion side by side."""
    run_dir = run_of(args)
    store = RunStore(run_dir)
    sides = list(dict.fromkeys([(BASE, GREEDY), (store.champion(), store.champion_policy())]))
    work = {"prompt": args.prompt, "sides": sides, "max_new_tokens": args.max_new_tokens}
    answered = in_worker(run_dir, "tools.engines.publish:answer_prompt", work)
    note = "" if len(sides) > 1 else "\n(this run has no accepted model: the base is all there is)"
    return Outcome(
        [views.side_by_side(answered["answers"]) + note], {"run": run_dir.name, "prompt": args.prompt} | answered
    )


def export(args: Namespace) -> Outcome:
    """Write the champion's weights, its inference policy and a model card into a folder."""
    run_dir, target = run_of(args), Path(args.dir)
    record, store = views.open_run(run_dir), RunStore(run_dir)
    champion = store.champion()
    if champion == BASE and store.champion_policy() == GREEDY:
        raise ValueError(f"run {run_dir.name} has no accepted model, so there is nothing to export but the base itself")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; give a new one")
    from tools.engines.publish import model_card
    from tools.refine.card import write_policy

    evaluated = (store.champion_score() or {}).get("identity", {})
    dtype = "bfloat16" if evaluated.get("dtype") == "bfloat16" else "float32"
    final = (views.read_report(run_dir) or {}).get("final")
    card = model_card(record | {"run": run_dir.name}, store, champion, final, args.adapter, dtype)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    partial.mkdir()
    try:
        work = {"model_id": champion, "target": str(partial), "adapter_only": args.adapter, "dtype": dtype}
        exported = in_worker(run_dir, "tools.engines.publish:export_model", work, (partial,))
        (partial / "README.md").write_text(card, encoding="utf-8")
        files = [*exported["files"], "README.md", *write_policy(store, partial)]
        for path in partial.iterdir():  # safetensors are written for their owner alone
            shutil.copymode(partial / "README.md", path)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    text = f"exported model {champion} of run {run_dir.name} to {target}\n  {', '.join(files)}"
    return Outcome([text], {"run": run_dir.name, "model": champion, "dir": str(target), "dtype": dtype, "files": files})


def in_worker(run_dir: Path, function: str, work: Json, writable: tuple[Path, ...] = ()) -> Any:
    """Run a job on a run that nobody works on, and leave no trace of it: it costs the run nothing."""
    record = views.open_run(run_dir)
    if not (run_dir / "worker.json").exists():
        raise ValueError(f"run {run_dir.name} ended before it loaded its model; `run_agent.py resume {run_dir.name}`")
    settings = read_json(run_dir / "worker.json")
    from agent.identity import fingerprint_of

    if fingerprint_of(Path(settings["model_dir"])) != record["identity"]["model"]:
        raise ValueError(f"{settings['model_dir']} does not hold the base model that run {run_dir.name} began with")
    from agent.mending import check_weights
    from agent.run import locked
    from tools.jobs.client import WorkerClient

    with locked(run_dir), WorkerClient(run_dir, "command line", writable=writable) as client:
        check_weights(RunStore(run_dir))
        folder = client.folder(function, work)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            value, _ = client.run(function, work)
        except ToolError as problem:
            raise ValueError(str(problem)) from problem
        finally:
            # What stayed would be counted into the run's budget, and would stand for a folder deleted since.
            shutil.rmtree(folder, ignore_errors=True)
        return value


# --- look at runs


def list_runs(args: Namespace) -> Outcome:
    """Return the table of runs."""
    rows = views.list_runs(runs_dir(args))
    return Outcome([views.list_text(rows)], rows)


def status(args: Namespace) -> Outcome:
    """Return one screen about a run."""
    shown = views.run_status(run_of(args))
    return Outcome([views.status_text(shown)], shown)


def follow_artifact(args: Namespace) -> Outcome:
    """Return where an artifact came from and what it led to."""
    node = follow.follow(run_of(args), args.id)
    return Outcome([follow.follow_text(node)], node)


# --- tools and tasks


def tools_list(args: Namespace) -> Outcome:
    """Return the tools with their arguments, or one of them in full."""
    from agent.tool_host import ToolHost

    with ToolHost(args.tools or (), closed=views.run_folders(runs_dir(args))) as host:
        tools = {tool["name"]: tool for tool in host.describe()}
    if args.name is not None and args.name not in tools:
        raise ValueError(unknown("tool", args.name, list(tools)))
    chosen = [tool for tool in tools.values() if args.name in (None, tool["name"])]
    if args.table:
        return Outcome([methods_table(chosen).rstrip()], chosen)
    text = "\n\n".join(_tool_text(tool, in_full=args.name is not None) for tool in chosen)
    return Outcome([text], [{key: value for key, value in tool.items() if key != "summary"} for tool in chosen])


def _tool_text(tool: Json, in_full: bool) -> str:
    described = tool["description"] if in_full else tool["summary"]
    text = textwrap.indent(described if in_full else textwrap.fill(described, 100), "  ")
    for name, values in tool["grid"].items():
        default = f" (default {tool['defaults'][name]})" if name in tool["defaults"] else ""
        text += f"\n    {name}: {', '.join(map(str, values)) or 'an id that is legal at that moment'}{default}"
    if tool["left_out"]:
        return textwrap.fill(f"{tool['name']}: left out: {tool['left_out']}", 100, subsequent_indent="  ")
    fills = ": ".join(filter(None, (tool["stage"], tool["section"])))
    hint = "" if tool["offered"] else f", offered with --tools {tool['name']}"
    return f"{tool['name']} [{fills}]{hint}\n{text}"


def tasks_list(args: Namespace) -> Outcome:
    """Return the forms of a task, the scorers, and which reasoning-gym datasets work with their default options."""
    del args
    import tools.tasks
    import tools.tasks.scorers
    from tools.tasks.reasoning_gym_task import ReasoningGymTask, dataset_names

    forms = textwrap.dedent(tools.tasks.__doc__ or "").strip().splitlines()[2:]
    scorers = (tools.tasks.scorers.__doc__ or "").strip().splitlines()[2:]
    usable: list[str] = []
    refused: dict[str, str] = {}
    for name in sorted(dataset_names()):
        try:
            with redirect_stdout(sys.stderr):  # one of them prints
                ReasoningGymTask(name, {})
            usable.append(name)
        except ValueError as problem:
            refused[name] = str(problem).removeprefix(f"reasoning_gym:{name} ")
    text = ["A task is one of", *forms, "", "A scorer is one of", *scorers, "", f"{len(usable)} reasoning_gym names:"]
    text += [textwrap.fill(", ".join(usable), 100, initial_indent="  ", subsequent_indent="  ")]
    text += ["", "Not usable as they are:", *(f"  {name}: {why}" for name, why in refused.items())]
    data = {"forms": [line.strip() for line in forms], "scorers": scorers, "reasoning_gym": usable, "refused": refused}
    return Outcome(["\n".join(text)], data)
