"""Tools of MCP servers in a run, and our own inspection as an MCP server; real servers made with the SDK."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters

from agent.tool_host import ToolHost
from agent.trace import read_events
from run_agent import main
from tests.test_views import make_run
from tools.contract import ToolContext, ToolError
from tools.engines.models import MODELS_DIR
from tools.mcp_servers import menu_of
from tools.sample_run import make_sample_run

REPO = Path(__file__).resolve().parents[1]
SECRET = "a-long-secret-value"
SERVER = """
import os, sys, time
from enum import Enum
from typing import Annotated, Literal
from pydantic import Field
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("dice", log_level="ERROR")

class Colour(Enum):
    RED = "red"
    BLUE = "blue"

@server.tool()
def roll(sides: Literal[4, 6] = 6, loaded: bool = False, note: str = "") -> dict[str, int]:
    \"\"\"Roll a die.

    Long text that no planner reads.\"\"\"
    return {"value": sides, "loaded": int(loaded), "noted": len(note)}

@server.tool()
def pick(number: Annotated[int, Field(ge=2, le=4)], colour: Colour) -> str:
    \"\"\"Pick a card.\"\"\"
    return f"{colour.value} {number}"

@server.tool()
def search(query: str) -> str:
    \"\"\"Search for words.\"\"\"
    return query

@server.tool()
def count(first: Annotated[int, Field(ge=0, le=30)], second: Annotated[int, Field(ge=0, le=30)]) -> int:
    \"\"\"Count.\"\"\"
    return first + second

@server.tool()
def refuse() -> str:
    \"\"\"Say no.\"\"\"
    raise ToolError("not on Sundays")

@server.tool()
def die() -> str:
    \"\"\"Die.\"\"\"
    os._exit(3)

@server.tool()
def hang() -> str:
    \"\"\"Wait.\"\"\"
    time.sleep(3600)
    return ""

@server.tool()
def shout() -> str:
    \"\"\"Say too much.\"\"\"
    return "x" * 100_000

@server.tool()
def tell() -> dict[str, str]:
    \"\"\"Tell a secret.\"\"\"
    return {"key": os.environ["SOME_API_KEY"], "others": str("OTHER_KEY" in os.environ)}

@server.tool()
def boast() -> dict[str, float]:
    \"\"\"Return no number.\"\"\"
    return {"value": float("nan")}

@server.tool()
def peep(what: Literal["referee", "beside"]) -> str:
    \"\"\"Read a file.\"\"\"
    return open(os.environ[what]).read()

if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
server.run()
"""


def write_config(folder: Path, **servers: Any) -> str:
    (folder / "server.py").write_text(SERVER)
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    return str(folder / "mcp.json")


def stdio(*arguments: str, **more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": list(arguments or ["server.py"]), **more}


class Mcp:
    """A host with the test's server, on a made-up run."""

    def __init__(self, host: ToolHost, context: ToolContext) -> None:
        self.host, self.context = host, context
        self.described = {tool["name"]: tool for tool in host.describe()}

    def call(self, tool: str, **args: Any) -> dict[str, Any]:
        return self.host.call(tool, args, self.context.jobs, self.context.referee)


@pytest.fixture(scope="module")
def mcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mcp]:
    folder = tmp_path_factory.mktemp("mcp")
    context = make_sample_run(folder / "runs" / "one")
    (folder / "runs" / "one" / "referee").mkdir()
    (folder / "runs" / "one" / "referee" / "gate.json").write_text("hidden")
    (folder / "mine").mkdir()
    keys = {"SOME_API_KEY": SECRET, "referee": str(folder / "runs" / "one" / "referee" / "gate.json")}
    keys |= {"beside": str(folder / "mine" / "mcp.json")}
    file = write_config(
        folder / "mine",
        dice=stdio(env=keys, timeout_s=8),
        broken=stdio("-c", "print('no JSON at all', flush=True)"),
        missing={"command": str(folder / "nowhere")},
        old={"url": "http://127.0.0.1:1/sse", "type": "sse"},
        off={"command": "never", "disabled": True},
    )
    with ToolHost([file], folder / "runs" / "one", closed=[folder / "runs" / "one" / "referee"]) as host:
        yield Mcp(host, context)


