"""The one-run bound: published values, brute force, and that it does not claim too much."""

import itertools
import math

import numpy as np
import pytest
from voxfed.privacy.audit.one_run import lower_bound, p_value, right_guesses
from voxfed.study.errors import UsageError


def test_published_values() -> None:
    """All of 100 guesses right prove 3.49 at delta 0 (Steinke et al. 2023, section 1)."""
    assert lower_bound(right=100, guesses=100, canaries=100, delta=0.0) == pytest.approx(
        3.49, abs=0.005
    )


def test_all_right_has_a_closed_form() -> None:
    """At delta 0 the bound solves (e^epsilon / (1 + e^epsilon))^r = 0.05."""
    for guesses in (5, 40, 300):
        chance = 0.05 ** (1 / guesses)
        found = lower_bound(right=guesses, guesses=guesses, canaries=1000, delta=0.0)
        assert found == pytest.approx(math.log(chance / (1 - chance)), rel=1e-9)


@pytest.mark.parametrize("right", [0, 1, 4, 6, 8])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.02])
def test_the_p_value_agrees_with_all_outcomes(right: int, delta: float) -> None:
    """Every sequence of 8 guesses, weighed one by one, gives tail and slope."""
    epsilon, guesses, canaries = 0.7, 8, 11
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    weights = [0.0] * (guesses + 1)
    for outcome in itertools.product((0, 1), repeat=guesses):
        weights[sum(outcome)] += math.prod(chance if x else 1 - chance for x in outcome)
    tail = sum(weights[right:])
    slopes = [sum(weights[right - i : right]) / i for i in range(1, right + 1)]
    expected = min(1.0, tail + 2 * canaries * delta * max(slopes, default=0.0))
    found = p_value(epsilon, right=right, guesses=guesses, canaries=canaries, delta=delta)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_bound_grows_with_what_is_right_and_falls_with_what_is_allowed() -> None:
    """More right guesses prove more; delta and unguessed canaries prove less."""
    bounds = [
        lower_bound(right=right, guesses=300, canaries=1000, delta=1e-5)
        for right in range(150, 301)
    ]
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[-1] > 4) == (0.0, True)
    few = [lower_bound(right=90, guesses=100, canaries=m, delta=1e-4) for m in (100, 400, 1000)]
    assert few == sorted(few, reverse=True)
    assert few[0] > few[-1]
    free = lower_bound(right=90, guesses=100, canaries=1000, delta=0.0)
    assert free > few[-1]


def test_randomised_response_is_not_accused() -> None:
    """The tightest mechanism there is: each coin told truly with e^epsilon to 1."""
    epsilon, n = 1.0, 400
    draw = np.random.default_rng(3)
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    bounds = [
        lower_bound(right=int(draw.binomial(n, chance)), guesses=n, canaries=n, delta=0.0)
        for _ in range(400)
    ]
    # 5 % of 400 are 20; 35 is 3.4 standard deviations above
    assert 3 <= sum(bound > epsilon for bound in bounds) <= 35
    assert np.median(bounds) > 0.7 * epsilon  # it is tight where the theorem is


def test_right_guesses_are_counted_at_both_ends() -> None:
    """Highest scores are guessed in, lowest out, and the middle is passed over."""
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    included = [True, False, False, True, True, True]
    assert right_guesses(scores, included, 2) == 1  # 5.0 in: right; 0.0 out: wrong
    assert right_guesses(scores, included, 4) == 2  # and 4.0 in: wrong; 1.0 out: right
    assert right_guesses(scores, included, 6) == 3  # and 3.0 in: right; 2.0 out: wrong


def test_wrong_numbers_are_refused() -> None:
    """A count that cannot be is an error, not a bound."""
    good = {"right": 5, "guesses": 6, "canaries": 8, "delta": 0.1}
    wrong = [{"right": 7}, {"right": -1}, {"guesses": 9}, {"right": 0, "guesses": 0}]
    for change in [*wrong, {"delta": 1.0}, {"delta": float("nan")}]:
        with pytest.raises(UsageError):
            lower_bound(**{**good, **change})
    with pytest.raises(UsageError):
        p_value(-1.0, **good)
    for guesses in (0, 3, 10):
        with pytest.raises(UsageError):
            right_guesses(np.zeros(8), [True] * 8, guesses)
