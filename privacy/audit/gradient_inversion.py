"""Gradient inversion: whose volume a site's update came from, drawn from the update itself.

The attacker is the strongest that fits: it holds the weights, the step, the draws of the loss, an
update of one patient alone, and public volumes of the same anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...models.base import Batch, Step
from ...study.errors import UsageError

Matching = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]

COARSE_RATE, FINE_RATE = 0.1, 0.02
"""Of Adam: in standard deviations of the prior, and in the shades of a voxel."""
COARSE_ROUGHNESS, FINE_ROUGHNESS = 1e-3, 1e-2
"""What total variation weighs beside one minus the cosine."""


@dataclass(frozen=True)
class Prior:
    """What the attacker knows of anatomy: public volumes by their principal components.

    Attributes:
        mean: the mean volume, (1, 1, D, H, W).
        directions: (K, D H W), each as long as its standard deviation.
    """

    mean: Tensor
    directions: Tensor

    def volume(self, coefficients: Tensor) -> Tensor:
        """Return the volume (1, 1, D, H, W) of coefficients (1, K) in standard deviations."""
        return self.mean + (coefficients @ self.directions).reshape(self.mean.shape)


@dataclass(frozen=True)
class Likeness:
    """How near a reconstruction comes to the patient and to the patient's likeliest other.

    Attributes:
        psnr: to the patient, in dB; the range is 2.
        other_psnr: the highest to any other patient.
        correlation: to the patient, over voxels, after the public mean volume is taken off both,
            since all patients share that one.
        other_correlation: the highest to any other patient.
        rank: 1 where no other patient correlates better, up to the number of patients.
    """

    psnr: float
    other_psnr: float
    correlation: float
    other_correlation: float
    rank: int


def learn_prior(public: Tensor, directions: int = 50) -> Prior:
    """Return the principal components of public volumes (N, 1, D, H, W), at most N - 1 of them."""
    mean = public.mean(0, keepdim=True)
    _, lengths, axes = torch.linalg.svd((public - mean).flatten(1), full_matrices=False)
    kept = min(directions, len(public) - 1)
    return Prior(mean, lengths[:kept, None] / math.sqrt(len(public)) * axes[:kept])


def by_tensor(found: Sequence[Tensor], update: Sequence[Tensor]) -> Tensor:
    """Return the mean cosine of each parameter's gradient with its update.

    An L1 loss moves its last layers by signs alone, which have no slope of their own; in one cosine
    of everything they hide the layers that tell of the patient.
    """
    return torch.stack([_cosine(a, b) for a, b in zip(found, update, strict=True)]).mean()


def as_one(found: Sequence[Tensor], update: Sequence[Tensor]) -> Tensor:
    """Return the cosine of all gradients as one vector: the best match under white noise."""
    return _cosine(*(torch.cat([one.flatten() for one in both]) for both in (found, update)))


def invert(
    step: Step,
    parameters: Sequence[Tensor],
    update: Sequence[Tensor],
    prior: Prior,
    *,
    turns: int = 100,
    seed: int = 0,
    matching: Matching = by_tensor,
) -> Tensor:
    """Return the volume whose gradient points where an update does, (1, 1, D, H, W).

    Cosine matching with total variation (Geiping et al. 2020): Adam over the coefficients of the
    prior first (as in generative gradient leakage, Li et al. 2022), from the public mean volume,
    then over each voxel.

    Args:
        step: the turn that read the patient; its loss must have second derivatives.
        parameters: the weights at which the update was made, ready for gradients.
        update: the gradient that left the site, one tensor for each parameter.
        prior: what is public about anatomy.
        turns: of Adam, in each of the two parts.
        seed: of the loss's draws; the site's own, for the strongest attacker.
        matching: from two lists of gradients to a likeness of at most 1.

    Raises:
        UsageError: the update does not fit the parameters.
    """
    if [p.shape for p in parameters] != [u.shape for u in update]:
        raise UsageError("this update is not one of these parameters", hint="take the same step's")

    def mismatch(volume: Tensor, roughness: float) -> Tensor:
        found = gradient(step, parameters, Batch(volume), seed, differentiable=True)
        return 1 - matching(found, update) + roughness * total_variation(volume)

    coefficients = prior.mean.new_zeros((1, len(prior.directions)))
    coarse = _descend(
        lambda x: mismatch(prior.volume(x), COARSE_ROUGHNESS), coefficients, COARSE_RATE, turns
    )
    volume = prior.volume(coarse)
    return _descend(lambda x: mismatch(x, FINE_ROUGHNESS), volume, FINE_RATE, turns).clamp(-1, 1)


def gradient(
    step: Step,
    parameters: Sequence[Tensor],
    batch: Batch,
    seed: int,
    *,
    differentiable: bool = False,
) -> list[Tensor]:
    """Return the plain gradient of a batch's mean loss, zero where a parameter has no part in it.

    Args:
        step: the turn whose loss it is.
        parameters: what it is taken by.
        batch: one patient's.
        seed: of the loss's draws, on the CPU.
        differentiable: whether the gradient can be differentiated again, by the batch's volumes.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the fast attention has no second derivative on a CPU
        loss = step.loss(batch, torch.Generator().manual_seed(seed)).mean()
    found = torch.autograd.grad(
        loss, list(parameters), create_graph=differentiable, allow_unused=True
    )
    return [
        torch.zeros_like(p) if one is None else one
        for p, one in zip(parameters, found, strict=True)
    ]


def total_variation(volume: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours of (B, C, D, H, W), added over axes."""
    return torch.stack([volume.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()


def compare(found: Tensor, patients: Tensor, victim: int, mean: Tensor) -> Likeness:
    """Return how near a reconstruction is to its patient, and to the nearest other.

    Args:
        found: the reconstruction, (1, 1, D, H, W).
        patients: (P, 1, D, H, W) in [-1, 1], the patient among them.
        victim: the number of the row that is the patient.
        mean: the public mean volume, (1, 1, D, H, W).
    """
    errors = (patients - found).double().square().flatten(1).mean(1)
    psnr = 10 * torch.log10(4 / errors.clamp(min=1e-12))
    change, others = (found - mean).double().flatten(1), (patients - mean).double().flatten(1)
    change, others = (one - one.mean(1, keepdim=True) for one in (change, others))
    correlation = torch.cosine_similarity(change, others, dim=1)
    rest = torch.arange(len(patients)) != victim
    return Likeness(
        psnr=float(psnr[victim]),
        other_psnr=float(psnr[rest].max()),
        correlation=float(correlation[victim]),
        other_correlation=float(correlation[rest].max()),
        rank=1 + int((correlation[rest] >= correlation[victim]).sum()),
    )


def _cosine(found: Tensor, update: Tensor) -> Tensor:
    return torch.cosine_similarity(found.flatten(), update.flatten(), dim=0, eps=1e-20)


def _descend(
    mismatch: Callable[[Tensor], Tensor], start: Tensor, rate: float, turns: int
) -> Tensor:
    """Return where Adam ends, its rate falling to zero as a cosine."""
    place = start.detach().clone().requires_grad_()
    adam = torch.optim.Adam([place], lr=rate)
    for turn in range(turns):
        adam.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * turn / turns)) / 2
        (place.grad,) = torch.autograd.grad(mismatch(place), [place])
        adam.step()
    return place.detach()
