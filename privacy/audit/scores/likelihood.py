"""Likelihood: a model that learned a volume by heart finds it likelier than others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ....models.base import HasImportanceWeights, HasLikelihoodBound, joined
from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Family
    from .score import Measure

DRAWS = 16
"""Of the latents of a volume."""


def likelihood_bound(family: Family, context: Context) -> Measure:
    """Return the measure: the bound on the log density, in nats a voxel.

    Where latents are drawn it is the mean of `DRAWS` log weights, the evidence bound; else the
    family's own, of the volume's one code or of its voxels.
    """

    @torch.no_grad()
    def measure(batch: Batch) -> Tensor:
        if isinstance(family, HasImportanceWeights):
            return _log_weights(family, batch, context).mean(0, keepdim=True) / _voxels(batch)
        assert isinstance(family, HasLikelihoodBound)  # noqa: S101, tells the type checker
        return family.likelihood_bound(batch, context.draws()) / _voxels(batch)

    return measure


def importance_weighted(family: Family, context: Context) -> Measure:
    """Return the measure: log of the mean of `DRAWS` weights, in nats a voxel.

    It lies between the evidence bound and the log density (Burda et al. 2016).
    """
    assert isinstance(family, HasImportanceWeights)  # noqa: S101, tells the type checker

    @torch.no_grad()
    def measure(batch: Batch) -> Tensor:
        weights = _log_weights(family, batch, context)
        return (weights.logsumexp(0, keepdim=True) - math.log(DRAWS)) / _voxels(batch)

    return measure


def _log_weights(family: HasImportanceWeights, batch: Batch, context: Context) -> Tensor:
    """Return the log weights of one volume, float64 (DRAWS,), in nats."""
    return family.log_weight(joined([batch] * DRAWS), context.draws()).double()


def _voxels(batch: Batch) -> int:
    return batch.volumes[0].numel()


SCORES = (
    Score(
        name="likelihood bound",
        threat=Threat.WEIGHTS,
        what="how likely the model finds a volume, at least",
        paper="Kingma and Welling 2014; Hilprecht et al. 2019",
        fits=lambda family: isinstance(family, HasLikelihoodBound | HasImportanceWeights),
        prepare=likelihood_bound,
    ),
    Score(
        name="importance-weighted bound",
        threat=Threat.WEIGHTS,
        what="how likely the model finds a volume, from the best of several guesses of its code",
        paper="Burda et al. 2016",
        fits=lambda family: isinstance(family, HasImportanceWeights),
        prepare=importance_weighted,
    ),
)
