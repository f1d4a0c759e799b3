"""The vote of sampled answers."""

import pytest

from tools.engines.base import Completion
from tools.refine.self_consistency import majority


def answer(text: str, logprob: float = -1.0, finish: str = "stop") -> Completion:
    return Completion(text, 1, logprob, finish)


@pytest.mark.parametrize(
    ("samples", "chosen"),
    [
        ([answer("7", -9.0), answer("8", -0.1), answer(" 7 ", -5.0)], answer(" 7 ", -5.0)),
        ([answer("7", -2.0), answer("8", -0.1)], answer("8", -0.1)),
        ([answer("7"), answer("8", finish="length"), answer("8", finish="length")], answer("7")),
        ([answer("8", finish="length")], answer("8", finish="length")),
    ],
    ids=["most frequent", "tie", "cut off", "all cut off"],
)
def test_the_most_frequent_answer_wins(samples: list[Completion], chosen: Completion) -> None:
    assert majority(samples) == chosen


def test_nobody_can_vote() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        majority([])
