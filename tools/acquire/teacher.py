"""The teacher that a user names with `--teacher URL#MODEL`: an OpenAI-compatible endpoint whose answers are distilled.

It is kept in the run as data/<id>/ of kind "teacher", by which tools know that there is one. The key of the endpoint
comes from the environment variable TEACHER_API_KEY and is written nowhere.
"""

from memory.records import content_id
from memory.store import RunStore
from tools.contract import Json
from tools.evaluate.costs import answer_tokens

WITH_EXAMPLES = 8
"""Times an item's question and answer that a prompt takes with the task's seed examples, generously."""
ROOM = 4
"""Times the tokens of the task's answers that a teacher may take: it is not used to their form."""


def keep_teacher(store: RunStore, spec: str) -> None:
    """Write the teacher into the run."""
    address, _, model = spec.partition("#")
    manifest = {"kind": "teacher", "address": address, "model": model}
    store.put("data", content_id(manifest), manifest)


def known_teacher(store: RunStore) -> Json | None:
    """Return the teacher's manifest {"address", "model", ...}, None when the user named none."""
    return next(iter(store.datasets("teacher")), None)


def expected_tokens(store: RunStore) -> tuple[float, float]:
    """Return the input and output tokens that one question may take of a teacher who was not asked yet."""
    prompt, answer = answer_tokens(store, few_shot=True)
    return WITH_EXAMPLES * (prompt + answer), ROOM * answer


def num_asked(store: RunStore) -> int:
    """Return how many questions the teacher was asked."""
    asked = (dataset["num_items"] for dataset in store.datasets("samples") if dataset.get("method") == "distil_answers")
    return sum(asked)
