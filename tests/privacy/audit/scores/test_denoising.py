"""The diffusion scores on a Gaussian whose denoiser is known exactly, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from voxfed.models.base import Batch, Exposed
from voxfed.models.schedule import Prediction, levels
from voxfed.privacy.audit.membership import TIMES
from voxfed.privacy.audit.scores.denoising import (
    DRAWS,
    SCORES,
    moved,
    normalised_proximal,
    proximal,
    secmi,
    simple,
)
from voxfed.privacy.audit.scores.score import Context

MEAN, DEVIATION = 0.3, 0.25
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v", "flow")
SHAPE = (1, 6, 6, 6)


def level(prediction: Prediction, time: float) -> tuple[float, float]:
    signal, noise = levels(prediction, torch.tensor(time, dtype=torch.float64))
    return float(signal), float(noise)


def power(prediction: Prediction, time: float) -> float:
    """The variance of a state of N(MEAN, DEVIATION^2) at a time."""
    signal, noise = level(prediction, time)
    return signal**2 * DEVIATION**2 + noise**2


def known(prediction: Prediction, clean: Tensor) -> Exposed:
    """The best denoiser of voxels of N(MEAN, DEVIATION^2): the mean of the noise given a state."""

    def predict(state: Tensor, time: float) -> Tensor:
        signal, noise = level(prediction, time)
        return noise * (state - signal * MEAN) / power(prediction, time)

    return Exposed(clean, lambda time: level(prediction, time), predict)


class Known:
    """A family that denoises as `known` does."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction

    def exposed(self, batch: Batch) -> Exposed:
        return known(self.prediction, batch.volumes.double())

    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        seen = self.exposed(batch)
        signal, noise = seen.level(time)
        eps = torch.randn(seen.clean.shape, generator=generator, dtype=torch.float64)
        found = seen.predict(signal * seen.clean + noise * eps, time)
        return (found - eps).square().flatten(1).mean(1)


def volumes(n: int = 3) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    drawn = torch.randn((n, *SHAPE), generator=draws, dtype=torch.float64)
    return MEAN + 2 * DEVIATION * drawn


def mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_secmi_in_closed_form(prediction: Prediction) -> None:
    """On a Gaussian each step multiplies what differs from the mean by one number."""

    def gain(time: float, following: float) -> float:
        (signal, noise), (next_signal, next_noise) = (
            level(prediction, t) for t in (time, following)
        )
        both = next_signal * signal * DEVIATION**2 + next_noise * noise
        return both / power(prediction, time)

    clean = volumes()
    steps = [i / 100 for i in range(11)]
    reached = math.prod(gain(a, b) for a, b in pairwise(steps))
    lost = 1 - gain(0.1, 0.11) * gain(0.11, 0.1)
    expected = -mean((clean - MEAN).square()) * (reached * lost) ** 2
    assert torch.allclose(secmi(known(prediction, clean)), expected, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_many_small_steps_follow_the_probability_flow(prediction: Prediction) -> None:
    """Without noise a state keeps its place in the Gaussian: its z-value is that of the volume."""
    clean, steps = volumes(), [0.5 * i / 2000 for i in range(2001)]
    seen = known(prediction, clean)
    state = clean
    for time, following in pairwise(steps):
        state = moved(seen, state, time, following)
    signal, _ = level(prediction, 0.5)
    expected = signal * MEAN + power(prediction, 0.5) ** 0.5 * (clean - MEAN) / DEVIATION
    assert torch.allclose(state, expected, rtol=2e-3, atol=1e-3)  # of order one in the step


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_pia_in_closed_form(prediction: Prediction) -> None:
    """Times 1 and 200 of 1000, fourth powers."""
    clean = volumes()
    (first_signal, first_noise), (signal, noise) = (level(prediction, t) for t in (0.001, 0.2))
    said = first_noise * (clean - first_signal * MEAN) / power(prediction, 0.001)
    again = noise * (signal * (clean - MEAN) + noise * said) / power(prediction, 0.2)
    expected = -(mean((said - again) ** 4) ** 0.25)
    assert torch.allclose(proximal(known(prediction, clean)), expected, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_pian_scales_to_the_mean_size_of_normal_noise(prediction: Prediction) -> None:
    """The root of 2 / pi, 0.798, where some implementations have its inverse, 1.253."""
    clean = volumes()
    said = clean - level(prediction, 0.001)[0] * MEAN  # but for a factor, which scaling removes
    said = said / mean(said.abs())[:, None, None, None, None] * 0.7978845608
    signal, noise = level(prediction, 0.2)
    again = noise * (signal * (clean - MEAN) + noise * said) / power(prediction, 0.2)
    expected = -(mean((said - again) ** 4) ** 0.25)
    assert torch.allclose(normalised_proximal(known(prediction, clean)), expected, rtol=1e-6)


def test_pian_of_a_model_that_sees_no_noise_at_all() -> None:
    """Nothing can be scaled, and nothing is divided by zero."""
    blind = Exposed(volumes(), lambda time: (1 - time, time), lambda state, time: 0 * state)
    assert normalised_proximal(blind).tolist() == [0, 0, 0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sima_in_closed_form(prediction: Prediction) -> None:
    """The clean volume is shown at every time, without noise and without its signal's factor."""
    clean = volumes()
    expected = torch.zeros(3, dtype=torch.float64)
    for time in TIMES:
        signal, noise = level(prediction, time)
        expected -= mean((noise * (clean - signal * MEAN) / power(prediction, time)) ** 4) / 4
    assert torch.allclose(simple(known(prediction, clean)), expected, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_denoising_loss_has_its_expectation(prediction: Prediction) -> None:
    """In closed form over all draws; a large volume's few draws come within 2 % of it."""
    draws = torch.Generator().manual_seed(1)
    shape = (1, 1, 24, 24, 24)
    clean = MEAN + DEVIATION * torch.randn(shape, generator=draws, dtype=torch.float64)
    expected = 0.0
    for time in TIMES:
        (signal, noise), total = level(prediction, time), power(prediction, time)
        shifted = (noise * signal / total) ** 2 * float(mean((clean - MEAN).square()))
        expected -= (shifted + (signal * DEVIATION) ** 4 / total**2) / len(TIMES)
    measure = SCORES[0].prepare(Known(prediction), Context(seed=5))  # type: ignore[arg-type]
    assert SCORES[0].name == "denoising loss"
    assert float(measure(Batch(clean))) == pytest.approx(expected, rel=0.02)


def test_the_denoising_loss_makes_several_draws_at_each_time() -> None:
    asked: list[tuple[int, float]] = []

    class Counting(Known):
        def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
            asked.append((len(batch.volumes), time))
            return super().denoising_error(batch, time, generator)

    SCORES[0].prepare(Counting("v"), Context(seed=5))(Batch(volumes(1)))  # type: ignore[arg-type]
    assert asked == [(DRAWS, time) for time in TIMES]


@pytest.mark.parametrize("score", SCORES[1:], ids=lambda score: score.name)
def test_a_typical_volume_scores_higher_than_a_strange_one(score: object) -> None:
    """Higher is more like a member: here, like what the model knows."""
    measure = score.prepare(Known("v"), Context(seed=5))  # type: ignore[attr-defined]
    typical, strange = volumes(1), MEAN + 4 * (volumes(1) - MEAN)
    if score.name != "PIAN":  # type: ignore[attr-defined]
        assert measure(Batch(typical)) > measure(Batch(strange))
    assert measure(Batch(typical)).shape == (1,)
