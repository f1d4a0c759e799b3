"""The tool contract: a tool is one typed, documented function in one file.

    @tool(stage="select", when=has_data, estimate_tokens=...)
    def count_sources(run: ToolRun, dataset_id: Literal["any"] = "any") -> dict[str, int]:
        \"\"\"Tell how many training examples came from each source. Use it when the mix may be unbalanced. ...\"\"\"

- `@tool` alone will do: of the stage "evaluate", always legal, no tokens. `tools new NAME` writes a start.
- The docstring is the prompt: what it does, when to use it, what comes back. The planner reads its first paragraph.
- `run` is injected and absent from the menu. Every other argument is a `Literal` grid or a `bool`; `when` may narrow
  an argument to the values that are legal now, for example the ids of datasets.
- Results are small plain JSON values; bulk goes to files, named in the result.
- A tool runs in a process of its own (tools/host.py). It reads its own folder, installed packages and the run's
  artifacts, and writes to data/, policies/, lessons/ (`run.context.store`) and to temporary files; the kernel refuses
  the rest.
- Raise ToolError when the planner can mend it, and say how. Anything else ends the run (resumably).
- Heavy work is a job: `run.context.jobs.run("tools.module:function", args)` runs one of this program's in the worker,
  once.
- Heavy imports (torch, trl, chromadb) stand inside functions, so that listing the tools stays quick.
- The same call on the same artifacts gives the same result: it is keyed, a finished call is not repeated, and one that
  costs nothing leaves the menu until something else was done.
- A dataset's manifest has a "kind"; what other steps read of "samples" and "train" is in `memory.store.FIELDS`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, get_origin, get_type_hints, overload

from memory.store import RunStore

Stage = Literal["acquire", "select", "optimize", "refine", "evaluate"]
Json = dict[str, Any]
Grid = dict[str, list[Any]]
"""Argument name -> values to choose from."""


class ToolError(Exception):
    """The planner's mistake: the text says what to do instead. The run goes on."""


class Jobs(Protocol):
    """Runs heavy functions in the worker (`tools.jobs.client.WorkerClient`)."""

    def run(self, function: str, args: Json, inputs: Json | None = None) -> tuple[Any, Any]:
        """Return the job's value and its usage; a finished job is not run again."""


class Overlaps(NamedTuple):
    """Training rows without those that overlap with an evaluation item."""

    kept: list[Json]
    removed: list[Json]
    """Each with a "reason": "exact", "reordered", "template", "ngram" or "paraphrase"."""
    num_same_template: int
    """How many kept rows differ from an evaluation item in numbers and names only: the form of a generated task."""


class Judge(Protocol):
    """What tools may ask of the referee. Gate and final items and their scores never come back."""

    def measure(self, model_id: str, split: Literal["search"], shots: int = 0, policy: str | None = None) -> Json:
        """Return the record of a model on the search split; policy: how it is asked, None = as the champion is."""

    def judge(self, candidate: str) -> Json:
        """Return {"accepted", "n", "refused_by"}: whether the candidate becomes the champion, or the guards against."""

    def judge_policy(self, policy: str) -> Json:
        """Return the same for an inference policy: whether the champion is asked by it from now on."""

    def remove_overlaps(self, rows: list[Json]) -> Overlaps:
        """Split training rows into those kept and those that are an evaluation item, copied, reworded or renumbered."""


@dataclass(frozen=True)
class ToolContext:
    """What a tool may use: the run's artifacts, the worker, the referee's door, the run's settings."""

    store: RunStore
    jobs: Jobs
    referee: Judge
    seed: int
    task: str
    """Spec of the task, as the user gave it. The file of a task's items is closed to tools; jobs get what may be
    trained on as `job.resident.task`."""
    asked: tuple[str, ...] = ()
    """What `--tools` named: optional tools and selectors, and files."""


class ToolRun(Protocol):
    """The injected first argument of a tool; any object with a context will do in a test."""

    @property
    def context(self) -> ToolContext:
        """The run this call belongs to."""


@dataclass(frozen=True)
class Call:
    """The plain ToolRun."""

    context: ToolContext


