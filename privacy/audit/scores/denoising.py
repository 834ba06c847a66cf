"""Denoising: a model that learned a volume by heart knows better which part of a state is noise.

Times are shares of the way from volume to noise: step 200 of the papers' 1000 is 0.2. States are
made with the family's own signal and noise, so that the scores hold for rectified flow too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ....models.base import Denoises, Exposed, Exposes, joined
from ..membership import TIMES
from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Family
    from .score import Measure

DRAWS = 2
"""Of the noise, at each time."""
FIRST = 0.001
"""The time of the papers' first step, number 0 of 1000."""
SECMI_STEP, SECMI_STEPS = 0.01, 10
PROXIMAL_TIME = 0.2  # where PIA and PIAN look
POWER = 4  # of the norms of PIA, PIAN and SimA


def denoising_loss(family: Family, context: Context) -> Measure:
    """Return the measure: minus the mean squared error of the noise over `TIMES` and `DRAWS`."""
    assert isinstance(family, Denoises)  # noqa: S101, tells the type checker

    @torch.no_grad()
    def measure(batch: Batch) -> Tensor:
        draws, rows = context.draws(), joined([batch] * DRAWS)
        errors = [family.denoising_error(rows, time, draws) for time in TIMES]
        return -torch.stack(errors).mean().reshape(1)

    return measure


def secmi(seen: Exposed) -> Tensor:
    """Return minus the squared error of a step there and back, mean over numbers, (B,).

    The volume is followed without noise to the time of 10 steps, one step further, and back.
    """
    state = seen.clean
    times = [number * SECMI_STEP for number in range(SECMI_STEPS + 2)]
    for time, following in pairwise(times[:-1]):
        state = moved(seen, state, time, following)
    there = moved(seen, state, *times[-2:])
    back = moved(seen, there, times[-1], times[-2])
    return -(back - state).square().flatten(1).mean(1)


def moved(seen: Exposed, state: Tensor, time: float, following: float) -> Tensor:
    """Return a state taken from one time to another without noise (DDIM, Song et al. 2021)."""
    (signal, noise), (next_signal, next_noise) = seen.level(time), seen.level(following)
    eps = seen.predict(state, time)
    return next_signal * (state - noise * eps) / signal + next_noise * eps


def proximal(seen: Exposed) -> Tensor:
    """Return minus the distance of two words on the noise, (B,): on the volume, and noised by it.

    The distance is the norm of fourth powers, mean over numbers.
    """
    return _proximal(seen, seen.predict(seen.clean, FIRST))


def normalised_proximal(seen: Exposed) -> Tensor:
    """Return `proximal` with the first word scaled to the mean size of normal noise, (B,).

    It is meant for networks that say the noise itself: what "v" and "flow" see in a clean volume
    is next to nothing for a member, and scaling that up can turn the order round.
    """
    eps = seen.predict(seen.clean, FIRST)
    size = eps.abs().flatten(1).mean(1).clamp(min=torch.finfo(eps.dtype).tiny)
    scale = math.sqrt(2 / math.pi) / size
    return _proximal(seen, eps * scale.reshape(-1, *(1,) * (eps.dim() - 1)))


def _proximal(seen: Exposed, eps: Tensor) -> Tensor:
    signal, noise = seen.level(PROXIMAL_TIME)
    again = seen.predict(signal * seen.clean + noise * eps, PROXIMAL_TIME)
    return -(eps - again).pow(POWER).flatten(1).mean(1).pow(1 / POWER)


def simple(seen: Exposed) -> Tensor:
    """Return minus the fourth power of the noise said to be in the clean volume, (B,).

    It is the mean over numbers and `TIMES`.
    """
    sizes = [seen.predict(seen.clean, time).pow(POWER).flatten(1).mean(1) for time in TIMES]
    return -torch.stack(sizes).mean(0)


def exposing(score: Callable[[Exposed], Tensor]) -> Callable[[Family, Context], Measure]:
    """Return how a score of what a family exposes is prepared; nothing is drawn."""

    def prepare(family: Family, context: Context) -> Measure:
        assert isinstance(family, Exposes)  # noqa: S101, tells the type checker

        @torch.no_grad()
        def measure(batch: Batch) -> Tensor:
            return score(family.exposed(batch))

        return measure

    return prepare


def _exposes(family: Family) -> bool:
    return isinstance(family, Exposes)


SCORES = (
    Score(
        name="denoising loss",
        threat=Threat.WEIGHTS,
        what="how well the model finds the noise that was added to a volume",
        paper="Matsumoto et al. 2023; Carlini et al. 2023",
        fits=lambda family: isinstance(family, Denoises),
        prepare=denoising_loss,
    ),
    Score(
        name="SecMI",
        threat=Threat.WEIGHTS,
        what="how little a volume changes on a small step towards noise and back",
        paper="Duan et al. 2023",
        fits=_exposes,
        prepare=exposing(secmi),
    ),
    Score(
        name="PIA",
        threat=Threat.WEIGHTS,
        what="whether the model finds again the noise that it saw itself in a volume",
        paper="Kong et al. 2024",
        fits=_exposes,
        prepare=exposing(proximal),
    ),
    Score(
        name="PIAN",
        threat=Threat.WEIGHTS,
        what="as PIA, with the noise scaled to its usual size",
        paper="Kong et al. 2024",
        fits=_exposes,
        prepare=exposing(normalised_proximal),
    ),
    Score(
        name="SimA",
        threat=Threat.WEIGHTS,
        what="how little noise the model sees in a clean volume",
        paper="SimA 2025, arXiv 2509.25003",
        fits=_exposes,
        prepare=exposing(simple),
    ),
)
