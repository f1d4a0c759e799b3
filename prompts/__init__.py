"""Prose that people edit. `render` fills a prompt's placeholders; a missing or an unused one is an error."""

import re
from pathlib import Path

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def render(name: str, **values: str) -> str:
    """Return `prompts/<name>.md` with its {placeholders} filled.

    Raises ValueError when the text has a placeholder without a value, or a value without a placeholder.
    """
    text = (Path(__file__).parent / f"{name}.md").read_text(encoding="utf-8").strip()
    wanted = set(_PLACEHOLDER.findall(text))
    if wanted != set(values):
        missing, unused = sorted(wanted - set(values)), sorted(set(values) - wanted)
        raise ValueError(f"prompts/{name}.md: missing values {missing}, unused values {unused}")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)
