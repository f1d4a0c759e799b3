import pytest

from agent.console import Console


def test_without_a_terminal_an_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say("a long word " * 40)
    assert capsys.readouterr().err.count("\n") == 1
