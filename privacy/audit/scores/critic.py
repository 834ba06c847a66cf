"""The critic's verdict: a critic that saw a volume often in training finds it more real."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ....models.base import Batch, HasCritic
from ....models.conditioning import conditioning_of
from ....study.errors import VolumeError
from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Family
    from .score import Measure

OWN = 32
"""Own samples that a critic's scores are measured by."""


def critic(family: Family, context: Context) -> Measure:
    """Return the measure: the critic's score from its mean of own samples, in their spreads.

    Raises:
        VolumeError: the critic's scores of own samples are not finite.
    """
    assert isinstance(family, HasCritic)  # noqa: S101, tells the type checker
    centre, spread = own_scale(family, context.draws())

    @torch.no_grad()
    def measure(batch: Batch) -> Tensor:
        return (family.criticise(batch) - centre) / spread

    return measure


@torch.no_grad()
def own_scale(family: Family, generator: torch.Generator) -> tuple[float, float]:
    """Return mean and standard deviation of a critic's scores of `OWN` samples of the model.

    A critic's zero and unit are arbitrary. They are left as they are, 0 and 1, where samples need
    images, of which none is public by itself.

    Raises:
        VolumeError: the scores are not finite.
    """
    assert isinstance(family, HasCritic)  # noqa: S101, tells the type checker
    takes = conditioning_of(family, (1, 1, 1))
    if takes.planes:
        return 0.0, 1.0
    told = takes.prior(OWN, generator)
    made = family.sample(OWN, condition=told, generator=generator)
    scores = family.criticise(Batch(made, told)).double()
    centre, spread = float(scores.mean()), float(scores.std())
    if not math.isfinite(centre + spread):
        raise VolumeError("the critic's scores are not finite", hint="the weights are damaged")
    return centre, max(spread, 1e-12)


SCORES = (
    Score(
        name="critic",
        threat=Threat.WEIGHTS,
        what="how real the model's critic finds a volume beside the model's own samples",
        paper="LOGAN, Hayes et al. 2019",
        fits=lambda family: isinstance(family, HasCritic),
        prepare=critic,
    ),
)
