"""Whole runs whose answers come from an endpoint: what it serves is trained here and given to it as an adapter."""

from pathlib import Path
from typing import Any

from agent.trace import read_events
from memory.store import RunStore
from tests.test_openai_engine import FakeServer, choice
from tests.test_openai_engine import server as server
from tests.test_run import copy_task as copy_task
from tests.test_run import finish, flags, only_run, program

__all__ = ["copy_task", "flags", "server"]


class Pupil:
    """Repeats a word when it was trained; when it is shown examples, every other word in half of its samples."""

    def __init__(self) -> None:
        self.adapters: list[str] = []

    def respond(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/models"):
            return 200, {"data": [{"id": "pupil"}]}
        if path.endswith("/load_lora_adapter"):
            assert (Path(body["lora_path"]) / "adapter_model.safetensors").exists()
            self.adapters.append(body["lora_name"])
            return 200, "loaded"
        word = body["messages"][-1]["content"].split()[-1]
        knows, shown = body["model"] in self.adapters, len(body["messages"]) > 2 and int(word[-1]) % 2 == 0
        samples = range(body.get("n", 1))
        choices = [choice(word if knows or (shown and index % 2 == 0) else "?", index) for index in samples]
        return 200, {"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 2 * len(choices)}}


def test_a_run_over_an_endpoint_trains_and_promotes_an_adapter(
    server: FakeServer, flags: list[str], tmp_path: Path
) -> None:
    pupil = Pupil()
    server.respond = pupil.respond
    code, _, said = finish(program("start", *flags, "--engine", f"openai:{server.url}", "--max-steps", "4"))
    assert code == 0, said
    run_dir = only_run(tmp_path)
    tools = [event["tool"] for event in read_events(run_dir) if event["kind"] == "tool_finished"]
    assert tools == ["generate_data", "curate_data", "finetune_model", "evaluate_model"], said
    [verdict] = RunStore(run_dir).verdicts()
    assert verdict["n"] == 20 and len(pupil.adapters) == 1
    assert "few-shot" in said and "(openai)" in said
    trained = [event for event in read_events(run_dir) if event["kind"] == "tool_started"][2]
    assert trained["args"]["method"] == "lora", "an endpoint serves no full weights"
