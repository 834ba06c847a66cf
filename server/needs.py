"""Needs: what a study asks of a site's machine and line, worked out before anyone starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..models.base import Family, Step
from ..models.estimate import Sketch, bytes_of
from ..models.registry import build, check, schedule_of
from ..models.state import tensors_of, to_bytes
from ..models.trained import add_adapters, freeze_the_rest, stage_parameters, trained_parameters
from ..privacy.gradients.patients import PatientGradients
from ..privacy.gradients.performance import PerformanceSettings
from ..privacy.inspection import example
from ..study.errors import PlanError
from ..study.plan import StudyPlan

PROGRAM = 490_000_000
"""Bytes of the worker itself on a CPU, with its kernels: measured, torch 2.13 and MONAI 1.6."""

SAVING = PerformanceSettings(precision="bfloat16", checkpointing=True)
"""The least memory that site.toml can ask for."""

SHRUNK = (8, 6, 4, 3, 2)
"""By which a volume's sides are divided to try how gradients are taken."""


@dataclass(frozen=True)
class Needs:
    """What one site needs, in bytes, with the settings of site.toml that it is made for.

    Attributes:
        parameters: numbers in the family.
        trained: numbers that learn.
        activations: what the largest step keeps of its forward pass.
        peak: the most memory of the worker on a CPU, program and scans in use included.
        received: tensors that come to a site in a round.
        sent: tensors that leave it in a round, the most of all stages.
    """

    parameters: int
    trained: int
    activations: int
    peak: int
    received: int
    sent: int


def needs(plan: StudyPlan, performance: PerformanceSettings | None = None) -> Needs:
    """Return what the plan needs at a site; nothing is run at the plan's size.

    Only weights are really made, and steps on a volume of an eighth to a half of the sides.

    Raises:
        PlanError: the plan is wrong.
    """
    performance = performance or PerformanceSettings()
    saving = performance.checkpointing
    narrow = performance.precision == "bfloat16"
    sketch = Sketch(plan, bfloat16=narrow, checkpointing=saving)
    wide = Sketch(plan, checkpointing=saving) if narrow else sketch
    alone = _alone(plan, performance)
    weights = bytes_of([*sketch.family.parameters(), *sketch.family.buffers()])
    kept, peak = 0, 0
    for stage in (x for x in schedule_of(plan).stages if x.rounds):
        for step, exact in _pairs(sketch.family, wide.family, stage.name):
            own = bytes_of(sketch.learning(step))
            if not own:
                continue  # `study run` refuses such a plan
            volumes, rows = _pass(plan, performance, step, (stage.name, step.name) in alone)
            use, tried = sketch.step(step, volumes, rows=rows), wide.step(exact, 2)
            kept = max(kept, use.kept)
            # before, gradient and Adam's two averages; then what inspection holds beside a step
            peak = max(peak, 4 * own + use.peak, weights + 4 * own + tried.peak)
    family = sketch.family
    learning = trained_parameters(family, plan.trained)
    sizes = dict(family.named_parameters())
    received, sent = _bytes_per_round(plan)
    return Needs(
        parameters=sum(one.numel() for one in family.parameters()),
        trained=sum(sizes[name].numel() for name in learning),
        activations=kept,
        peak=PROGRAM + weights + peak,
        received=received,
        sent=sent,
    )


def _pairs(one: Family, other: Family, stage: str) -> list[tuple[Step, Step]]:
    return list(zip(one.steps(stage), other.steps(stage), strict=True))


def _pass(
    plan: StudyPlan, performance: PerformanceSettings, step: Step, alone: bool
) -> tuple[int, int]:
    """Return the volumes of one forward pass, and the gradients of every weight held at once."""
    if not step.reads_patients:
        return 1, 0
    often = plan.expected_patients + 2 * math.sqrt(plan.expected_patients)  # a draw of some size
    if not plan.privacy.enabled:
        return math.ceil(often), 0
    each, most = _volumes_each(plan), performance.volumes_at_once
    if alone or each > most:
        copied = performance.precision == "float32"
        return max(2 if copied else 1, min(each, most)), 0
    volumes = max(2, min(most // each * each, math.ceil(often) * each))
    return volumes, 1 if performance.passes == "two" else volumes


def _volumes_each(plan: StudyPlan) -> int:
    return plan.privacy.volumes_per_patient * plan.privacy.noise_multiplicity


def _alone(plan: StudyPlan, performance: PerformanceSettings) -> set[tuple[str, str]]:
    """Return the stages and steps whose patients go one by one, as tried on small volumes."""
    small = _shrunk(plan)
    family = build(small)
    if plan.trained == "adapters":
        add_adapters(family)
    freeze_the_rest(family, plan.trained)
    volumes, weights = example(family, small.volumes.shape), dict(family.named_parameters())
    found = set()
    for stage in family.stages if plan.privacy.enabled else ():
        for step in (x for x in family.steps(stage) if x.reads_patients):
            learning = [weights[n] for n in step.parameters if weights[n].requires_grad]
            if performance.saves_memory or performance.passes == "alone":
                found.add((stage, step.name))
            elif learning:
                tried = PatientGradients(family, step, learning, volumes, performance)
                if tried.passes == "alone":
                    found.add((stage, step.name))
    return found


def _shrunk(plan: StudyPlan) -> StudyPlan:
    """Return the plan for the smallest volumes that the family's settings allow."""
    for divisor in SHRUNK:
        shape = tuple(side // divisor for side in plan.volumes.shape)
        volumes = plan.volumes.model_copy(update={"shape": shape})
        small = plan.model_copy(update={"volumes": volumes})
        if any(side % divisor for side in plan.volumes.shape) or min(shape) < 4:
            continue
        try:
            check(small)
        except PlanError:
            continue
        return small
    return plan


def _bytes_per_round(plan: StudyPlan) -> tuple[int, int]:
    """Return the bytes of safetensors that a site receives, and the most that it sends."""
    family = build(plan)
    if plan.trained == "adapters":
        add_adapters(family)
    freeze_the_rest(family, plan.trained)
    tensors = tensors_of(family)
    sent = [
        len(to_bytes({name: tensors[name] for name in stage_parameters(family, stage.name)}))
        for stage in schedule_of(plan).stages
        if stage.rounds
    ]
    return len(to_bytes(tensors)), max(sent)
