"""Canary gradients through the whole engine, and the epsilon that they prove."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ...models.base import Batch, Step
from .. import engine, sampling
from ..calibration import calibrate_sigma
from ..gradients.patients import PatientGradients
from ..gradients.performance import PerformanceSettings
from .one_run import lower_bound, right_guesses
from .specimen import Reading

SIDE = 10
CANARIES = SIDE**3
GUESSES = 300
"""Fixed in advance: a quarter of the noise is then seen in nearly every run."""

RUNS = 20

EPSILON, DELTA = 1.0, 1e-5
"""What sigma is calibrated to: one step that draws every patient (q = 1)."""

CLIP_NORM = 1.0


def read() -> Reading:
    """Return the largest of 20 runs' lower bounds on epsilon, against the claimed epsilon.

    Canary i is a patient whose loss is a constant times the i-th weight: its gradient lies along
    a coordinate of its own, twice as long as C before clipping. A coin says for each whether it
    is in the cohort; the score is the released coordinate.

    Guarantee:
        By the theorem the bound of a sound engine is above epsilon in at most 5 % of runs, at 95 %
        confidence; here, with Gaussian noise of known size, in fewer than one of 10^8 (a normal
        approximation of the right guesses, from 4,000 simulated runs). So it is for an alarm.
    Assumes:
        The coins are those of the operating system's generator.
    """
    bounds = [bound() for _ in range(RUNS)]
    least, worst = min(bounds), max(bounds)
    detail = f"epsilon at least {least:.3f} to {worst:.3f} in {RUNS} runs, claimed {EPSILON:g}"
    return Reading(worst, EPSILON, worst > EPSILON, detail)


def bound() -> float:
    """Return the lower bound on epsilon, at 95 % confidence, of one run of the engine."""
    coins = sampling.flip(CANARIES)
    members = [str(number) for number in range(CANARIES) if coins[number]]
    settings = engine.StepSettings(
        rate=1.0,
        divisor=CANARIES / 2,
        clip_norm=CLIP_NORM,
        sigma=sigma(),
        volumes_per_patient=1,
        noise_multiplicity=1,
    )
    (released,) = engine.private_gradient(
        _gradients(), members, lambda name: [_canary(int(name))], settings, torch.Generator()
    )
    scores = released.double().flatten().numpy()
    right = right_guesses(scores, coins, GUESSES)
    return lower_bound(right=right, guesses=GUESSES, canaries=CANARIES, delta=DELTA)


@cache
def sigma() -> float:
    """Return the noise multiplier that the claimed epsilon asks for."""
    return calibrate_sigma(rate=1.0, steps=1, epsilon=EPSILON, delta=DELTA)


def _gradients() -> PatientGradients:
    layer = nn.Linear(CANARIES, 1, bias=False)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        found: Tensor = layer(batch.volumes.flatten(1))
        return found[:, 0]

    return PatientGradients(
        layer,
        Step("canaries", ("weight",), reads_patients=True, loss=loss),
        [layer.weight],
        Batch(torch.cat([_canary(0).volumes, _canary(1).volumes])),
        PerformanceSettings(volumes_at_once=CANARIES, passes="one"),
    )


def _canary(number: int) -> Batch:
    volumes = torch.zeros(CANARIES)
    volumes[number] = 2 * CLIP_NORM
    return Batch(volumes.reshape(1, 1, SIDE, SIDE, SIDE))