def test_tools_with_finite_arguments_are_offered_and_the_others_named(mcp: Mcp) -> None:
    offers = {offer["tool"]: offer["grid"] for offer in mcp.host.offers()}
    assert offers["dice_roll"] == {"sides": [4, 6], "loaded": [True, False]}
    assert offers["dice_pick"] == {"number": [2, 3, 4], "colour": ["red", "blue"]}
    assert not {"dice_search", "dice_count"} & set(offers)
    roll = mcp.described["dice_roll"]
    assert roll["summary"] == "Roll a die." and roll["section"] == "MCP server dice" and roll["left_out"] is None
    assert roll["defaults"] == {"sides": 6, "loaded": False}
    left_out = {name: tool["left_out"] for name, tool in mcp.described.items() if tool["left_out"]}
    assert set(left_out) == {"dice_search", "dice_count", "broken", "missing", "old"}
    assert "'query' is no enum" in left_out["dice_search"] and "961 combinations" in left_out["dice_count"]
    assert "the MCP server broken failed" in left_out["broken"] and "nowhere" in left_out["missing"]
    assert "streamable http" in left_out["old"]


def test_a_call_returns_small_json(mcp: Mcp) -> None:
    assert mcp.call("dice_roll", sides=4, loaded=True) == {"value": 4, "loaded": 1, "noted": 0}
    assert mcp.call("dice_pick", number=3, colour="blue") == {"result": "blue 3"}
    assert len(mcp.call("dice_shout")["text"]) == 4000


def test_a_server_is_locked_in_and_its_keys_stay_out_of_results(mcp: Mcp) -> None:
    assert mcp.call("dice_tell") == {"key": "[redacted]", "others": "False"}
    assert SECRET not in mcp.call("dice_peep", what="beside")["result"]
    with pytest.raises(ToolError, match="peep of the MCP server dice"):
        mcp.call("dice_peep", what="referee")


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("refuse", "refuse of the MCP server dice: .*not on Sundays"),
        ("die", "the MCP server dice failed"),
        ("hang", "the MCP server dice did not answer in 8 s"),
        ("boast", "the MCP server dice|boast of the MCP server dice"),
    ],
)
def test_a_failing_call_is_the_planners_to_mend_and_the_next_one_works(mcp: Mcp, tool: str, said: str) -> None:
    pid = mcp.host.pid
    with pytest.raises(ToolError, match=said):
        mcp.call(f"dice_{tool}")
    assert mcp.call("dice_roll", sides=6, loaded=False)["value"] == 6
    assert mcp.host.pid == pid, "the process in which tools run lives on"


def test_a_server_ends_with_the_host_that_is_killed(mcp: Mcp) -> None:
    mcp.call("dice_roll", sides=6, loaded=False)
    assert mcp.host.pid is not None
    servers = psutil.Process(mcp.host.pid).children(recursive=True)
    assert any("server.py" in " ".join(server.cmdline()) for server in servers)
    os.kill(mcp.host.pid, signal.SIGKILL)
    assert psutil.wait_procs(servers, timeout=30)[1] == []
    assert mcp.call("dice_roll", sides=6, loaded=False)["value"] == 6, "both are started again"


