"""The statistics that decide, against numbers worked out by hand and against chance itself; the budget."""

from functools import cache

import numpy as np
import pytest

from agent.budget import FINAL_MARGIN, START_UP_S, Budget
from agent.statistics import (
    ALPHA,
    LOOKS,
    TYPICAL_CHANGE,
    PairedTest,
    alpha_for,
    alpha_left,
    chance_to_pass,
    decide,
    look_sizes,
    needed_to_pass,
    paired_test,
    provable_gain,
    sign_test,
    wilson_interval,
)
from tools.jobs.job import NO_USAGE, Usage


@cache
def p_value(num_fixed: int, num_broken: int) -> float:
    champion = [False] * num_fixed + [True] * num_broken + [True]
    candidate = [True] * num_fixed + [False] * num_broken + [True]
    return paired_test(champion, candidate).p_value


@pytest.mark.parametrize(
    ("num_right", "num_items", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # the example of Newcombe (1998), method 3
        (0, 1, 0.0, 0.7935),
    ],
)
def test_wilson_intervals(num_right: int, num_items: int, low: float, high: float) -> None:
    assert wilson_interval(num_right, num_items) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("num_items", [1, 2, 7, 20, 400])
def test_an_interval_holds_its_score_and_is_the_mirror_of_the_errors(num_items: int) -> None:
    for num_right in range(num_items + 1):
        low, high = wilson_interval(num_right, num_items)
        assert 0.0 <= low <= num_right / num_items <= high <= 1.0
        assert wilson_interval(num_items - num_right, num_items) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("num_items", [0, -1])
def test_a_score_of_no_items_is_refused(num_items: int) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        wilson_interval(0, num_items)


@pytest.mark.parametrize(
    ("num_fixed", "num_broken", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1 / 2),
        (0, 1, 1.0),
        (5, 0, 1 / 32),
        (8, 2, 56 / 1024),
        (2, 8, 1013 / 1024),
        (9, 3, 299 / 4096),
        (20, 0, 2.0**-20),
    ],
)
def test_the_paired_test_is_the_binomial_tail(num_fixed: int, num_broken: int, expected: float) -> None:
    assert p_value(num_fixed, num_broken) == pytest.approx(expected, rel=1e-12)


def test_the_paired_test_counts_what_changed() -> None:
    champion = [True, True, False, False, True, False]
    candidate = [True, False, True, True, True, False]
    assert paired_test(champion, candidate)[:3] == (6, 2, 1)


def test_the_paired_test_of_thousands_of_items_is_exact() -> None:
    assert 0 < paired_test([False] * 3000, [True] * 1000 + [False] * 2000).p_value < 1e-300
    assert p_value(1500, 1500) == pytest.approx(0.5073, abs=1e-4)


@pytest.mark.parametrize(("champion", "candidate"), [([], []), ([True], []), ([True, False], [True])])
def test_results_on_other_items_are_refused(champion: list[bool], candidate: list[bool]) -> None:
    with pytest.raises(ValueError, match="paired results need the same items"):
        paired_test(champion, candidate)


def test_the_levels_of_all_candidates_add_up_to_alpha() -> None:
    levels = [alpha_for([False] * number) for number in range(300)]
    assert levels[0] == pytest.approx(0.01)
    assert levels == sorted(levels, reverse=True) and levels[-1] > 0
    assert 0.999 * ALPHA < sum(levels) <= ALPHA


def test_a_run_of_candidates_that_are_no_better_promotes_hardly_ever() -> None:
    numbers = np.random.default_rng(0)
    num_runs, num_candidates, num_items = 2_000, 10, 400
    skill = numbers.beta(0.5, 0.5, (num_runs, 1, num_items))
    champion = numbers.random((num_runs, 1, num_items)) < skill
    wrong = 0
    fixed = np.empty((num_runs, num_candidates), int)
    broken = np.empty_like(fixed)
    for number in range(num_candidates):
        candidate = numbers.random((num_runs, 1, num_items)) < skill
        fixed[:, number] = (candidate & ~champion).sum((1, 2))
        broken[:, number] = (champion & ~candidate).sum((1, 2))
    for run_fixed, run_broken in zip(fixed.tolist(), broken.tolist(), strict=True):
        values = [p_value(a, b) for a, b in zip(run_fixed, run_broken, strict=True)]
        wrong += any(value <= alpha_for([False] * number) for number, value in enumerate(values))
    # All candidates share one measurement of the champion, and the test is discrete: below alpha, but not at zero.
    assert 0 < wrong / num_runs <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / num_runs) ** 0.5


