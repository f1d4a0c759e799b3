"""Finds the tools: the built-in ones and those in files that the user names."""

import importlib
import importlib.util
from pathlib import Path

from memory.records import content_id
from tools.contract import REGISTRY, Tool

_MODULES = (
    "tools.acquire.generate_data",
    "tools.acquire.import_data",
    "tools.select.curate_data",
    "tools.optimize.finetune_model",
    "tools.evaluate.evaluate_model",
    "tools.evaluate.note_lesson",
    "tools.evaluate.finish_run",
)
"""The built-in tools, in the order in which the menu shows them."""


def load_tools(extra_files: tuple[str, ...] = ()) -> dict[str, Tool]:
    """Return all tools by name. Raises ValueError when a user's file is missing or holds no tool."""
    for module in _MODULES:
        importlib.import_module(module)
    for name in extra_files:
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"--tools {name}: there is no such file")
        module = f"user_tools_{content_id(str(path.resolve()))}"
        if not _tools_of(module):
            spec = importlib.util.spec_from_file_location(module, path)
            assert spec is not None and spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        if not _tools_of(module):
            raise ValueError(f"--tools {name}: the file holds no function decorated with @tool")
    return dict(REGISTRY)


def _tools_of(module: str) -> list[Tool]:
    return [tool for tool in REGISTRY.values() if tool.function.__module__ == module]
