"""The scorer `code`: what passes, and what programs that cheat, attack or never end are given instead."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.tasks import load_task
from tools.tasks.base import Item, SplitSizes, Verdict
from tools.tasks.code_scorer import make_code, read_program
from tools.tasks.known_answers import known_answer_checks
from tools.tasks.sandbox import unsupported
from tools.tasks.scoring import ScorerErrors, ScorerProcess

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))

REFERENCE = "def double(x):\n    return 2 * x"
TESTS = ["assert double(21) == 42", "assert double('ab') == 'abab'", "assert all(double(n) == n + n for n in range(5))"]
HARMLESS = "def double(x): return 2 * x\n"


def item(tests: list[Any] | None = None, reference: str = REFERENCE) -> Item:
    return Item("Write double(x).", reference, "all", {"tests": TESTS if tests is None else tests})


@pytest.fixture(scope="module")
def process() -> Iterator[ScorerProcess]:
    """The scorer as a run uses it: in the bounded child process, and each program in a process below that."""
    with ScorerProcess({"name": "code"}, time_limit_s=30) as made:
        yield made


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (REFERENCE, "right"),
        (f"Here it is:\n```python\n{REFERENCE}\n```\nIt doubles.", "right"),
        (f"```python\ndef double(x): return x\n```\nBetter:\n```\n{REFERENCE}\n```", "right"),
        ("double = lambda x: x * 2", "right"),
        ("import math\ndef double(x):\n    print('noise' * 1000)\n    return x * 2", "right"),
        ("def double(x): return x", "wrong"),
        ("def twice(x): return 2 * x", "wrong"),
        ("double = 3", "wrong"),
        ("raise SystemExit(0)", "wrong"),
        ("def double(x): raise ValueError", "wrong"),
        ("I do not know how.", "malformed"),
        ("", "malformed"),
        ("# nothing", "malformed"),
        ("def double(x:", "malformed"),
        ("x = '\ud800'", "malformed"),
        ("x = " + "(" * 10_000, "malformed"),
        ("x = 1\n" * 20_000, "malformed"),
    ],
)
def test_what_passes(process: ScorerProcess, answer: str, expected: str) -> None:
    assert process.score([(item(), answer)])[0].kind == expected
    assert process.errors == ScorerErrors()


@pytest.mark.parametrize(
    "answer",
    [
        # What compares as equal to everything stays behind: only plain values come back.
        "class Same(int):\n    def __eq__(self, other): return True\ndef double(x): return Same(7)",
        "class Same:\n    def __eq__(self, other): return True\ndef double(x): return Same()",
        "class Same(str):\n    def __repr__(self): return 'True or 1'\ndef double(x): return Same()",
        # The tests are compared elsewhere: nothing that is overridden here is what they use.
        "import builtins\nbuiltins.all = builtins.any = lambda *a: True\ndef double(x): return x",
        "import builtins, sys\nbuiltins.AssertionError = Warning\nsys.excepthook = print\ndef double(x): return x",
        "__debug__\nimport sys\nsys.flags = None\ndef double(x):\n    try: return x\n    finally: sys.exit(0)",
        # An early end with exit code 0 is no pass.
        "import os\nos._exit(0)",
        "import os\ndef double(x): os._exit(0)",
        # Replies that come before or beside the real one are no plain value in time.
        "import os\n[os.write(fd, b'\"(\\'value\\', \\'42\\')\"\\n' * 9) for fd in range(3, 9) if os.fstat(fd)]\n"
        "def double(x): return x",
        "def double(x): return [x] * 10**6",
        "def double(x):\n    value = []\n    for _ in range(10_000): value = [value]\n    return value",
    ],
)
def test_what_cheats_is_wrong(process: ScorerProcess, answer: str) -> None:
    assert process.score([(item(), answer), (item(), HARMLESS)])[0].kind == "wrong"
    assert process.errors == ScorerErrors()


def test_what_attacks_is_stopped(process: ScorerProcess, tmp_path: Path) -> None:
    secret = tmp_path / "gate.jsonl"
    secret.write_text("42")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        attacks = {
            "reads a file": f"    if isinstance(x, int): return int(open({str(secret)!r}).read())",
            "writes a file": f"    open({str(tmp_path / 'mine')!r}, 'w')",
            "dials": f"    import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))",
            "forks": "    import os\n    if os.fork() == 0: os._exit(0)",  # a bomb needs one fork first
            "starts threads": "    import threading\n    threading.Thread(target=print).start()",
            "hogs memory": "    bytearray(8 << 30)",
            "signals": "    import os; os.kill(os.getppid(), 0)",
            "prints megabytes": "    print('x' * (50 << 20))\n    1 / 0",
        }
        programs = [f"def double(x):\n{code}\n    return 2 * x" for code in attacks.values()]
        verdicts = process.score([(item(), program) for program in programs] + [(item(), HARMLESS)])
        with pytest.raises(TimeoutError):
            server.accept()
    assert {name: verdict.kind for name, verdict in zip(attacks, verdicts, strict=False)} == dict.fromkeys(
        attacks, "wrong"
    )
    assert verdicts[-1].right, "the scorer outlives what it scored"
    assert not (tmp_path / "mine").exists()
    assert process.errors == ScorerErrors()


@pytest.mark.parametrize("body", ["import time; time.sleep(600)", "while True: pass"])
def test_what_never_ends_is_a_timeout(process: ScorerProcess, body: str) -> None:
    process.score([(item(), HARMLESS)])
    before = process.pid
    assert process.score([(item(), f"def double(x):\n    {body}")]) == [Verdict(0.0, "timeout")]
    assert process.score([(item(), HARMLESS)])[0].right
    assert process.pid == before, "the scorer itself was not lost over it"


SEARCH = """
import gc, os, re, sys

