"""The one place that joins sampling, clipping and noise, and claims a guarantee for a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.base import Batch, Step, joined
from . import sampling
from .clipping import clip_weights
from .gradients.patients import PatientGradients
from .noise import add_noise

Load = Callable[[str], Sequence[Batch]]

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
    gradients: PatientGradients,
    patients: Sequence[str],
    load: Load,
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
        The loss of a volume depends on no other patient (privacy/inspection.py); `generator` and
        the parameters do not depend on the cohort but through earlier releases.

    Args:
        gradients: the step, its parameters and the way to their gradients.
        patients: the names of the site's members.
        load: a member's volumes, each a batch of one, shape (1, C, D, H, W).
        settings: what bounds a patient.
        generator: noise of the loss and choice of volumes; not the noise of privacy.

    Returns:
        One float32 tensor for each parameter.
    """
    drawn = sampling.poisson(patients, settings.rate)
    total = gradients.weighted_sum(
        (_chosen(load(patient), settings, generator) for patient in drawn),
        generator,
        lambda norms: clip_weights(norms, settings.clip_norm),
    )
    noised = add_noise(total, settings.sigma * settings.clip_norm)
    return [tensor / settings.divisor for tensor in noised]


def open_gradient(
    step: Step,
    parameters: Sequence[Tensor],
    patients: Sequence[str],
    load: Load,
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
    one = replace(settings, volumes_per_patient=1, noise_multiplicity=1)
    batch = joined([v for patient in drawn for v in _chosen(load(patient), one, generator)])
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


def _chosen(
    volumes: Sequence[Batch], settings: StepSettings, generator: torch.Generator
) -> list[Batch]:
    """Return a patient's volumes of this step, each as often as noise is drawn for it."""
    order = torch.randperm(len(volumes), generator=generator, device=generator.device)
    chosen = [volumes[int(i)] for i in order[: settings.volumes_per_patient]]
    return chosen * settings.noise_multiplicity
