"""Reconstruction: a model that learned a volume by heart gives it back with less error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ....models.base import Reconstructs
from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Family
    from .score import Measure


def reconstruction(family: Family, context: Context) -> Measure:
    """Return the measure: minus the mean squared error over the voxels; nothing is drawn."""
    assert isinstance(family, Reconstructs)  # noqa: S101, tells the type checker

    @torch.no_grad()
    def measure(batch: Batch) -> Tensor:
        return -(family.reconstruct(batch) - batch.volumes).square().flatten(1).mean(1)

    return measure


SCORES = (
    Score(
        name="reconstruction",
        threat=Threat.WEIGHTS,
        what="how closely the model gives a volume back after squeezing it through its code",
        paper="Hilprecht et al. 2019",
        fits=lambda family: isinstance(family, Reconstructs),
        prepare=reconstruction,
    ),
)
