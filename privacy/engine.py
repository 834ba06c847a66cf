"""The one place that joins sampling, clipping and noise, and claims a guarantee for a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.base import Batch, Step
from . import sampling
from .clipping import clip
from .noise import add_noise

METRIC_BOUND = 1.0
"""A patient's loss counts at most this much in the mean loss that leaves a site."""


@dataclass(frozen=True)
class StepSettings:
    """What bounds a patient in one step; these settings can change epsilon.

    Attributes:
        rate: the probability q that a member is drawn.
        divisor: the fixed expected number of patients.
        clip_norm: the bound C on the norm of a patient's gradient.
        sigma: the noise multiplier; the noise has standard deviation sigma C.
        volumes_per_patient: how many of a patient's volumes are read, at most.
        noise_multiplicity: how many noise draws are averaged for each volume.
    """

    rate: float
    divisor: float
    clip_norm: float
    sigma: float
    volumes_per_patient: int
    noise_multiplicity: int


def private_gradient(
    step: Step,
    parameters: Sequence[Tensor],
    patients: Sequence[str],
    load: Callable[[str], Sequence[Batch]],
    settings: StepSettings,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return one private gradient: drawn, clipped per patient, summed, noised, divided.

    An empty draw releases noise as any other.

    Guarantee:
        The return value is one step of the Poisson-sampled Gaussian mechanism with rate
        `settings.rate` and noise multiplier `settings.sigma`; neighbouring cohorts differ by one
        patient with all of that patient's volumes (Abadi et al. 2016, with the patient as unit).
    Assumes:
        `step.loss` of a patient's batch depends on no other patient (privacy/inspection.py);
        `generator` and `parameters` do not depend on the cohort but through earlier releases.

    Args:
        step: the optimiser's turn whose loss is minimised.
        parameters: the tensors that the gradient is taken for.
        patients: the names of the site's members.
        load: a member's volumes, each a batch of one, shape (1, C, D, H, W).
        settings: what bounds a patient.
        generator: noise of the loss and choice of volumes; not the noise of privacy.

    Returns:
        One float32 tensor for each parameter.
    """
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for patient in sampling.poisson(patients, settings.rate):
        gradient = _patient_gradient(step, parameters, load(patient), settings, generator)
        for kept, part in zip(total, clip(gradient, settings.clip_norm).gradient, strict=True):
            kept += part.double()
    noised = add_noise(total, settings.sigma * settings.clip_norm)
    return [tensor / settings.divisor for tensor in noised]


def open_gradient(
    step: Step,
    parameters: Sequence[Tensor],
    patients: Sequence[str],
    load: Callable[[str], Sequence[Batch]],
    settings: StepSettings,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return the plain mean gradient over a Poisson draw of patients, one volume of each.

    Guarantee:
        None: this is training without privacy, for plans and sites that both allow it.
    """
    drawn = sampling.poisson(patients, settings.rate)
    if not drawn:
        return [torch.zeros_like(p) for p in parameters]
    chosen = [next(_chosen(load(patient), 1, generator)) for patient in drawn]
    batch = Batch(volumes=torch.cat([one.volumes for one in chosen]))
    return list(torch.autograd.grad(step.loss(batch, generator).mean(), parameters))


def private_mean(values: Mapping[str, float], declared: float, noise: float) -> float:
    """Return the clipped and noised mean of one value a patient.

    Guarantee:
        One Gaussian mechanism with noise multiplier `noise`: each patient moves the sum by at most
        METRIC_BOUND, and the divisor `declared` is a public constant.
    """
    clipped = [min(max(v, 0.0), METRIC_BOUND) if v == v else 0.0 for v in values.values()]
    total = torch.tensor([sum(clipped)], dtype=torch.float64)
    return float(add_noise([total], noise * METRIC_BOUND)[0]) / declared


def private_counts(counts: Sequence[float], noise: float) -> list[float]:
    """Return counts with Gaussian noise on each.

    Guarantee:
        One Gaussian mechanism with noise multiplier `noise`.
    Assumes:
        A patient is counted in one bin only, so that the L2 sensitivity is 1.
    """
    total = torch.tensor(counts, dtype=torch.float64)
    return [float(value) for value in add_noise([total], noise)[0]]


def _patient_gradient(
    step: Step,
    parameters: Sequence[Tensor],
    volumes: Sequence[Batch],
    settings: StepSettings,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return the gradient of one patient's mean loss over volumes and noise draws."""
    total = [torch.zeros_like(p) for p in parameters]
    chosen = list(_chosen(volumes, settings.volumes_per_patient, generator))
    draws = len(chosen) * settings.noise_multiplicity
    for volume in chosen:
        for _ in range(settings.noise_multiplicity):
            loss = step.loss(volume, generator).mean() / draws
            parts = torch.autograd.grad(loss, parameters, allow_unused=True)
            for kept, part in zip(total, parts, strict=True):
                if part is not None:
                    kept += part
    return total


def _chosen(volumes: Sequence[Batch], most: int, generator: torch.Generator) -> Iterator[Batch]:
    order = torch.randperm(len(volumes), generator=generator)[:most]
    return (volumes[int(i)] for i in order)
