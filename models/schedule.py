"""Noise schedules and samplers, stepping between consecutive chosen times.

A volume x becomes alpha x + sigma eps at time t, from 0 (the volume) to 1 (noise). MONAI's own
schedulers step by one where few steps are chosen, and lose the spread of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow"]
Sampler = Literal["ddpm", "ddim", "dpm-solver++", "euler"]

FIRST_RATE, LAST_RATE = 0.1, 20.0  # of the variance-preserving process, per unit of time
LAST_ANGLE = 0.996 * math.pi / 2  # short of a quarter turn, where v no longer tells the volume


def levels(prediction: Prediction, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at times in [0, 1], both shaped as `time`.

    "epsilon" goes with the linear rates of Ho et al. 2020 in their limit of many steps (Song et al.
    2021), "v" with the cosine of Nichol and Dhariwal 2021, "flow" with the straight line of Liu et
    al. 2023.
    """
    if prediction == "epsilon":
        log_alpha = -(LAST_RATE - FIRST_RATE) * time.square() / 4 - FIRST_RATE * time / 2
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    if prediction == "v":
        return (LAST_ANGLE * time).cos(), (LAST_ANGLE * time).sin()
    return 1 - time, time


def target(prediction: Prediction, volume: Tensor, eps: Tensor, time: Tensor) -> Tensor:
    """Return what the network is to say of the noised volume.

    It is the noise, or v = alpha eps - sigma x (Salimans and Ho 2022), or the velocity eps - x of
    rectified flow. `time` broadcasts against the volume.
    """
    if prediction == "epsilon":
        return eps
    if prediction == "flow":
        return eps - volume
    alpha, sigma = levels(prediction, time)
    return alpha * eps - sigma * volume


def split(
    prediction: Prediction, noised: Tensor, said: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the volume and the noise that the network's word on a noised volume implies."""
    alpha, sigma = levels(prediction, time)
    if prediction == "epsilon":
        return (noised - sigma * said) / alpha, said
    if prediction == "flow":
        return noised - sigma * said, noised + alpha * said
    # alpha and sigma lie on the unit circle
    return alpha * noised - sigma * said, sigma * noised + alpha * said


def times(steps: int) -> list[float]:
    """Return `steps` + 1 times from 1 to 0, closer together near the volume.

    Squared spacing: on a Gaussian of standard deviation 0.25, 50 even steps of DDIM lose 11 % of
    the spread, 50 squared ones 4 %.
    """
    return [(i / steps) ** 2 for i in range(steps, -1, -1)]


@dataclass(frozen=True)
class _Turn:
    """One step between two chosen times; all are plain numbers.

    Attributes:
        alpha: of the time that is left.
        sigma: of the time that is left.
        next_alpha: of the time that is reached.
        next_sigma: of the time that is reached, 0 at the end.
        time: that is left.
        next_time: that is reached.
    """

    alpha: float
    sigma: float
    next_alpha: float
    next_sigma: float
    time: float
    next_time: float

    @property
    def width(self) -> float:
        """The change of log(alpha / sigma), endless from pure noise and to the volume."""
        if self.alpha == 0 or self.next_sigma == 0:
            return math.inf
        return math.log(self.next_alpha * self.sigma / (self.next_sigma * self.alpha))


def walk(
    noise: Tensor,
    say: Callable[[Tensor, float], Tensor],
    *,
    prediction: Prediction,
    sampler: Sampler,
    steps: int,
    generator: torch.Generator,
    bound: Callable[[Tensor], Tensor] = lambda volume: volume,
) -> Tensor:
    """Go from noise to volumes, both (B, ...), with one call of the network a step.

    Args:
        noise: standard normal.
        say: what the network says of noised volumes at a time in (0, 1].
        prediction: what that means.
        sampler: "ddpm" (Ho et al. 2020), "ddim" (Song et al. 2021, without noise), "dpm-solver++"
            (Lu et al. 2022, second order, multistep) or "euler", for flow only.
        steps: calls of the network.
        generator: what "ddpm" draws from.
        bound: brings a predicted volume back to where volumes lie.
    """
    state, before, last_width = noise, noise, math.inf
    for turn in _turns(prediction, steps):
        time = noise.new_tensor(turn.time, dtype=torch.float64)
        volume, eps = split(prediction, state, say(state, turn.time), time)
        # the noise that goes with the bounded volume, so that the two make up the state
        within = bound(volume)
        eps = (eps + (volume - within) * (turn.alpha / turn.sigma)).to(noise)
        volume = within.to(noise)
        if turn.next_sigma == 0:
            return volume
        if sampler == "ddpm":
            state = _ancestral(turn, state, volume, generator)
        elif sampler == "ddim":
            state = turn.next_alpha * volume + turn.next_sigma * eps
        elif sampler == "euler":
            state = state + (turn.next_time - turn.time) * (eps - volume)
        else:
            state = _second_order(turn, state, volume, before, last_width)
            last_width = turn.width
        before = volume
    raise AssertionError("the last turn ends at the volume")  # pragma: no cover


def _turns(prediction: Prediction, steps: int) -> list[_Turn]:
    chosen = times(steps)
    alphas, sigmas = (
        x.tolist() for x in levels(prediction, torch.tensor(chosen, dtype=torch.float64))
    )
    stops = list(zip(alphas, sigmas, chosen, strict=True))
    return [_Turn(a, s, b, r, t, u) for (a, s, t), (b, r, u) in pairwise(stops)]


def _ancestral(turn: _Turn, state: Tensor, volume: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the posterior of the next state, given this one and the volume."""
    ratio = turn.alpha / turn.next_alpha
    added = turn.sigma**2 - (ratio * turn.next_sigma) ** 2
    mean = (ratio * turn.next_sigma**2 * state + turn.next_alpha * added * volume) / turn.sigma**2
    draw = torch.randn(state.shape, generator=generator, device=generator.device).to(state)
    return mean + turn.next_sigma * math.sqrt(added) / turn.sigma * draw


def _second_order(
    turn: _Turn, state: Tensor, volume: Tensor, before: Tensor, last_width: float
) -> Tensor:
    """Take the exponential step towards the volume, extrapolated from the one before."""
    decay = turn.alpha * turn.next_sigma / (turn.next_alpha * turn.sigma)
    lead = 0.0 if math.isinf(last_width) else turn.width / (2 * last_width)
    ahead = volume + lead * (volume - before)
    return turn.next_sigma / turn.sigma * state + turn.next_alpha * (1 - decay) * ahead
