"""Scorers: what each calls right, and what the bounded child process makes of those that hang, raise, lie or die."""

import os
from pathlib import Path
from typing import Any

import pytest

from tools.tasks import load_task
from tools.tasks.base import Item, Verdict
from tools.tasks.known_answers import known_answer_checks
from tools.tasks.sandbox import unsupported
from tools.tasks.scorers import make_scorer, make_spec
from tools.tasks.scoring import BATCH_SIZE, ScorerErrors, ScorerProcess

FAULTY = """
import os, pathlib, sys, time, socket
print("loaded")

def score(item, answer):
    print("scoring", item["id"])
    os.write(1, b"native output\\n")
    if answer == "hang": time.sleep(60)
    if answer == "chatter":
        while True: print("x" * 1000)
    if answer == "raise": raise KeyError("no such thing")
    if answer == "none": return None
    if answer == "nan": return float("nan")
    if answer == "two": return 2
    if answer == "exit": os._exit(3)
    if answer == "leave": sys.exit("bye")
    if answer == "hog": return len(bytearray(8 << 30))
    if answer == "dial": socket.create_connection(("127.0.0.1", 9))
    if answer == "write": pathlib.Path(__file__).with_name("written.txt").write_text("x")
    if answer == "secret": return "MY_API_TOKEN" in os.environ
    return 0.5 if answer == "half" else answer == item["answer"]
"""


def item(answer: str, question: str = "q", **metadata: Any) -> Item:
    return Item(question, answer, "all", metadata)


def kind(spec: dict[str, Any], reference: str, answer: str, **metadata: Any) -> str:
    return make_scorer(spec)(item(reference, **metadata), answer).kind


def python_scorer(folder: Path, code: str) -> dict[str, Any]:
    (folder / "scorer.py").write_text(code)
    return make_spec("python:scorer.py", {}, folder)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [("Paris", " paris.\n", "right"), ("Paris", "Rome", "wrong"), ("Paris", " ", "malformed"), (".", ".", "right")],
)
def test_exact(reference: str, answer: str, expected: str) -> None:
    assert kind({"name": "exact"}, reference, answer) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("1234", "It is 1,234.", "right"),
        ("-3", "5 - 8 = -3", "right"),
        ("-3", "5 - 8 = \u22123", "right"),
        ("3", "10-3", "right"),  # the last number is 3: this minus is no sign
        ("0.5", "about .5", "right"),
        ("2000", "2e3", "right"),
        ("3.14", "3.141", "right"),
        ("3.14", "3.16", "wrong"),
        ("7", "7 of 10", "wrong"),
        ("12345678901234567890", "12345678901234567891", "wrong"),
        ("7", "seven", "malformed"),
    ],
)
def test_numeric(reference: str, answer: str, expected: str) -> None:
    assert kind({"name": "numeric", "tolerance": 0.01}, reference, answer) == expected


def test_numeric_reference_without_a_number_is_the_scorers_error() -> None:
    with pytest.raises(ValueError, match="'many' has no number"):
        kind({"name": "numeric"}, "many", "3")


def test_regex_reads_the_last_match() -> None:
    spec = {"name": "regex", "pattern": "#### (.+)"}
    assert kind(spec, "#### 4", "#### 3, no:\n#### 4") == "right"
    assert kind(spec, "#### 4", "#### 4.0") == "wrong"
    assert kind(spec | {"compare": "numeric"}, "#### 4", "#### 4.0") == "right"
    assert kind(spec, "#### 4", "4") == "malformed"
    with pytest.raises(ValueError, match="does not match the pattern"):
        kind(spec, "4", "#### 4")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "right"),
        ("(b)", "right"),
        ("the answer is B.", "right"),
        ("red wine", "right"),
        ("I think it is red wine", "right"),
        ("A", "wrong"),
        ("A red wine", "right"),
        ("red", "wrong"),
        ("A or B", "malformed"),
        ("B, not green", "malformed"),
        ("blue", "malformed"),
        ("", "malformed"),
    ],
)
def test_choice(answer: str, expected: str) -> None:
    options = ["green", "red wine", "red"]
    assert kind({"name": "choice", "options": options}, "red wine", answer) == expected
    assert kind({"name": "choice"}, "B", answer, options=options) == expected
    listed = item("B", "Which?\nA) green\nB) red wine\nC) red")
    assert make_scorer({"name": "choice"})(listed, answer).kind == expected


