"""Calibration: the sigma and the number of steps that an epsilon pays for, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from voxfed.privacy.accounting import Event, epsilon, training_event
from voxfed.privacy.calibration import calibrate_sigma, most_steps, noise_to_signal
from voxfed.study.errors import LimitRefusal

METRICS = (Event("gaussian", 12.0, 1, 4),)


@pytest.mark.parametrize(
    ("rate", "steps", "target", "delta", "others"),
    [
        (0.1, 512, 3.77, 1e-6, ()),
        (0.3, 24, 3.0, 1 / 600, METRICS),
        (1.0, 1, 1.0, 1e-6, ()),
        (0.3, 10_000, 8.0, 1e-5, ()),
        (0.01, 10_000, 1.0, 1e-6, ()),
    ],
)
def test_the_next_smaller_sigma_breaks_the_budget(rate, steps, target, delta, others):
    """Enough and no more: the epsilon holds, and no longer with 1e-3 less noise."""
    sigma = calibrate_sigma(rate=rate, steps=steps, epsilon=target, delta=delta, others=others)
    assert epsilon([training_event(sigma, rate, steps), *others], delta) <= target
    units = round(sigma * 10_000)
    less = training_event((units - max(1, units // 1000)) / 10_000, rate, steps)
    assert epsilon([less, *others], delta) > target


def test_the_published_sigma_is_found():
    """Sigma 3 for q 0.1, 512 steps, delta 1e-6 and epsilon 3.770."""
    sigma = calibrate_sigma(rate=0.1, steps=512, epsilon=3.7697, delta=1e-6)
    assert sigma == pytest.approx(3.0, rel=2e-3)


@pytest.mark.parametrize(
    ("sigma", "rate", "target", "delta", "others"),
    [
        (2.0, 0.2, 3.0, 1e-5, METRICS),
        (3.0, 0.1, 3.78, 1e-6, ()),
        (5.0, 1.0, 2.0, 1e-5, ()),
        (4.3, 0.01, 1.0, 1e-6, ()),
    ],
)
def test_one_step_more_breaks_the_budget(sigma, rate, target, delta, others):
    """The last number of steps that fits, from a handful to some ten thousand."""
    steps = most_steps(sigma=sigma, rate=rate, epsilon=target, delta=delta, others=others)
    assert steps > 0
    assert epsilon([training_event(sigma, rate, steps), *others], delta) <= target
    assert epsilon([training_event(sigma, rate, steps + 1), *others], delta) > target


def test_the_steps_of_a_calibrated_sigma_are_those_it_was_calibrated_for():
    """There and back: the rounding of sigma leaves room for few steps more, none fewer."""
    sigma = calibrate_sigma(rate=0.2, steps=300, epsilon=4.0, delta=1e-5)
    assert 300 <= most_steps(sigma=sigma, rate=0.2, epsilon=4.0, delta=1e-5) <= 302


def test_an_epsilon_that_pays_for_no_step_gets_none():
    assert most_steps(sigma=0.5, rate=1, epsilon=0.1, delta=1e-6) == 0


def test_the_number_of_steps_ends_at_a_million():
    """Next to no leakage: the search stops and says its end."""
    assert most_steps(sigma=1000.0, rate=1e-6, epsilon=1.0, delta=1e-6) == 1_000_000


def test_an_epsilon_that_no_noise_reaches_is_refused():
    with pytest.raises(LimitRefusal, match="no useful amount of noise"):
        calibrate_sigma(rate=1, steps=10_000, epsilon=0.01, delta=1e-6)


@pytest.mark.parametrize("find", [calibrate_sigma, most_steps])
def test_other_events_that_alone_cost_more_are_refused_with_both_numbers(find):
    """A Gaussian of sigma 1 costs 5.37 (Balle and Wang 2018) where 1 is allowed."""
    given = {"steps": 5} if find is calibrate_sigma else {"sigma": 2.0}
    others = [Event("gaussian", 1.0, 1, 1)]
    with pytest.raises(LimitRefusal, match="alone cost more") as refusal:
        find(rate=0.1, epsilon=1, delta=1e-6, others=others, **given)
    assert "at most 1" in refusal.value.message
    assert f"epsilon {epsilon(others, 1e-6):.4g}" in refusal.value.message


def test_noise_to_signal_is_the_ratio_of_norms():
    """A drawn noise vector over a sum of aligned clipped gradients."""
    noise = np.random.default_rng(0).normal(0, 1.5 * 0.1, 200_000)
    signal = 12 * 0.1
    expected = np.linalg.norm(noise) / signal
    assert noise_to_signal(1.5, 0.1, 12, 200_000) == pytest.approx(expected, rel=0.01)