def test_a_server_on_streamable_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = write_config(tmp_path, far={"type": "http", "url": f"http://127.0.0.1:{port}/mcp", "headers": {"x": "y"}})
    process = subprocess.Popen([sys.executable, "server.py", str(port)], cwd=tmp_path)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        context = make_sample_run(tmp_path / "run")
        with ToolHost([file], tmp_path / "run") as host:
            assert Mcp(host, context).call("far_roll", sides=4, loaded=False)["value"] == 4
            process.kill()
            process.wait()
            with pytest.raises(ToolError, match="the MCP server far failed"):
                Mcp(host, context).call("far_roll", sides=4, loaded=False)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", 'is not a file with {"mcpServers"'),
        ('{"mcpServers": {"a": 7}}', 'is not a file with {"mcpServers"'),
        ('{"mcpServers": {}}', "there is no server"),
        ('{"mcpServers": {"a": {}}}', 'either a "command" or a "url"'),
    ],
)
def test_a_bad_file_is_refused_with_the_cure(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mcp.json").write_text(text)
    assert main(["tools", "list", "--tools", str(tmp_path / "mcp.json")]) == 2
    assert said in capsys.readouterr().err


def test_schemas_become_grids() -> None:
    def grid(**kind: Any) -> Any:
        schema = {
            "properties": {"a": kind},
            "required": ["a"],
            "$defs": {"E": {"enum": ["x"]}, "R": {"$ref": "#/$defs/R"}},
        }
        try:
            return menu_of(schema)[0]["a"]
        except ValueError:
            return None

    assert grid(const=3) == [3] and grid(enum=["a", 1, None]) == ["a", 1, None]
    assert grid(type="integer", exclusiveMinimum=0, exclusiveMaximum=9, multipleOf=4) == [4, 8]
    assert grid(anyOf=[{"type": "boolean"}, {"type": "null"}]) == [True, False, None]
    assert grid(**{"$ref": "#/$defs/E"}) == ["x"]
    never: list[Any] = [
        {"type": "string"},
        {"type": "number"},
        {"type": "integer", "minimum": 0},
        {"enum": [[1]]},
        {"enum": []},
    ]
    never += [{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"$ref": "#/$defs/R"}, {"enum": [float("nan")]}]
    never += [{"enum": ["x" * 101]}, {"type": "integer", "minimum": 0, "maximum": 10**12}]
    assert [grid(**kind) for kind in never] == [None] * len(never)


def test_a_run_calls_a_server_that_dies_and_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"question": f"Say w{number}.", "answer": f"w{number}"} for number in range(300)]
    (tmp_path / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = [{"tool": "dice_die", "arguments": {}}, {"tool": "dice_pick", "arguments": {"number": 2, "colour": "red"}}]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in plan))
    command = [
        sys.executable, "run_agent.py", "start", "--task", f"{tmp_path / 'say.jsonl'}?scorer=exact",
        "--planner", f"scripted:{tmp_path / 'plan.jsonl'}", "--tools", write_config(tmp_path, dice=stdio()),
        "--model", str(tiny_model), "--models-dir", str(MODELS_DIR), "--runs-dir", str(tmp_path / "runs"),
        "--search-items", "20", "--gate-items", "20", "--final-items", "20", "--budget-tokens", "3000000",
        "--dtype", "float32", "--max-steps", "2", "--json",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    assert "left out: dice_search: its argument 'query'" in run.stderr
    (run_dir,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    events = {event["kind"]: event for event in read_events(run_dir)}
    assert "the MCP server dice failed" in events["tool_failed"]["error"]
    assert events["tool_finished"]["result"] == {"result": "red 2"}
    assert "dice_pick" in [row["tool"] for row in events["observed"]["menu"]]


# --- our own server


async def _ask(runs: Path, *calls: tuple[str, dict[str, Any]]) -> tuple[list[str], list[tuple[bool, str]]]:
    words = [str(REPO / "run_agent.py"), "mcp", "--runs-dir", str(runs)]
    async with Client(StdioServerParameters(command=sys.executable, args=words, cwd=runs)) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        answers = [await client.call_tool(name, args) for name, args in calls]
    return names, [(answer.is_error, answer.content[0].text) for answer in answers]  # type: ignore[union-attr]


def test_our_own_server_shows_runs_and_starts_none(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    run = {"run": run_dir.name}
    names, answers = asyncio.run(
        _ask(
            tmp_path,
            ("list_runs", {}),
            ("status", {}),
            ("trace_show", run | {"step": 1}),
            ("trace_search", run | {"text": "generate_data"}),
            ("tools_list", {"name": "note_lesson"}),
            ("status", {"run": "nobody"}),
        )
    )
    assert names == ["list_runs", "status", "trace_show", "trace_search", "follow", "tools_list"]
    assert [failed for failed, _ in answers] == [False] * 5 + [True]
    told = [text for _, text in answers]
    assert all(run_dir.name in text for text in told[:2]) and "step 1" in told[2] and "generate_data" in told[3]
    assert told[4].startswith("note_lesson [evaluate") and "nobody" in told[5]
