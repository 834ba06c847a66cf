"""Samplers reach the moments of a Gaussian whose denoiser is known exactly."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from voxfed.models.schedule import Prediction, Sampler, levels, split, target, times, walk

MEAN, DEVIATION = 0.3, 0.25
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v", "flow")
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "dpm-solver++")
PAIRS = [(p, s) for p in PREDICTIONS for s in SAMPLERS] + [("flow", "euler")]


def oracle(prediction: Prediction, state: Tensor, time: float) -> Tensor:
    """What the best network says of N(MEAN, DEVIATION^2): the posterior mean, in closed form."""
    t = torch.tensor(time, dtype=torch.float64)
    alpha, sigma = levels(prediction, t)
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    volume = MEAN + gain * (state - alpha * MEAN)
    return target(prediction, volume, (state - alpha * volume) / sigma, t)


def moments(prediction: Prediction, sampler: Sampler, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of what the sampler makes of a grid of normal quantiles.

    Equally likely quantiles instead of draws leave next to no chance in the moments of the samplers
    that do not draw themselves.
    """
    n = 20_001
    noise = torch.special.ndtri((torch.arange(n).double() + 0.5) / n)
    found = walk(
        noise,
        lambda state, time: oracle(prediction, state, time),
        prediction=prediction,
        sampler=sampler,
        steps=steps,
        generator=torch.Generator().manual_seed(0),
    )
    return found.mean().item(), found.std().item()


@pytest.mark.parametrize(("prediction", "sampler"), PAIRS)
def test_many_steps_reach_the_moments(prediction: Prediction, sampler: Sampler) -> None:
    """1000 steps: 2 % of both, in which the draws of DDPM have a standard error of 0.5 %."""
    mean, deviation = moments(prediction, sampler, 1000)
    assert mean == pytest.approx(MEAN, rel=0.02)
    assert deviation == pytest.approx(DEVIATION, rel=0.02)


@pytest.mark.parametrize(("prediction", "sampler"), [p for p in PAIRS if p[1] != "ddpm"])
def test_fifty_steps_reach_the_moments(prediction: Prediction, sampler: Sampler) -> None:
    """MONAI's DDPM gives 0.875 for 0.25 here, its DDIM 0.232."""
    mean, deviation = moments(prediction, sampler, 50)
    assert mean == pytest.approx(MEAN, rel=0.05)
    assert deviation == pytest.approx(DEVIATION, rel=0.05)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm-solver++", 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler: Sampler, order: int) -> None:
    """Twice the steps: half of a first-order error, a quarter of a second-order one."""
    few, many = (abs(moments("flow", sampler, n)[1] - DEVIATION) for n in (200, 400))
    assert math.log2(few / many) == pytest.approx(order, abs=0.45)


def test_euler_is_ddim_on_the_straight_line() -> None:
    assert moments("flow", "euler", 20) == pytest.approx(moments("flow", "ddim", 20), abs=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_the_network_is_to_say_tells_volume_and_noise(prediction: Prediction) -> None:
    volume, eps = torch.randn(2, 1000, dtype=torch.float64)
    time = torch.linspace(0.001, 1 if prediction == "v" else 0.999, 1000, dtype=torch.float64)
    alpha, sigma = levels(prediction, time)
    noised = alpha * volume + sigma * eps
    found = split(prediction, noised, target(prediction, volume, eps, time), time)
    assert torch.allclose(found[0], volume, atol=1e-9)
    assert torch.allclose(found[1], eps, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_levels_go_from_volume_to_noise(prediction: Prediction) -> None:
    alpha, sigma = levels(prediction, torch.linspace(0, 1, 101).double())
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[-1] < 0.01
    assert sigma[-1] > 0.99
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


def test_linear_rates_are_those_of_ddpm() -> None:
    """Oracle: the product of 1 - beta over Ho et al.'s thousand betas, 1e-4 to 0.02."""
    product = (1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0)
    alpha, _ = levels("epsilon", torch.arange(1, 1001).double() / 1000)
    assert torch.allclose(alpha[::100], product.sqrt()[::100], atol=0.002)


def test_times_are_steps_plus_one_and_fall_to_the_volume() -> None:
    chosen = times(50)
    assert len(chosen) == 51
    assert (chosen[0], chosen[-1]) == (1, 0)
    assert all(a > b for a, b in pairwise(chosen))


@pytest.mark.parametrize(("prediction", "sampler"), PAIRS)
def test_bounded_volumes_stay_within(prediction: Prediction, sampler: Sampler) -> None:
    """A network that is far off cannot push samples past the bound."""
    found = walk(
        torch.randn(64, generator=torch.Generator().manual_seed(1)),
        lambda state, time: 5 * state,
        prediction=prediction,
        sampler=sampler,
        steps=10,
        generator=torch.Generator(),
        bound=lambda volume: volume.clamp(-1, 1),
    )
    assert found.dtype == torch.float32
    assert found.abs().max() <= 1