def test_a_clear_gain_is_promoted() -> None:
    assert p_value(40, 10) < alpha_for([False] * 9)
    assert p_value(14, 10) > alpha_for([])


def test_an_accepted_candidate_passes_its_level_on() -> None:
    assert alpha_for([True]) == pytest.approx(0.01 + 0.008)
    assert alpha_for([True, True]) == pytest.approx(0.01 + 0.008 + 0.0064)
    assert alpha_for([True, False]) == pytest.approx(0.0064)
    assert alpha_for([False, True]) == pytest.approx(0.008 + 0.0064)
    assert alpha_for([True] * 500) < ALPHA


def test_wrong_promotions_after_a_right_one_stay_rare_too() -> None:
    """The first candidates are truly better, the later ones are not: the passed-on level must not be overspent."""
    chance = np.random.default_rng(1)
    num_runs, num_wrong = 20_000, 0
    for values in chance.random((num_runs, 10)).tolist():
        verdicts = [True, True]
        for value in values:
            verdicts.append(value <= alpha_for(verdicts))
        num_wrong += any(verdicts[2:])
    assert 0 < num_wrong / num_runs <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / num_runs) ** 0.5


def test_tokens_limit_a_run_whatever_the_clock_says() -> None:
    early, late = Budget(None, 1000), Budget(None, 1000, earlier_s=1e9)
    for budget in (early, late):
        budget.add(Usage(1e6, 1e6, 400))
        assert budget.share_left() == pytest.approx(0.6)
        assert budget.affords(600, 0)
        assert not budget.affords(601, 0)
        assert budget.affords(600 - FINAL_MARGIN * 100, 100)
        assert not budget.affords(600 - FINAL_MARGIN * 100 + 1, 100)


def test_a_spent_budget_leaves_nothing() -> None:
    budget = Budget(None, 100)
    budget.add(Usage(0.0, 0.0, 150))
    assert budget.share_left() == 0.0
    assert not budget.affords(0, 0)
    assert Budget(1, None, earlier_s=61).share_left() == 0.0


def test_time_limits_a_run_at_the_measured_speed() -> None:
    budget = Budget(10, None, earlier_s=300)
    assert budget.share_left() == pytest.approx(0.5, abs=0.01)
    budget.add(Usage(50.0, 10.0, 1000))
    assert budget.tokens_per_s() == 300
    budget.add(Usage(10.0, 10.0, 1000), "generation")
    assert budget.tokens_per_s() == budget.tokens_per_s("evaluation") == 100
    room = 100 * (300 - START_UP_S)
    assert budget.affords(0.9 * room, 0)
    assert not budget.affords(1.001 * room, 0)
    assert not budget.affords(0.5 * room, 0.5 * room)
    assert budget.used == Usage(60.0, 20.0, 2000)


def test_what_is_kept_back_counts_at_the_speed_of_evaluation() -> None:
    budget = Budget(10, None, earlier_s=300)
    budget.add(Usage(10.0, 10.0, 500), "training")
    budget.add(Usage(10.0, 10.0, 1500), "evaluation")
    assert (budget.tokens_per_s("training"), budget.tokens_per_s("evaluation"), budget.tokens_per_s()) == (50, 150, 100)
    room_s = 300 - START_UP_S - FINAL_MARGIN * 1500 / 150
    for kind, speed in (("training", 50), ("evaluation", 150), (None, 100)):
        assert budget.affords(0.99 * speed * room_s, 1500, kind)
        assert not budget.affords(1.01 * speed * room_s, 1500, kind)


def test_work_that_was_not_timed_tells_no_speed() -> None:
    budget = Budget(10, None)
    budget.add(Usage(10.0, 10.0, 1000), "generation")
    budget.add(Usage(0.0, 0.0, 0), "training")
    assert budget.tokens_per_s("training") == 100


def test_the_nearer_limit_counts() -> None:
    budget = Budget(10, 1000, earlier_s=60)
    assert budget.share_left() == pytest.approx(0.9, abs=0.01)
    budget.add(Usage(1.0, 1.0, 500))
    assert budget.share_left() == pytest.approx(0.5)
    assert not budget.affords(501, 0)


def test_without_a_limit_everything_is_afforded() -> None:
    budget = Budget(None, None)
    assert budget.used == NO_USAGE
    assert budget.affords(1e18, 1e18) and budget.share_left() == 1.0


