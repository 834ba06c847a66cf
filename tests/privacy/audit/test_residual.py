"""The noise residual: its two p-values against a second library and a double loop."""

import numpy as np
import pytest
from scipy import stats
from voxfed.privacy.audit.residual import repeat_p_value, size_p_value


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.05])
def test_the_size_is_a_chi_square(scale: float) -> None:
    """Twice the smaller tail of the sum of squares."""
    noise = scale * np.random.default_rng(0).normal(size=700)
    sum_of_squares = stats.chi2(700)
    total = float((noise**2).sum())
    expected = 2 * min(sum_of_squares.cdf(total), sum_of_squares.sf(total))
    assert size_p_value(noise) == pytest.approx(expected, rel=1e-9)


def test_a_twentieth_too_little_noise_is_found() -> None:
    """With as many values as the self-test draws, 5 % show."""
    noise = np.random.default_rng(1).normal(size=30_000)
    assert size_p_value(noise) > 1e-3
    assert size_p_value(0.95 * noise) < 1e-6


def test_repeats_agree_with_a_double_loop() -> None:
    """The largest autocorrelation, over its standard deviation, times the distances tried."""
    noise = np.random.default_rng(2).normal(size=80)
    noise[40:60] = 1.5 * noise[:20]
    z = [
        abs(sum(noise[i] * noise[i + k] for i in range(80 - k))) / np.sqrt(80 - k)
        for k in range(1, 60)
    ]
    expected = 2 * len(z) * stats.norm.sf(max(z))
    assert repeat_p_value(noise) == pytest.approx(expected, rel=1e-9)


def test_fresh_noise_repeats_nothing() -> None:
    """No false alarm: 60 records, each with a p-value above 1e-4."""
    draw = np.random.default_rng(4)
    assert min(repeat_p_value(draw.normal(size=2000)) for _ in range(60)) > 1e-4


@pytest.mark.parametrize("distance", [1000, 1017, 3000])
@pytest.mark.parametrize("sign", [1, -1])
def test_used_again_at_any_distance(distance: int, sign: int) -> None:
    """One part of eight drawn twice is found, also shifted against its tensor or turned round."""
    noise = np.random.default_rng(5).normal(size=8000)
    noise[distance : distance + 1000] = sign * noise[:1000]
    assert repeat_p_value(noise) < 1e-12
