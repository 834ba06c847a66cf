"""White-box GAN-Leaks: the code whose volume comes nearest (Chen et al., CCS 2020).

A decoder that learned a patient by heart has a code that gives the patient back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ....models.base import Decodes
from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Condition, Family
    from .score import Measure

STARTS = 3
STEPS = 100
STEP_SIZE = 0.3  # of Adam; 0.1 needs twice the steps to come as near
PRIOR = 1e-3
"""Weight of a code's mean square: far out a decoder gives volumes that it never samples."""


def distance(found: Tensor, sought: Tensor) -> Tensor:
    """Returns the mean absolute plus the mean squared difference of each volume, (B,)."""
    gap = (found - sought).flatten(1)
    return gap.abs().mean(1) + gap.square().mean(1)


def least_distance(
    decode: Callable[[Tensor], Tensor], starts: Tensor, sought: Tensor, *, steps: int = STEPS
) -> Tensor:
    """Returns the least distance and prior that Adam finds from any of the starts, a scalar.

    Args:
        decode: from codes (S, ...) to volumes (S, C, D, H, W), differentiable.
        starts: the codes to start from, (S, ...).
        sought: the volume, (1, C, D, H, W).
        steps: of Adam; the step size falls to zero along a cosine.
    """
    with torch.enable_grad():
        codes = starts.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([codes], lr=STEP_SIZE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        least = torch.full((len(starts),), torch.inf, device=sought.device)
        for step in range(steps + 1):
            prior = codes.flatten(1).square().mean(1)
            cost = distance(decode(codes), sought) + PRIOR * prior
            least = torch.minimum(least, cost.detach())
            if step < steps:
                (codes.grad,) = torch.autograd.grad(cost.sum(), codes)
                optimiser.step()
                falling.step()
    return least.min()


def _decodes(family: Family) -> bool:
    return isinstance(family, Decodes)


def _inversion(family: Family, context: Context) -> Measure:
    assert isinstance(family, Decodes)  # noqa: S101, tells the type checker
    return lambda batch: -_inverted(family, context, batch)


def _inverted(family: Decodes, context: Context, batch: Batch) -> Tensor:
    """Returns the least distance to a volume of the same condition, (1,)."""
    starts = family.codes(STARTS, context.draws()).to(batch.volumes)
    told = _repeated(batch.condition, STARTS)
    found = least_distance(lambda codes: family.decode(codes, told), starts, batch.volumes)
    return found.reshape(1)


def _repeated(condition: Condition, n: int) -> Condition:
    return condition.mapped(lambda part: part.expand(n, *part.shape[1:]))


def _calibrated(family: Family, context: Context) -> Measure:
    inversion, device = _inversion(family, context), next(family.parameters()).device
    others = torch.cat([one.volumes for one in context.reference]).to(device)
    return lambda batch: inversion(batch) + distance(others, batch.volumes).min().reshape(1)


SCORES = (
    Score(
        "inversion",
        Threat.WEIGHTS,
        "how near the model's best code comes to the scan",
        "Chen et al., GAN-Leaks, CCS 2020",
        _decodes,
        _inversion,
    ),
    Score(
        "calibrated inversion",
        Threat.WEIGHTS,
        "how near the model's best code comes, beside how near another patient's scan comes",
        "Chen et al., GAN-Leaks, CCS 2020",
        _decodes,
        _calibrated,
        needs=("reference",),
    ),
)
