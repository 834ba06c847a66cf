"""The noise residual: its two p-values against a second library and a double loop."""

from collections.abc import Sequence

import numpy as np
import pytest
import streams
import torch
from scipy import stats
from torch import Tensor
from voxfed.privacy import engine
from voxfed.privacy.audit import residual
from voxfed.privacy.audit.residual import repeat_p_value, size_p_value
from voxfed.privacy.noise import add_noise


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_not_finite_alarms(monkeypatch: pytest.MonkeyPatch, value: float | None) -> None:
    """One value is enough; no comparison with a NaN holds, so that silence would look sound."""
    streams.fix(monkeypatch)

    def broken(total: Sequence[Tensor], deviation: float) -> list[Tensor]:
        released = add_noise(total, deviation)
        if value is not None:
            released[0].view(-1)[3] = value
        return released

    monkeypatch.setattr(engine, "add_noise", broken)
    with np.errstate(invalid="ignore"):
        assert residual.read().alarm is (value is not None)


def test_noise_that_is_all_nan_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine, "add_noise", lambda total, _: [torch.full(x.shape, torch.nan) for x in total]
    )
    with np.errstate(invalid="ignore"):
        assert residual.read().alarm