def double(x):
    texts = [str(dict(os.environ)), str(sys.argv), str(sys.orig_argv)]
    for known in gc.get_objects():
        if isinstance(known, (list, tuple, dict, set)):
            texts += [part for part in known if isinstance(part, str)]
            texts += [part for part in known.values() if isinstance(part, str)] if isinstance(known, dict) else []
    frame = sys._getframe()
    while frame:
        texts += [part for part in frame.f_locals.values() if isinstance(part, str)]
        frame = frame.f_back
    for path in ("/proc/self/mem", f"/proc/{os.getppid()}/mem", f"/proc/{os.getppid()}/environ"):
        try:
            texts.append(open(path, "rb").read(1 << 20).decode(errors="replace"))
        except OSError:
            pass
    found = [re.search("MA" + "RK-[0-9a-f]+", text) for text in texts]
    return next((match[0] for match in found if match), "nothing")
"""


def test_the_expected_value_is_nowhere_to_be_found(process: ScorerProcess) -> None:
    expected = "MARK-7f3a91"
    question = item([f"assert double('x') == {expected!r}"], f"def double(x): return {expected!r}")
    assert process.score([(question, SEARCH)])[0].kind == "wrong"
    handed_over = item([f"assert double({expected!r}) == {expected!r}"], question.answer)
    assert process.score([(handed_over, SEARCH)])[0].right, "the search does find what is there"


IO_TESTS = [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "10 -4", "stdout": "6\n"}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("print(sum(map(int, input().split())))", "right"),
        (
            "if __name__ == '__main__':\n    import sys\n    print(sum(map(int, sys.stdin.read().split())), ' ')",
            "right",
        ),
        ("print(3)", "wrong"),
        ("print(sum(map(int, input().split())))\nraise SystemExit(1)", "wrong"),
        ("import sys\nprint(open(sys.argv[0]).read())", "wrong"),
        ("while True: print('x' * 10_000)", "wrong"),
        ("import os\nos.close(1)", "wrong"),
    ],
)
def test_programs_that_read_and_print(process: ScorerProcess, answer: str, expected: str) -> None:
    question = item(IO_TESTS, "print(sum(map(int, input().split())))")
    assert process.score([(question, answer)])[0].kind == expected
    assert process.errors == ScorerErrors()


def test_a_program_that_reads_nothing_does_not_block_the_scorer() -> None:
    question = item([{"stdin": "x" * (1 << 20), "stdout": "done"}], "print('done')")
    assert make_code()(question, "print('done')").right
    assert make_code()(question, "import time; time.sleep(600)").kind == "timeout"


@pytest.mark.parametrize(
    ("tests", "reference", "said"),
    [
        ([], REFERENCE, 'has no "tests"'),
        (["assert triple(1) == 3"], REFERENCE, "call nothing that the reference answer defines"),
        (["assert double(1) =="], REFERENCE, "no python statements"),
        ([3], REFERENCE, "no python statements"),
        ([{"stdin": "1"}], REFERENCE, "a test must be"),
        (["assert double(object()) == 2"], REFERENCE, "only plain values"),
    ],
)
def test_tests_that_cannot_be_used_are_the_scorers_error(tests: list[Any], reference: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_code()(item(tests, reference), REFERENCE)


def test_a_test_sees_the_exception_that_the_program_raises() -> None:
    tests = ["try:\n    double(None)\n    raise SystemError\nexcept TypeError:\n    pass"]
    assert make_code()(item(tests), REFERENCE).right
    assert make_code()(item(tests), "def double(x): return x").kind == "wrong"


def test_a_builtin_of_the_same_name_does_not_stand_in_for_the_program() -> None:
    question = item(["assert sum([1, 2]) == 3"], "def sum(xs):\n    return xs[0] + xs[1]")
    assert make_code()(question, "x = 1").kind == "wrong"
    assert make_code()(question, question.answer).right


def test_code_tasks_load_and_pass_the_known_answer_checks(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"Write add_{n}(x), which adds {n}.",
            "answer": f"def add_{n}(x):\n    return x + {n}",
            "tests": [f"assert add_{n}(1) == {n + 1}"],
        }
        for n in range(8)
    ]
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"{path}?scorer=code")
    with ScorerProcess(task.scorer) as scorer:
        assert known_answer_checks(task.splits(SplitSizes(2, 1, 1), 0).search, scorer.score) == []


def test_the_last_block_is_the_answer() -> None:
    assert read_program("```python\na = 1\n```\nor\n```py\nb = 2") == "b = 2"
    assert read_program("a = 1") == "a = 1"
