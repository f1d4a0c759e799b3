"""What a run is started with: one frozen RunConfig, from a TOML file and then flags. Unknown keys are errors."""

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

DEFAULT_TASK = "reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=2"
PLANNERS = ("self", "rules", "random", "scripted:FILE", "chat:PROVIDER:MODEL")
LISTS = ("tools", "data", "approve_tools")
"""Settings that may be given several times."""
GIVEN_AGAIN = (
    "planner", "goal", "max_steps", "tools", "tool_minutes", "heartbeat_minutes", "keep_rejected", "prices",
    "budget_minutes", "budget_tokens", "budget_cpu_minutes", "budget_gpu_minutes", "budget_usd", "budget_gib",
)  # fmt: skip
"""Settings that `resume` takes too: no score depends on them."""
FORMAT_VERSION = 1
"""Of run folders. A folder with a higher one was written by a newer version and is refused."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a run; `help` of each field is also the text of --help."""

    task: str = _option(DEFAULT_TASK, "what to learn: reasoning_gym:NAME?option=value&..., or a .jsonl or .toml file")
    model: str = _option("smollm2-135m", "model to improve: smollm2-135m, a folder, a .gguf file or a Hugging Face id")
    planner: str = _option("self", f"who decides each step: {', '.join(PLANNERS)}")
    budget_minutes: float | None = _option(
        None, "minutes of the whole run (default 10; none with another limit of work)"
    )
    budget_tokens: int | None = _option(None, "processed tokens of the whole run; makes a run repeatable")
    budget_cpu_minutes: float | None = _option(None, "processor time of the run's jobs, all cores together")
    budget_gpu_minutes: float | None = _option(None, "time of the run's jobs, once for each GPU of the machine")
    budget_usd: float | None = _option(None, "money, by the prices in --prices")
    budget_gib: float | None = _option(None, "disk space of the run's folder, in GiB")
    prices: str | None = _option(None, "TOML file of prices in USD: machine_per_hour, [tokens.MODEL] input and output")
    goal: float | None = _option(None, "stop when the champion's search score reaches this (0 to 1); none: go on")
    seed: int = _option(0, "seed of items, sampling and training")
    search_items: int = _option(128, "items whose scores the planner sees")
    gate_items: int = _option(600, "items on which the referee accepts or rejects")
    final_items: int = _option(400, "items opened once, at the end")
    fresh_evaluation: bool = _option(
        False, "evaluate on items of a secret new seed, told when the run ends; for tasks that generate items"
    )
    max_steps: int = _option(200, "steps after which the run ends in any case")
    approve: bool = _option(False, "ask a person before each action, here or later with `run_agent.py approve`")
    approve_tools: tuple[str, ...] = _option((), "ask a person before this tool alone (may be given several times)")
    engine: str = _option(
        "transformers", "who generates: transformers, vllm (see `make vllm`), or openai:URL[,URL...]#MODEL"
    )
    dtype: str = _option("auto", "auto (bf16 where the hardware is quick at it, else float32), float32, bfloat16")
    system_prompt: str = _option("", "system prompt of every question; empty keeps prompts short")
    tools: tuple[str, ...] = _option(
        (),
        "file with tools of your own, an mcp.json of MCP servers, or the name of an optional tool "
        "(may be given several times)",
    )
    tool_minutes: float = _option(10.0, "minutes that a tool may work by itself in one call; its jobs are not counted")
    heartbeat_minutes: float = _option(
        15.0, "minutes after which a job that neither computes nor tells progress is ended and tried again"
    )
    keep_rejected: int = _option(
        1,
        "rejected models whose weights stay on disk, the newest, beside the champion with its parents",
    )
    data: tuple[str, ...] = _option(
        (),
        "answers of yours to train on beside the model's own: a .jsonl or .parquet file or a Hugging Face id, with "
        "?prompt=COLUMN&completion=COLUMN&licence=...&rows=N, or a document (.pdf, .md, .txt, code) for the tool "
        "from_documents (may be given several times)",
    )
    teacher: str = _option(
        "", "endpoint whose answers the tool distil_answers may train on, http://HOST/v1#MODEL (key: TEACHER_API_KEY)"
    )
    report_to: str = _option("", "pass training metrics on to trackio, wandb, mlflow or tensorboard, as TRL does")
    runs_dir: str = _option("runs", "folder of all runs")
    models_dir: str = _option("models", "folder of converted models")

    def __post_init__(self) -> None:
        """Check values; raises ValueError with the value and the cure."""
        for name in ("search_items", "gate_items", "final_items"):
            if getattr(self, name) < 20:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is too few to tell anything; use 20 or more"
                )
        for name in ("tool_minutes", "heartbeat_minutes", *(name for name in GIVEN_AGAIN if name.startswith("budget"))):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        if self.keep_rejected < 0:
            raise ValueError(f"--keep-rejected must not be negative, but is {self.keep_rejected}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype {self.dtype!r} is unknown; use auto, float32, bfloat16 or float16")
        urls = self.engine.removeprefix("openai:").partition("#")[0].split(",")
        if self.engine not in ("transformers", "vllm") and not (
            self.engine.startswith("openai:") and all(url.startswith(("http://", "https://")) for url in urls)
        ):
            raise ValueError(
                f"--engine {self.engine!r} is unknown; use transformers, vllm or openai:http://HOST:PORT/v1#MODEL"
            )
        if self.budget_usd is not None and self.prices is None:
            raise ValueError("--budget-usd needs prices: give --prices FILE.toml")
        address, _, model = self.teacher.partition("#")
        if self.teacher and ("@" in address or not model or not address.startswith(("http://", "https://"))):
            raise ValueError(
                f"--teacher {model or 'without a model'!r} must be named as http://HOST:PORT/v1#MODEL, its key in the "
                "environment variable TEACHER_API_KEY"
            )
        check_planner_name(self.planner)

    @property
    def minutes(self) -> float | None:
        """The wall-time limit in force: 10 minutes unless work is limited in another way; None = no limit."""
        others = (self.budget_tokens, self.budget_cpu_minutes, self.budget_gpu_minutes, self.budget_usd)
        return 10.0 if self.budget_minutes is None and not any(others) else self.budget_minutes

    def to_json(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return dataclasses.asdict(self) | {name: list(getattr(self, name)) for name in LISTS}


def check_planner_name(name: str) -> None:
    """Raise ValueError with the nearest name when there is no such planner. `replay:RUN` is what `replay` begins."""
    if name in ("self", "rules", "random") or name.startswith(("scripted:", "chat:", "replay:")):
        return
    known = [planner.split(":")[0] for planner in PLANNERS]
    near = difflib.get_close_matches(name.split(":")[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"--planner {name!r} is unknown; {hint}choose from {', '.join(PLANNERS)}")


def unknown(kind: str, word: str, known: list[str]) -> str:
    """Return what to say about an unknown command, option or tool: the nearest one, then all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {word!r}" + (f"; {hint}choose from {', '.join(known)}" if known else "")


def from_mapping(values: dict[str, Any]) -> RunConfig:
    """Build a config from plain values; unknown keys and wrong types raise ValueError with the nearest name."""
    hints = get_type_hints(RunConfig)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            raise ValueError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        allowed = get_args(hints[name]) if "|" in str(hints[name]) else (hints[name],)
        if name in LISTS:
            continue
        fits = isinstance(value, tuple(allowed)) or (isinstance(value, int) and float in allowed)
        if not fits or (isinstance(value, bool) and bool not in allowed):
            raise ValueError(f"setting {name!r} is {value!r}; it must be {hints[name]}")
    return RunConfig(**values | {name: tuple(values.get(name, ())) for name in LISTS})


def load_config(file: str | None, flags: dict[str, Any]) -> RunConfig:
    """Merge a TOML file (None = none) with flags; flags win."""
    values: dict[str, Any] = {}
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"--config {file}: there is no such file")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"--config {file} is not valid TOML: {error}") from error
    return from_mapping(values | flags)