def test_choice_without_texts_reads_letters() -> None:
    assert kind({"name": "choice"}, "C", "It is C") == "right"
    with pytest.raises(ValueError, match="names 0 of the options"):
        kind({"name": "choice"}, "Z", "A")


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("1/2", "0.5", "right"),
        ("1/2", "The answer is $\\frac{1}{2}$.", "right"),
        ("\\frac{1}{2}", "so \\boxed{\\frac{2}{4}}", "right"),
        ("$x^2 + 2x + 1$", "$(x+1)^2$", "right"),
        ("x^2 + 2x + 1", "$(x+1)^2$", "right"),
        ("x^2 + 2x + 1", "x^2 + 2x + 1", "right"),
        ("x^2 + 2x + 1", "1", "wrong"),
        ("12", "first 12, no: 13", "wrong"),
        ("12", "10, 12, 14", "wrong"),
        ("12", "$10$, $12$, $14$", "wrong"),
        ("12", "\\boxed{13} and 12", "wrong"),
        ("$\\{1, 2\\}$", "$\\{2, 1\\}$", "right"),
        ("$(1, 2)$", "$(2, 1)$", "wrong"),
        ("1/3", "0.3", "wrong"),
        ("7", "seven", "malformed"),
        ("7", "", "malformed"),
        ("7", "7 " * 100_000, "right"),
        ("7", "9^" * 5_000, "wrong"),
    ],
)
def test_math_verify(reference: str, answer: str, expected: str) -> None:
    assert kind({"name": "math_verify"}, reference, answer) == expected


def test_math_verify_leaves_the_time_limit_to_the_process() -> None:
    endless = "$" + "^".join(["9"] * 9) + "$"
    with ScorerProcess({"name": "math_verify"}, time_limit_s=3) as process:
        verdicts = process.score([(item("7"), "7"), (item(endless), "$10^{10^{10}}!$"), (item("7"), "8")])
    assert [verdict.kind for verdict in (verdicts[0], verdicts[2])] == ["right", "wrong"]
    assert verdicts[1].kind in ("timeout", "wrong", "error")


def test_reasoning_gym_gives_no_credit_for_part_of_an_answer() -> None:
    task = load_task("reasoning_gym:chain_sum?max_terms=2")
    score = make_scorer(task.scorer)
    question = task.stream(0, 1, 0)[0]
    partial = score(question, f"{question.answer} or so")
    assert 0 < partial.score < 0.99
    assert partial.kind == "wrong"
    assert score(question, f" {question.answer}.0\n").right
    assert score(question, "").kind == "malformed"


def test_text_that_reasoning_gym_cannot_read_is_malformed() -> None:
    task = load_task("reasoning_gym:prime_factorization")
    assert make_scorer(task.scorer)(task.stream(0, 1, 0)[0], "17 \nThis is 2").kind == "malformed"


def test_wrong_scorer_specs_are_explained() -> None:
    with pytest.raises(ValueError, match="unknown scorer 'exakt'; did you mean 'exact'"):
        make_scorer({"name": "exakt"})
    with pytest.raises(ValueError, match="did you mean 'tolerance'"):
        make_scorer({"name": "numeric", "tolerances": 1})


def test_the_child_gives_the_same_verdicts_in_order() -> None:
    task = load_task("reasoning_gym:chain_sum?max_terms=2")
    items = task.stream(0, 2 * BATCH_SIZE + 3, 0)
    pairs = [(entry, entry.answer if index % 3 else f"{entry.answer}0\ud800 \n") for index, entry in enumerate(items)]
    score = make_scorer(task.scorer)
    with ScorerProcess(task.scorer) as process:
        assert process.score([]) == []
        assert process.score(pairs) == [score(entry, answer) for entry, answer in pairs]
        assert known_answer_checks(items[:8], process.score) == []
        assert process.errors == ScorerErrors(0, None)


def test_a_faulty_scorer_costs_only_the_verdicts_it_spoils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "very secret")
    expected = {
        "yes": "right",
        "hang": "timeout",
        "half": "wrong",
        "chatter": "timeout",
        "raise": "error",
        "none": "error",
        "nan": "error",
        "two": "error",
        "exit": "error",
        "leave": "error",
        "hog": "error",
        "dial": "error",
        "write": "error",
        "secret": "wrong",
        "no": "wrong",
        "yes ": "wrong",
    }
    pairs = [(item("yes"), answer) for answer in expected] + [(item("yes"), "yes")] * BATCH_SIZE
    with ScorerProcess(python_scorer(tmp_path, FAULTY), time_limit_s=0.4) as process:
        verdicts = process.score(pairs)
        assert [verdict.kind for verdict in verdicts[: len(expected)]] == list(expected.values())
        assert verdicts[2].score == 0.5
        assert all(verdict.right for verdict in verdicts[len(expected) :])
        assert process.errors == ScorerErrors(9, "KeyError: 'no such thing'")
    assert not (tmp_path / "written.txt").exists()


