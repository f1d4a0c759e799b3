"""What a restricted process can no longer do, and what it still can."""

import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tools.tasks.sandbox import unsupported

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))

REPO = Path(__file__).resolve().parents[1]
PREPARE = """
import ctypes, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path
from tools.tasks.sandbox import python_paths, restrict

def attempt(name, action):
    try:
        print(name, "->", action())
    except BaseException as error:
        print(name, "->", type(error).__name__)

here = Path(sys.argv[1])
"""


def restricted(folder: Path, code: str) -> dict[str, str]:
    """Run code in a process of its own; return what its `attempt`s said, by name."""
    result = subprocess.run(
        [sys.executable, "-c", PREPARE + textwrap.dedent(code), str(folder)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split(" -> ") for line in result.stdout.splitlines())


def test_files_are_out_of_reach_but_for_those_given(tmp_path: Path) -> None:
    for name in ("given", "writable", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").write_text(name)
    said = restricted(
        tmp_path,
        """
        inherited = open(here / "secret" / "file.txt")
        restrict([*python_paths(), here / "given"], [here / "writable"], network=True)
        attempt("read given", lambda: (here / "given" / "file.txt").read_text())
        attempt("write given", lambda: (here / "given" / "new.txt").write_text("x"))
        attempt("read secret", lambda: (here / "secret" / "file.txt").read_text())
        attempt("list secret", lambda: os.listdir(here / "secret"))
        attempt("rename secret", lambda: os.rename(here / "secret" / "file.txt", here / "writable" / "mine.txt"))
        attempt("link to secret", lambda: os.link(here / "secret" / "file.txt", here / "writable" / "mine.txt"))
        attempt("memory of the parent", lambda: open(f"/proc/{os.getppid()}/mem"))
        attempt("write writable", lambda: (here / "writable" / "new.txt").write_text("x"))
        attempt("write /dev/null", lambda: Path(os.devnull).write_text("x"))
        attempt("by way of a program", lambda: subprocess.run(["cat", str(here / "secret" / "file.txt")]))
        attempt("opened before", lambda: inherited.read())
        attempt("import", lambda: __import__("reasoning_gym").__name__)
        """,
    )
    assert said == {
        "read given": "given",
        "write given": "PermissionError",
        "read secret": "PermissionError",
        "list secret": "PermissionError",
        "rename secret": "PermissionError",
        "link to secret": "OSError",  # it would cross the border of two rules (EXDEV)
        "memory of the parent": "PermissionError",
        "write writable": "1",
        "write /dev/null": "1",
        "by way of a program": "PermissionError",
        "opened before": "secret",
        "import": "reasoning_gym",
    }


def test_without_anything_to_write_metadata_stays_too(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("text")
    before = path.stat()
    said = restricted(
        tmp_path,
        """
        restrict([*python_paths(), here], [], network=True)
        path = here / "file.txt"
        attempt("chmod", lambda: path.chmod(0o777))
        attempt("chown", lambda: os.chown(path, 1, 1))
        attempt("utime", lambda: os.utime(path, (0, 0)))
        attempt("truncate", lambda: os.truncate(path, 0))
        attempt("unlink", lambda: path.unlink())
        """,
    )
    assert set(said.values()) == {"PermissionError"}
    assert path.read_text() == "text"
    assert (path.stat().st_mode, path.stat().st_uid, path.stat().st_mtime) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime,
    )


def test_no_socket_of_any_kind_opens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = restricted(
            tmp_path,
            f"""
            attempt("before", lambda: socket.create_connection(("127.0.0.1", {port})).close())
            restrict(python_paths(), [], network=False)
            attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port})))
            attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            attempt("unix", lambda: socket.socket(socket.AF_UNIX))
            attempt("raw call", lambda: ctypes.CDLL(None).socket(2, 1, 0))
            attempt("io_uring", lambda: ctypes.CDLL(None).syscall(425, 8, None))
            attempt("in a child", lambda: subprocess.run(
                [sys.executable, "-c", "import socket; socket.socket()"], stderr=subprocess.DEVNULL).returncode)
            """,
        )
    denied = "PermissionError"
    assert said == {
        "before": "None",
        "tcp": denied,
        "udp": denied,
        "unix": denied,
        "raw call": "-1",
        "io_uring": "-1",
        "in a child": "1",
    }


def test_no_process_starts_and_none_is_signalled(tmp_path: Path) -> None:
    said = restricted(
        tmp_path,
        """
        restrict(python_paths(), [], network=False, processes=False)
        attempt("fork", os.fork)
        attempt("run", lambda: subprocess.run(["true"]))
        attempt("thread", lambda: threading.Thread(target=print).start())
        attempt("kill the parent", lambda: os.kill(os.getppid(), signal.SIGTERM))
        attempt("kill all", lambda: os.kill(-1, 0))
        attempt("leave the group", os.setsid)
        """,
    )
    assert said.pop("thread") == "RuntimeError"
    assert set(said.values()) == {"PermissionError"}


def test_signals_reach_only_what_it_started(tmp_path: Path) -> None:
    said = restricted(
        tmp_path,
        """
        from tools.jobs import landlock
        restrict(python_paths(), [], network=False)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        attempt("kill the parent", lambda: os.kill(os.getppid(), 0) if landlock.interface() >= 6 else 1 / 0)
        child.kill()
        attempt("kill the child", child.wait)
        """,
    )
    assert said["kill the child"] == "-9"
    assert said["kill the parent"] in ("PermissionError", "ZeroDivisionError")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_root_loses_its_powers(tmp_path: Path) -> None:
    said = restricted(
        tmp_path,
        """
        restrict(python_paths(), [here], network=True)
        attempt("host name", lambda: socket.sethostname(socket.gethostname()))
        attempt("root", lambda: os.chroot(here))
        attempt("user", lambda: os.setuid(65534))
        attempt("priority", lambda: os.nice(-1))
        attempt("owner", lambda: os.chown(here, 1, 1))
        """,
    )
    assert set(said.values()) == {"PermissionError"}


def test_it_says_when_it_comes_too_late(tmp_path: Path) -> None:
    said = restricted(
        tmp_path,
        """
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        attempt("with threads", lambda: restrict(python_paths(), [], network=False))
        attempt("missing", lambda: restrict([here / "no such file"], [], network=False))
        stop.set()
        thread.join()
        while len(os.listdir("/proc/self/task")) > 1:  # the kernel ends a thread a moment after it was joined
            time.sleep(0.001)
        attempt("a missing path", lambda: restrict([here / "no such file"], [], network=False))
        """,
    )
    assert said["with threads"] == "SandboxError"
    assert said["a missing path"] == "FileNotFoundError"


def test_it_says_when_the_kernel_refuses(tmp_path: Path) -> None:
    said = restricted(
        tmp_path,
        """
        from tools.tasks import sandbox
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
        sandbox._filter_calls({"landlock_restrict_self": (446, 446)})
        attempt("refused", lambda: restrict(python_paths(), [], network=False))
        """,
    )
    assert said == {"refused": "SandboxError"}


@pytest.mark.parametrize(
    ("scorer", "answer", "said"),
    [
        ({"name": "exact"}, "yes", "right"),
        ({"name": "python", "file": "FILE"}, "yes", "it has no Landlock .* unsandboxed=true"),
        ({"name": "python", "file": "FILE", "unsandboxed": True}, "yes", "right"),
        ({"name": "code"}, "f = 1", "it has no Landlock .* unsandboxed=true"),
        ({"name": "code", "unsandboxed": True}, "f = 1", "wrong"),
        ({"name": "code", "unsandboxed": True}, "def f(): return 2", "right"),
    ],
)
def test_without_a_sandbox_foreign_code_needs_leave(
    tmp_path: Path, scorer: dict[str, object], answer: str, said: str
) -> None:
    (tmp_path / "scorer.py").write_text("def score(item, answer): return answer == item['answer']")
    scorer = scorer | ({"file": str(tmp_path / "scorer.py")} if "file" in scorer else {})
    code = f"""
    from tools.tasks import sandbox
    from tools.tasks.base import Item
    from tools.tasks.scoring import ScorerProcess
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    sandbox._filter_calls({{"landlock_create_ruleset": (444, 444)}})  # what a kernel without Landlock says
    item = Item("q", "yes", "all", {{}})
    if {scorer!r}["name"] == "code":
        item = Item("q", "def f(): return 2", "all", {{"tests": ["assert f() == 2"]}})
    with ScorerProcess({scorer!r}) as process:
        try:
            print("verdict ->", process.score([(item, {answer!r})])[0].kind)
        except ValueError as error:
            print("verdict ->", error)
    """
    assert re.search(said, restricted(tmp_path, code)["verdict"])
