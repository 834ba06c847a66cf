"""A tiny 3D network and cohort that the self-test runs the whole engine on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...models.base import Batch, Step
from .. import engine
from ..gradients.patients import PatientGradients
from ..gradients.performance import PerformanceSettings

SETTINGS = engine.StepSettings(
    rate=1.0, divisor=8.0, clip_norm=1.0, sigma=1.0, volumes_per_patient=4, noise_multiplicity=1
)
SIDE = 6
WEIGHTS = {
    "ordinary": (1.0,),
    "second": (2.0,),
    "faint": (1e-3,),
    "still": (0.0,),
    "several visits": (300.0, 300.0, 300.0, 300.0),
    "huge": (-1e6,),
    "broken": (float("inf"),),
}
"""Each patient's volumes, by the weight of their loss; a negative one pulls the other way."""

Passes = Literal["one", "two", "alone"]


@dataclass(frozen=True)
class Reading:
    """What an instrument measured on an engine.

    Attributes:
        measured: the number that is compared.
        limit: where an alarm begins.
        alarm: whether the engine is found faulty.
        detail: the measurement in words.
    """

    measured: float
    limit: float
    alarm: bool
    detail: str


class Specimen:
    """Convolutions with GroupNorm on seven patients; the loss draws nothing, so runs can repeat.

    Args:
        passes: how the patients' gradients are taken.
    """

    def __init__(self, passes: Passes = "one") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._network = nn.Sequential(
                nn.Conv3d(1, 8, 3, padding=1),
                nn.GroupNorm(2, 8),
                nn.SiLU(),
                nn.Conv3d(8, 8, 3, padding=1),
            )
        draw = torch.Generator().manual_seed(1)
        self.cohort = {
            patient: [_volume(weight, draw) for weight in weights]
            for patient, weights in WEIGHTS.items()
        }
        example = Batch(torch.rand((2, 2, SIDE, SIDE, SIDE), generator=draw))
        names = tuple(name for name, _ in self._network.named_parameters())
        self.gradients = PatientGradients(
            self._network,
            Step("specimen", names, reads_patients=True, loss=self._loss),
            list(self._network.parameters()),
            example,
            PerformanceSettings(volumes_at_once=8, passes=passes),
        )

    def release(self, patients: Sequence[str]) -> Tensor:
        """Return one release of the engine as it now is, all tensors as one vector."""
        parts = engine.private_gradient(
            self.gradients, patients, self.cohort.__getitem__, SETTINGS, torch.Generator()
        )
        return torch.cat([part.flatten() for part in parts]).double()

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        found: Tensor = self._network(batch.volumes[:, :1])
        return batch.volumes[:, 1, 0, 0, 0] * found.square().flatten(1).mean(1)


def _volume(weight: float, draw: torch.Generator) -> Batch:
    """Return a random volume, with the weight of its loss as a second channel."""
    volume = torch.rand((1, 1, SIDE, SIDE, SIDE), generator=draw) * 2 - 1
    return Batch(torch.cat([volume, torch.full_like(volume, weight)], 1))