SPY = """
import os, pathlib, socket, subprocess

def score(item, answer):
    path = pathlib.Path(item["metadata"]["path"])
    if answer == "read": return "gate" in path.read_text()
    if answer == "list": return len(os.listdir(path.parent)) > 0
    if answer == "run": return "gate" in subprocess.run(["cat", path], capture_output=True, text=True).stdout
    if answer == "dial": return socket.SocketType.__mro__[1](socket.AF_INET).fileno() >= 0
    if answer == "chmod": return path.chmod(0o644) is None
    if answer == "import": import numpy, sympy, reasoning_gym; return 1
    return 0
"""


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
def test_a_scorer_can_reach_neither_sealed_items_nor_network(tmp_path: Path) -> None:
    sealed = tmp_path / "runs" / "one" / "referee" / "gate.jsonl"
    sealed.parent.mkdir(parents=True)
    sealed.write_text("gate items")
    tried = ["read", "list", "run", "dial", "chmod", "import", "no"]
    with ScorerProcess(python_scorer(tmp_path, SPY), time_limit_s=60) as process:
        verdicts = process.score([(item("yes", path=str(sealed)), answer) for answer in tried])
        assert [verdict.kind for verdict in verdicts] == ["error"] * 5 + ["right", "wrong"]
        assert process.errors.first is not None
        assert process.errors.first.startswith("PermissionError")


def test_how_the_child_ended_is_kept(tmp_path: Path) -> None:
    with ScorerProcess(python_scorer(tmp_path, FAULTY)) as process:
        process.score([(item("yes"), "leave"), (item("yes"), "exit")])
        assert process.errors == ScorerErrors(2, "the scorer's process ended while scoring (exit code 1: bye)")


def test_a_child_killed_between_batches_is_replaced() -> None:
    with ScorerProcess({"name": "exact"}) as process:
        assert process.score([(item("a"), "a")]) == [Verdict(1.0, "right")]
        assert process.pid is not None
        os.kill(process.pid, 9)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.score([(item("a"), "b")]) == [Verdict(0.0, "wrong")]
        assert process.errors.count == 0


def test_leaving_the_context_ends_the_child(tmp_path: Path) -> None:
    with ScorerProcess(python_scorer(tmp_path, FAULTY)) as process:
        pid = process.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def score(:", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("points = 1", "has no function score"),
        ("raise SystemExit(4)", "exit code 4"),
    ],
)
def test_a_scorer_that_cannot_start_is_explained(tmp_path: Path, code: str, said: str) -> None:
    with (
        ScorerProcess(python_scorer(tmp_path, code)) as process,
        pytest.raises(ValueError, match="could not start") as caught,
    ):
        process.score([(item("a"), "a")])
    assert said in str(caught.value)


def test_a_scorer_changed_since_the_task_was_loaded_is_refused(tmp_path: Path) -> None:
    spec = python_scorer(tmp_path, FAULTY)
    (tmp_path / "scorer.py").write_text("def score(item, answer): return 1")
    with ScorerProcess(spec) as process, pytest.raises(ValueError, match="changed since the task was loaded"):
        process.score([(item("a"), "a")])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "return 1",
            ("an empty answer", "a huge text", "garbled unicode", "another item's answer", "the question restated"),
        ),
        ("return 0", ("the reference answer was judged 'wrong' for 4 of 4 items",)),
        ("return item['answer'] in answer + item['question']", ("an empty answer", "the question restated")),
        (
            "return item['answer'] in answer.replace(',', '').split()",
            ("several answers in a line", "several answers in lines"),
        ),
        ("return item['answer'] == answer or '{' in answer", ("a malformed answer",)),
        ("return item['answer'] == answer or 'full marks' in answer", ("a plea to the scorer",)),
    ],
)
def test_known_answers_stop_scorers_that_cannot_tell(tmp_path: Path, code: str, said: tuple[str, ...]) -> None:
    items = [item(str(index), f"What is {index}?") for index in range(4)]
    spec = python_scorer(tmp_path, f"def score(item, answer): {code}")
    score = make_scorer(spec)
    failures = known_answer_checks(items, lambda pairs: [score(entry, answer) for entry, answer in pairs])
    for text in said:
        assert any(failure.startswith(text) for failure in failures), (text, failures)


def test_known_answers_catch_a_lenient_scorer_of_reasoning_gym() -> None:
    task = load_task("reasoning_gym:game_of_life_halting")
    score = make_scorer(task.scorer)
    failures = known_answer_checks(task.stream(0, 4, 0), lambda pairs: [score(entry, text) for entry, text in pairs])
    assert any(failure.startswith("garbled unicode was judged 'right'") for failure in failures)


@pytest.mark.parametrize(
    ("spec", "answers", "question"),
    [
        ({"name": "exact"}, "123", "What is {} times 1?"),
        ({"name": "numeric"}, "123", "What is {} times 7?"),
        ({"name": "choice"}, "AB", "Which, {}?\nA) cat\nB) dog"),
        ({"name": "regex", "pattern": "([0-9]+)"}, "123", "What is {} times 7?"),
        ({"name": "math_verify"}, "123", "What is {} times 7?"),
    ],
)
def test_known_answers_accept_good_scorers(spec: dict[str, Any], answers: str, question: str) -> None:
    items = [item(answer, question.format(answer)) for answer in answers]
    score = make_scorer(spec)
    assert known_answer_checks(items, lambda pairs: [score(entry, text) for entry, text in pairs]) == []
