"""Membership scores: a patient whose scans the model knows too well was in training.

A family offers protocols (models/base.py) and each has its score; the first that fits is taken. All
are positive, and lower for members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...study.errors import Refusal, VolumeError

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.base import Batch, Family

    Score = Callable[[Batch], Tensor]

RECONSTRUCTION, DENOISING = "reconstruction", "denoising"
LIKELIHOOD, CRITIC = "likelihood", "critic"
SCORES = {
    RECONSTRUCTION: "mean absolute reconstruction error",
    DENOISING: "mean squared error of the predicted noise",
    LIKELIHOOD: "perplexity of a voxel",
    CRITIC: "1 - 2/pi atan of the critic's score, in spreads of its scores of own samples",
}
LOWER_IS_MEMBER = frozenset(SCORES)
TIMES = (0.05, 0.1, 0.2, 0.3)
"""Where the error of a denoiser is measured (Carlini et al. 2023 find early times to leak most)."""
EDGES: tuple[float, ...] = tuple(float(edge) for edge in np.geomspace(1e-4, 4.0, 257))


def score_of(family: Family) -> tuple[str, Score]:
    """Returns the name of the score that fits a family, and the score of a batch, (B,).

    The error of rebuilding a volume; else that of its noise, at `TIMES` (Matsumoto et al. 2023);
    else its likelihood bound; else what the critic says (LOGAN, Hayes et al. 2019), measured from
    its mean score of the model's own samples in their standard deviations: a critic's zero and
    unit are arbitrary, and a drift of either must not move patients out of the bins.

    Raises:
        Refusal: the family satisfies none of these protocols.
    """
    import torch

    from ...models.base import Denoises, HasCritic, HasLikelihoodBound, Reconstructs
    from .scores.critic import own_scale

    def draws(batch: Batch) -> torch.Generator:  # the same for every patient and model
        return torch.Generator(batch.volumes.device).manual_seed(0)

    if isinstance(family, Reconstructs):
        rebuilt = family.reconstruct
        return RECONSTRUCTION, lambda x: (rebuilt(x) - x.volumes).abs().flatten(1).mean(1)
    if isinstance(family, Denoises):
        error = family.denoising_error
        return DENOISING, lambda x: torch.stack([error(x, time, draws(x)) for time in TIMES]).mean(
            0
        )
    if isinstance(family, HasLikelihoodBound):
        bound = family.likelihood_bound
        return LIKELIHOOD, lambda x: torch.exp(-bound(x, draws(x)) / x.volumes[0].numel())
    if isinstance(family, HasCritic):
        draws_of_own = torch.Generator(next(family.parameters()).device).manual_seed(0)
        criticise, (centre, spread) = family.criticise, own_scale(family, draws_of_own)
        return CRITIC, lambda x: 1 - torch.atan((criticise(x) - centre) / spread) * 2 / math.pi
    raise Refusal(
        "this family offers nothing that membership can be scored by",
        got=type(family).__name__,
        expected="a family that reconstructs, denoises, bounds a likelihood or has a critic",
    )


def patient_scores(
    score: Score, patients: Iterable[str], batches: Callable[[str], Sequence[Batch]]
) -> dict[str, float]:
    """Returns each patient's score, the mean over the patient's volumes; members' are lower.

    Args:
        score: what `score_of` returned.
        patients: their names.
        batches: from a name to the patient's volumes with what is told of them, each a batch of
            one on the model's device.

    Raises:
        VolumeError: a patient has no volume, or a score that is not finite.
    """
    import torch

    scores: dict[str, float] = {}
    with torch.no_grad():
        for patient in patients:
            values = [float(score(batch)) for batch in batches(patient)]
            if not values or not np.isfinite(values).all():
                raise VolumeError(
                    "a patient cannot be scored",
                    got="no volume" if not values else "a score that is not finite",
                    hint="run the site's check; if it passes, the weights are damaged",
                )
            scores[patient] = float(np.mean(values))
    return scores


def histogram(values: Iterable[float], edges: Sequence[float]) -> tuple[float, ...]:
    """Returns how many values lie in each bin; values outside the edges go to the end bins.

    Sensitivity: a patient adds 1 to one bin of one of the two histograms, so the L2 sensitivity to
    adding or removing a patient is 1.
    """
    given = np.fromiter(values, dtype=np.float64)
    bins = np.searchsorted(np.asarray(edges[1:-1]), given, side="right")
    return tuple(float(n) for n in np.bincount(bins, minlength=len(edges) - 1))


def mean_of(counts: Sequence[float], edges: Sequence[float]) -> float | None:
    """Returns the mean of binned values, each taken at its bin's geometric centre, if any."""
    total = sum(counts)
    if total <= 0:
        return None
    centres = np.sqrt(np.asarray(edges[:-1]) * np.asarray(edges[1:]))
    return float(np.dot(counts, centres) / total)
