"""Finds the tools: every file of the stage folders, and files that the user names."""

import importlib
import importlib.util
from pathlib import Path

from tools.contract import REGISTRY, Tool

_MODULES = (
    "tools.acquire.generate_data",
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
        known = set(REGISTRY)
        spec = importlib.util.spec_from_file_location(f"user_tools_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        if set(REGISTRY) == known:
            raise ValueError(f"--tools {name}: the file holds no function decorated with @tool")
    return dict(REGISTRY)