def paired(num_items: int, fixed: int, broken: int) -> PairedTest:
    return PairedTest(num_items, fixed, broken, sign_test(fixed, broken))


def test_graded_scores_count_by_direction_and_bits_are_mcnemar() -> None:
    champion, candidate = [0.0, 0.5, 1.0, 0.25], [0.25, 1.0, 0.75, 0.25]
    assert paired_test(champion, candidate)[1:3] == (2, 1)
    bits = [False, True, True, False], [True, False, True, True]
    assert paired_test(*bits) == paired_test([float(bit) for bit in bits[0]], [float(bit) for bit in bits[1]])


def test_looks_end_at_all_items_and_share_out_the_level() -> None:
    assert look_sizes(600) == [150, 300, 450, 600]
    assert look_sizes(21)[-1] == 21
    assert sum(share for _, share in LOOKS) == pytest.approx(1)


def test_a_clear_gain_is_accepted_early_and_a_hopeless_candidate_rejected_early() -> None:
    assert decide(paired(150, 60, 5), 0, 600, 0.01) is True
    assert decide(paired(150, 10, 30), 0, 600, 0.01) is False
    assert decide(paired(50, 2, 12), 0, 200, 0.01) is None, "too few items to give up"
    assert decide(paired(150, 20, 10), 0, 600, 0.01) is None
    assert decide(paired(600, 40, 30), 3, 600, 0.01) is False


def test_the_last_look_has_the_largest_share_of_the_level() -> None:
    test = paired(600, 70, 40)
    level = test.p_value / LOOKS[-1][1]
    assert decide(test, 3, 600, 1.001 * level) is True
    assert decide(test, 3, 600, 0.999 * level) is False
    assert decide(paired(450, 70, 40), 2, 600, 1.001 * level) is None


def test_what_is_needed_to_pass_is_exact() -> None:
    for changed in (1, 5, 20, 80, 1500):
        for level in (0.05, 0.0075, 1e-6):
            needed = needed_to_pass(changed, level)
            if needed <= changed:
                assert sign_test(needed, changed - needed) <= level
            assert needed == 0 or sign_test(needed - 1, changed - needed + 1) > level


def test_the_predictive_chance_is_that_of_simulated_futures() -> None:
    fixed, broken, seen, left, level = 14, 8, 100, 300, 0.0075
    numbers = np.random.default_rng(0)
    coming = round((fixed + broken + 1) / seen * left)
    shares = numbers.beta(fixed + 1, broken + 1, 20_000)
    passed = fixed + numbers.binomial(coming, shares) >= needed_to_pass(fixed + broken + coming, level)
    assert chance_to_pass(fixed, broken, seen, left, level) == pytest.approx(passed.mean(), abs=0.015)


def test_the_predictive_chance_is_sure_far_to_either_side() -> None:
    assert chance_to_pass(5000, 10, 6000, 6000, 0.0075) == 1.0
    assert chance_to_pass(10, 5000, 6000, 6000, 0.0075) == 0.0


def test_more_items_prove_smaller_gains() -> None:
    gains = [provable_gain(number) for number in (20, 100, 400, 1000, 5000)]
    assert gains == sorted(gains, key=lambda gain: -(gain or 1))
    assert gains[2] == pytest.approx(0.08, abs=0.02)
    assert provable_gain(5) is None


@pytest.mark.parametrize("num_items", [20, 60, 400])
def test_the_gain_that_is_promised_is_proven_as_often_as_promised(num_items: int) -> None:
    gain = provable_gain(num_items)
    assert gain is not None
    numbers, accepted = np.random.default_rng(7), 0
    changed = max(TYPICAL_CHANGE, gain)
    for _ in range(1000):
        draw = numbers.random(num_items)
        rose, fell = draw < (changed + gain) / 2, draw > 1 - (changed - gain) / 2
        for look, size in enumerate(look_sizes(num_items)):
            verdict = decide(paired(size, int(rose[:size].sum()), int(fell[:size].sum())), look, num_items, 0.01)
            if verdict is not None:
                accepted += verdict
                break
    assert accepted / 1000 == pytest.approx(0.8, abs=0.06) or accepted / 1000 > 0.8


def test_alpha_left_is_what_later_candidates_can_spend_together() -> None:
    for earlier in ([], [True], [False, True, True], [True, False]):
        later = [alpha_for([*earlier, *[False] * number]) for number in range(400)]
        assert alpha_left(earlier) == pytest.approx(sum(later))
