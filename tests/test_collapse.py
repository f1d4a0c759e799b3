"""Signs of collapse in the samples of a run: what they are computed from, and what stops a run."""

from typing import Any

import pytest

from agent.collapse import collapse_sign, plateau_sign
from agent.statistics import paired_gain
from tools.acquire.health import sample_health


def row(item: str, sample: int, completion: str, right: bool, logprob: float = -1.0, num_tokens: int = 2) -> Any:
    fields = {"item_id": item, "sample": sample, "completion": completion, "right": right}
    return fields | {"logprob": logprob, "num_tokens": num_tokens}


def test_health_counts_items_and_compares_their_first_samples() -> None:
    rows = [
        *(row("a", sample, "1", True) for sample in range(4)),
        *(row("b", sample, text, False) for sample, text in enumerate("2223")),
        *(row("c", sample, text, False) for sample, text in enumerate("4567")),
        row("c", 4, "8", True, logprob=-100.0),  # beyond the first samples: counts for never_right alone
    ]
    assert sample_health(rows, 4) == {
        "num_items": 3, "never_right": 1, "always_right": 1, "distinct": round(7 / 3, 4), "entropy": 0.5,
        "agreement": round((4 + 3 + 1) / 12, 4), "majority_right": round(1 / 3, 4),
    }  # fmt: skip


HEALTHY = {
    "num_items": 1000, "never_right": 300, "always_right": 200, "distinct": 0.4, "entropy": 0.3, "agreement": 0.6,
    "majority_right": 0.5,
}  # fmt: skip


def sampling(model: str = "m", shots: bool = False, **changes: Any) -> Any:
    return {"model": model, "shots": shots, "health": HEALTHY | changes}


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({"never_right": 10, "always_right": 989}, "nothing left to learn"),
        ({"entropy": 0.001}, "hardly differ"),
        ({"distinct": 0.05}, "become alike"),
        ({"agreement": 0.95, "majority_right": 0.3}, "agree on wrong answers"),
    ],
)
def test_each_sign_is_named_with_its_numbers(changes: Any, sign: str) -> None:
    said = collapse_sign([sampling(), sampling(**changes)])
    assert said is not None and sign in said
    assert any(character.isdigit() for character in said)


@pytest.mark.parametrize(
    "samplings",
    [
        [],
        [sampling()],
        [sampling(), sampling(never_right=500, always_right=300)],
        [sampling(), sampling(agreement=0.95, majority_right=0.9)],
        [sampling(distinct=3.2), sampling(distinct=0.004, majority_right=0.91)],
        [sampling(), sampling(num_items=40, entropy=0.0)],
        [sampling("base", never_right=999, always_right=0)],
        [sampling("base", shots=True, distinct=3.0), sampling(distinct=0.3)],
    ],
    ids=[
        "none",
        "first",
        "harder",
        "better",
        "few answers learned",
        "too few items",
        "hard for the base",
        "few-shot is another kind",
    ],
)
def test_a_healthy_run_goes_on(samplings: list[Any]) -> None:
    assert collapse_sign(samplings) is None


def look(fixed: int, broken: int, n: int = 600) -> Any:
    return {"num_fixed": fixed, "num_broken": broken, "num_items": n}


def test_the_interval_of_a_gain_is_wide_for_few_items_and_never_empty() -> None:
    gain, low, high = paired_gain(60, 30, 600)
    assert gain == pytest.approx(30 / 602) and 0 < low < gain < high < 0.1
    assert paired_gain(6, 3, 60)[1] < 0
    assert paired_gain(0, 0, 100)[1] < 0 < paired_gain(0, 0, 100)[2]


def test_a_run_goes_on_while_the_newest_gains_may_still_pay() -> None:
    gaining, stuck, breaking = [look(60, 20)] * 3, [look(30, 32)] * 3, [look(20, 45)] * 3
    assert plateau_sign(gaining, 300_000, 150_000) is None
    assert plateau_sign(breaking[:1], 300_000, 10**6) is None, "one candidate says too little"
    said = plateau_sign(breaking, 300_000, 150_000)
    assert said is not None and "-4.2 points" in said and "150,000 tokens left" in said
    assert plateau_sign(stuck, 300_000, 150_000) is None, "the upper bound is a hope"
    assert plateau_sign([*gaining, *breaking], 600_000, 150_000) is not None, "the newest ones count"
    assert plateau_sign(breaking, 300_000, 90_000) is None, "no candidate is affordable: the budget ends the run"
    early = [look(35, 5, 150), look(40, 55), look(40, 55)]
    assert plateau_sign(early, 300_000, 150_000) is None, "each candidate counts alike: +20, -2.5, -2.5"
