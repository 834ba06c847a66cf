"""A rehearsal: one private step on random volumes, to tell hours and memory before a study."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch

from ..models.base import rows_of
from ..privacy.engine import StepSettings, private_gradient
from ..privacy.gradients.patients import PatientGradients
from ..privacy.gradients.performance import PerformanceSettings
from ..privacy.inspection import example
from ..study.plan import StudyPlan
from .training import choose_device, prepare

PATIENTS = 2


@dataclass(frozen=True)
class Rehearsal:
    """What one private step takes at this site.

    Attributes:
        device: where it ran.
        seconds: the slowest step, with the plan's expected patients.
        peak_bytes: the largest memory of the process, or of the GPU.
        hours: the whole study's training.
    """

    device: str
    seconds: float
    peak_bytes: int
    hours: float


def rehearse(plan: StudyPlan, device_wanted: str, performance: PerformanceSettings) -> Rehearsal:
    """Run one private step at the plan's shape on random volumes; no scan is read.

    Raises:
        ProcessError: the device that is asked for is not there.
    """
    device = choose_device(device_wanted)
    family = prepare(plan, device, checkpointing=performance.checkpointing)
    learning = {name: p for name, p in family.named_parameters() if p.requires_grad}
    names = [f"random-{i}" for i in range(PATIENTS)]
    privacy = plan.privacy
    settings = StepSettings(
        rate=1.0,
        divisor=float(PATIENTS),
        clip_norm=privacy.clip_norm,
        sigma=1.0,
        volumes_per_patient=privacy.volumes_per_patient,
        noise_multiplicity=privacy.noise_multiplicity,
    )
    generator = torch.Generator(device).manual_seed(0)
    nobody = example(family, plan.volumes.shape)
    volumes = [rows_of(nobody, slice(1))] * privacy.volumes_per_patient
    seconds, hours = 0.0, 0.0
    for stage in family.stages:
        rounds = plan.stages.get(stage, plan.rounds)
        for step in (s for s in family.steps(stage) if s.reads_patients and rounds):
            parameters = [learning[name] for name in step.parameters if name in learning]
            gradients = PatientGradients(family, step, parameters, nobody, performance)
            for _ in range(2):  # the first run also builds kernels
                began = time.perf_counter()
                private_gradient(gradients, names, lambda _: volumes, settings, generator)
                last = time.perf_counter() - began
            last *= plan.expected_patients / PATIENTS
            seconds = max(seconds, last)
            hours += last * step.repeats * plan.local_steps * rounds / 3600
    return Rehearsal(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        seconds=seconds,
        peak_bytes=_peak(device),
        hours=hours,
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
