"""The families by name: the only place where a string becomes a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
import torch

from ..study.errors import PlanError
from ..study.plan import StudyPlan
from ..study.schedule import Schedule, Stage
from .base import Family
from .vae import Vae, VaeSpec


@dataclass(frozen=True)
class Description:
    """A row of `voxfed models`.

    Attributes:
        name: the family's name in a study file.
        title: what the field calls it.
        tasks: what it can be trained for.
        stages: trained one after the other.
        parameters: trained numbers at the default settings.
        privacy: "yes", or why it cannot be trained with differential privacy.
        source: the paper that it comes from.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    stages: tuple[str, ...]
    parameters: int
    privacy: str
    source: str


def names() -> tuple[str, ...]:
    """Return the families that a study file may name."""
    return ("vae",)


def describe() -> tuple[Description, ...]:
    """Return a row for each family; builds each at its default settings on no device."""
    with torch.device("meta"):
        family = Vae(VaeSpec(shape=(64, 64, 64)))
    return (
        Description(
            name="vae",
            title="variational autoencoder",
            tasks=("unconditional",),
            stages=Vae.stages,
            parameters=sum(weight.numel() for weight in family.parameters()),
            privacy="yes",
            source="Kingma and Welling 2014, Rombach et al. 2022",
        ),
    )


def check(plan: StudyPlan) -> VaeSpec:
    """Return the spec that the plan asks for.

    Raises:
        PlanError: unknown family, or settings that are wrong; it names every wrong key at once.
    """
    if plan.family not in names():
        known = ", ".join(names())
        raise PlanError("unknown family", got=plan.family, expected=known, hint="voxfed models")
    if "shape" in plan.settings:
        raise PlanError("settings.shape: unknown key", hint="the shape stands in [volumes]")
    table = {**plan.settings, "shape": list(plan.volumes.shape)}
    try:
        text = tomli_w.dumps(table).encode()
    except (TypeError, ValueError):
        raise PlanError("the settings hold a value that TOML has not") from None
    return VaeSpec.parse(text, file="the table [settings]", error=PlanError)


def faults(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with family and settings in a study file that is wrong elsewhere too."""
    family, volumes = values.get("family"), values.get("volumes")
    settings = values.get("settings", {})
    if family not in names():
        return [f"family: unknown (got {family!r}, expected {', '.join(names())})"]
    shape = volumes.get("shape") if isinstance(volumes, dict) else None
    if not isinstance(settings, dict):
        return []
    try:
        VaeSpec.checked({**settings, "shape": shape or [64, 64, 64]}, file="", error=PlanError)
    except PlanError as fault:
        lines = fault.what.splitlines()[1:]
        return [f"settings.{x.strip()}" for x in lines if not x.strip().startswith("shape")]
    return []


def schedule_of(plan: StudyPlan) -> Schedule:
    """Return the plan's stages with their rounds and the turns that read patients.

    Raises:
        PlanError: as in `check`, or the plan gives rounds to a stage that the family has not.
    """
    with torch.device("meta"):
        family = build(plan)
    strange = sorted(set(plan.stages) - set(family.stages))
    if strange:
        expected = " or ".join(family.stages)
        raise PlanError("stages: the family has no such stage", got=strange[0], expected=expected)
    stages = []
    for name in family.stages:
        turns = sum(step.repeats for step in family.steps(name) if step.reads_patients)
        stages.append(Stage(name, plan.stages.get(name, plan.rounds), turns))
    return Schedule(tuple(stages))


def build(plan: StudyPlan) -> Family:
    """Return the plan's family with first weights that depend on the plan's digest alone.

    Raises:
        PlanError: as in `check`.
    """
    spec = check(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(plan.digest[:15], 16))
        return Vae(spec)
