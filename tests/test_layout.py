"""The shape of the code: which folder may import which, what may be heavy, and how long things get."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.metering import WORK

REPO = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "run_agent": {"run_agent", "agent", "tools", "memory", "prompts"},
    "agent": {"agent", "tools", "memory", "prompts"},
    "tools": {"tools", "memory", "prompts"},
    "memory": {"memory", "prompts"},
    "prompts": {"prompts"},
}
HEAVY = {"torch", "transformers", "trl", "peft", "chromadb", "sentence_transformers", "vllm"}
HEAVY_ALLOWED = {
    "tools/engines/constrained.py",
    "tools/engines/likelihood.py",
    "tools/engines/rollout.py",
    "tools/engines/transformers_engine.py",
    "tools/optimize/collate.py",
    "tools/optimize/distill_trainer.py",
    "tools/optimize/distill_worker.py",
    "tools/optimize/dpo_worker.py",
    "tools/optimize/fused_lora.py",
    "tools/optimize/grpo_worker.py",
    "tools/optimize/kto_worker.py",
    "tools/optimize/merge_worker.py",
    "tools/optimize/on_policy.py",
    "tools/optimize/rate_worker.py",
    "tools/optimize/row_attention.py",
    "tools/optimize/sft_worker.py",
    "tools/optimize/shared_prompts.py",
}
"""The modules of worker processes: they may import heavy libraries at the top, and others import them in functions."""
MOST_LINES = 400
MOST_LINES_OF = {"agent/graph.py": 120, "run_agent.py": 120}
MOST_LINES_OF_A_FUNCTION = 50
LONG_FUNCTIONS_ALLOWED = {"tools/optimize/sft_worker.py"}  # one flat script, cut into acts by rules
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:(?:home|tmp|Users)/\w|(?:root|opt)\b)")


class Import(NamedTuple):
    module: str
    line: int
    at_top: bool
    """Runs when the module is imported: in no function, and not for type checkers alone."""


def product() -> list[Path]:
    return sorted(
        path
        for folder in MAY_IMPORT
        for path in (REPO / f"{folder}.py", *(REPO / folder).rglob("*.py"))
        if path.is_file()
    )


def python_files() -> list[Path]:
    return product() + sorted(path for folder in ("tests", "bench") for path in (REPO / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def imports(path: Path) -> list[Import]:
    def walk(node: ast.AST, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                package = path.relative_to(REPO).parts[: -child.level] if child.level else ()
                module = ".".join([*package, *filter(None, [child.module])])
                yield Import(module, child.lineno, at_top)
                yield from (Import(f"{module}.{alias.name}", child.lineno, at_top) for alias in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, at_top and not inside and not for_types)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), True))


def declared_dependencies() -> set[str]:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("-", "_") for line in lines}
    return names | {"openai", "ray", "submitit", "vllm", "mcp"}


def shared_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no git checkout to list the files of")
    return [path for name in listed if (path := REPO / name).is_file()]


def test_imports_point_one_way() -> None:
    wrong = []
    for path in product():
        folder = path.relative_to(REPO).parts[0].removesuffix(".py")
        for entry in imports(path):
            target = entry.module.split(".")[0]
            if target in {*MAY_IMPORT, "tests", "bench"} - MAY_IMPORT[folder]:
                wrong.append(f"{name_of(path)}:{entry.line} imports {entry.module}; {folder} may not import {target}")
    assert not wrong, "\n".join(wrong)


def test_no_module_is_named_like_a_dependency() -> None:
    taken = declared_dependencies()
    parts = {part.removesuffix(".py"): name_of(path) for path in product() for part in path.relative_to(REPO).parts}
    wrong = [f"{path}: {part} is the name of a dependency" for part, path in parts.items() if part.lower() in taken]
    assert not wrong, "\n".join(wrong)


def test_heavy_modules_are_imported_inside_functions() -> None:
    heavy = HEAVY | {name.removesuffix(".py").replace("/", ".") for name in HEAVY_ALLOWED}
    wrong = {
        f"{name_of(path)}:{entry.line} imports a heavy module at the top; do it in the function that needs it"
        for path in product()
        if name_of(path) not in HEAVY_ALLOWED
        for entry in imports(path)
        if entry.at_top and heavy & {entry.module, entry.module.split(".")[0]}
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_files_keep_their_size() -> None:
    sizes = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    limits = {name: MOST_LINES_OF.get(name, MOST_LINES) for name in sizes}
    wrong = [f"{name} has {size} lines, most {limits[name]}" for name, size in sizes.items() if size > limits[name]]
    assert not wrong, "\n".join(wrong)


def test_functions_keep_their_size() -> None:
    wrong = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name_of(path) not in LONG_FUNCTIONS_ALLOWED:
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    wrong.append(
                        f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines, most {MOST_LINES_OF_A_FUNCTION}"
                    )
    assert not wrong, "\n".join(wrong)


def test_no_file_names_a_place_on_one_machine() -> None:
    wrong = []
    for path in shared_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or the like
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                wrong.append(f"{name_of(path)}:{number} {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open('/" + "root/x')", True),
        ("path: /" + "tmp/work", True),
        ("see /" + "home/ann/data", True),
        ("https://example.org/opt/in", False),
        ("#!/usr/bin/env bash", False),
        ("runs/tmp/x", False),
    ],
)
def test_the_rule_on_paths(line: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is found


def test_every_job_has_its_kind_of_work() -> None:
    """Else its time counts as overhead, and the budget does not know its speed."""
    asked = {
        name
        for path in (REPO / "tools").rglob("*.py")
        for name in re.findall(
            r'(?:jobs\.run\(|train_candidate\(run\.context,)\s*"([a-z_.]+:[a-z_]+)"', path.read_text(encoding="utf-8")
        )
    }
    assert len(asked) > 20
    assert asked - set(WORK) == {"memory.lessons:remember", "tools.module:function"}