@dataclass(frozen=True)
class Tool:
    """A registered tool."""

    name: str
    function: Callable[..., Json]
    stage: Stage
    description: str
    """The whole docstring."""
    grid: Grid
    defaults: Json
    when: Callable[[ToolContext], Grid | list[Grid] | None]
    """None when the tool is not legal now, else the arguments whose values are narrowed ({} = the whole grid)."""
    estimate_tokens: Callable[..., int]
    """(context, **args) -> tokens this call will process, with what must follow it to be of use."""
    section: str = ""
    """What it fills in its stage, for example "synthetic generation": a row of `tools list`."""
    optional: bool = False
    """Whether it is on the menu only when `--tools NAME` asks for it: a small planner does best with a short menu."""

    @property
    def module(self) -> str:
        """Where it comes from."""
        return self.function.__module__

    @property
    def summary(self) -> str:
        """First paragraph of the docstring, on one line."""
        return " ".join(self.description.split("\n\n")[0].split())

    def legal(self, context: ToolContext) -> Grid | None:
        """Return the argument values that are legal now, or None."""
        return next(iter(self.grids(context)), None)

    def grids(self, context: ToolContext) -> list[Grid]:
        """Return the argument values that are legal now, and further ones for when the budget affords none of these."""
        found = self.when(context)
        narrowed = [] if found is None else found if isinstance(found, list) else [found]
        for one in narrowed:
            if not isinstance(one, dict) or not all(self._takes(name, values) for name, values in one.items()):
                raise ValueError(f"`when` gave {one!r}; give None, or lists of values of the arguments {self.grid}")
        return [self.grid | one for one in narrowed]

    def _takes(self, name: str, values: object) -> bool:
        known = self.grid.get(name)
        return known is not None and isinstance(values, list) and all(value in known or not known for value in values)

    def __call__(self, context: ToolContext, **args: Any) -> Json:
        """Run the tool."""
        return self.function(Call(context), **args)


REGISTRY: dict[str, Tool] = {}


@overload
def tool(function: Callable[..., Json], /) -> Tool: ...
@overload
def tool(
    *,
    stage: Stage = ...,
    when: Callable[[ToolContext], Grid | list[Grid] | None] = ...,
    estimate_tokens: Callable[..., int] = ...,
    section: str = ...,
    optional: bool = ...,
) -> Callable[[Callable[..., Json]], Tool]: ...
def tool(
    function: Callable[..., Json] | None = None,
    /,
    *,
    stage: Stage = "evaluate",
    when: Callable[[ToolContext], Grid | list[Grid] | None] = lambda context: {},
    estimate_tokens: Callable[..., int] = lambda context, **args: 0,
    section: str = "",
    optional: bool = False,
) -> Tool | Callable[[Callable[..., Json]], Tool]:
    """Register a function as a tool. Raises ValueError when its docstring, grids or name break the contract."""

    def register(function: Callable[..., Json]) -> Tool:
        name = function.__name__
        description = inspect.getdoc(function)
        if not description:
            raise ValueError(f"tool {name!r} has no docstring; it is what the planner reads")
        if stage not in get_args(Stage):
            raise ValueError(f"tool {name!r} has the stage {stage!r}; take one of {', '.join(get_args(Stage))}")
        known = REGISTRY.get(name)
        if known is not None and known.module != function.__module__:
            where = inspect.getfile(known.function)
            raise ValueError(f"the tool {name!r} of {where} has the same name; rename the function")
        grid, defaults = _grid(function)
        made = Tool(name, function, stage, description, grid, defaults, when, estimate_tokens, section, optional)
        REGISTRY[name] = made
        return made

    return register if function is None else register(function)


def _grid(function: Callable[..., Json]) -> tuple[Grid, Json]:
    hints = get_type_hints(function)
    grid: Grid = {}
    defaults: Json = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        hint = hints.get(parameter.name)
        if hint is bool:
            grid[parameter.name] = [True, False]
        elif get_origin(hint) is Literal:
            grid[parameter.name] = list(get_args(hint))
        elif hint is str:
            grid[parameter.name] = []  # `when` fills in the legal ids
        else:
            raise ValueError(
                f"argument {parameter.name!r} of tool {function.__name__!r} must be a Literal, a bool, "
                f"or a str whose values `when` gives; it is {hint}"
            )
        default, values = parameter.default, grid[parameter.name]
        if not all(isinstance(value, str | int | float | None) for value in values):
            raise ValueError(f"the values of {parameter.name!r} must be texts, numbers or booleans; they are {values}")
        if default is not inspect.Parameter.empty:
            if default not in values and (values or not isinstance(default, str)):
                raise ValueError(f"the default of {parameter.name!r}, {default!r}, is none of its values {values}")
            defaults[parameter.name] = default
    return grid, defaults
