"""The families by name: the only place where a string becomes a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import tomli_w
import torch

from ..study.errors import PlanError
from ..study.plan import StudyPlan
from ..study.schedule import Schedule, Stage
from ..study.tables import Table
from .alpha_wgan_gp import AlphaWganGp, AlphaWganGpSpec
from .base import Family
from .conditional_vae import ConditionalVae, ConditionalVaeSpec
from .conditioning import Conditioning
from .cycle_gan import CycleGan, CycleGanSpec
from .diffusion import Diffusion, DiffusionSpec
from .diffusion_25d import Diffusion25d, Diffusion25dSpec
from .ha_gan import HaGan, HaGanSpec
from .latent_diffusion import LatentDiffusion, LatentDiffusionSpec
from .pix2pix import Pix2Pix, Pix2PixSpec
from .pixel_cnn import PixelCnn, PixelCnnSpec
from .slice_vae import SliceVae, SliceVaeSpec
from .stylegan2 import StyleGan2, StyleGan2Spec
from .vae import Vae, VaeSpec
from .vq_transformer import VqTransformer, VqTransformerSpec
from .vqgan import Vqgan, VqganSpec
from .vqvae import Vqvae, VqvaeSpec
from .wavelet_diffusion import WaveletDiffusion, WaveletDiffusionSpec
from .wgan_gp import WganGp, WganGpSpec

TOLD = ("condition", "classes", "attributes", "weights")
"""Settings that follow from the plan's table [condition]."""


TASKS = {
    "none": "unconditional",
    "class": "class",
    "attributes": "attributes",
    "mask": "mask to image",
    "source": "translation",
}


@dataclass(frozen=True)
class Entry:
    """What the registry knows of a family.

    Attributes:
        family: the class.
        spec: its settings.
        title: its usual abbreviation.
        source: the paper that it comes from.
        obstacle: why it cannot be trained with differential privacy; nothing where it can.
    """

    family: Callable[[Any], Family]
    spec: type[Table]
    title: str
    source: str
    obstacle: str = ""


FAMILIES: dict[str, Entry] = {
    "vae": Entry(Vae, VaeSpec, "VAE", "Kingma and Welling 2014"),
    "conditional-vae": Entry(ConditionalVae, ConditionalVaeSpec, "CVAE", "Sohn et al. 2015"),
    "vqvae": Entry(Vqvae, VqvaeSpec, "VQ-VAE", "van den Oord et al. 2017"),
    "vqgan": Entry(Vqgan, VqganSpec, "VQ-GAN", "Esser et al. 2021, Khader et al. 2023"),
    "slice-vae": Entry(SliceVae, SliceVaeSpec, "2D slice VAE", "Volokitin et al. 2020"),
    "wgan-gp": Entry(WganGp, WganGpSpec, "WGAN-GP", "Gulrajani et al. 2017"),
    "alpha-wgan-gp": Entry(AlphaWganGp, AlphaWganGpSpec, "alpha-WGAN-GP", "Kwon et al. 2019"),
    "ha-gan": Entry(HaGan, HaGanSpec, "HA-GAN", "Sun et al. 2022"),
    "stylegan2": Entry(StyleGan2, StyleGan2Spec, "3D-StyleGAN", "Hong et al. 2021"),
    "pix2pix": Entry(Pix2Pix, Pix2PixSpec, "pix2pix", "Isola et al. 2017"),
    "cycle-gan": Entry(CycleGan, CycleGanSpec, "CycleGAN", "Zhu et al. 2017"),
    "diffusion": Entry(Diffusion, DiffusionSpec, "DDPM", "Dorjsembe et al. 2022"),
    "diffusion-2.5d": Entry(Diffusion25d, Diffusion25dSpec, "2.5D DDPM", "Peng et al. 2023"),
    "latent-diffusion": Entry(
        LatentDiffusion, LatentDiffusionSpec, "LDM", "Pinaya et al. 2022, Khader et al. 2023"
    ),
    "wavelet-diffusion": Entry(
        WaveletDiffusion, WaveletDiffusionSpec, "WDM", "Friedrich et al. 2024"
    ),
    "vq-transformer": Entry(
        VqTransformer, VqTransformerSpec, "VQ + transformer", "Pinaya et al. 2022"
    ),
    "pixel-cnn": Entry(
        PixelCnn, PixelCnnSpec, "3DPixelCNN", "Salimans et al. 2017 (PixelCNN++), in 3D as of 2019"
    ),
}


@dataclass(frozen=True)
class Description:
    """A row of `voxfed models`.

    Attributes:
        name: the family's name in a study file.
        title: its usual abbreviation.
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
    return tuple(FAMILIES)


def describe() -> tuple[Description, ...]:
    """Return a row for each family; builds each at its default settings on no device."""
    rows = []
    for name, entry in FAMILIES.items():
        with torch.device("meta"):
            family = entry.family(entry.spec.model_validate({"shape": (64, 64, 64)}))
        rows.append(
            Description(
                name=name,
                title=entry.title,
                tasks=tuple(TASKS[kind] for kind in _kinds(entry.spec)),
                stages=family.stages,
                parameters=sum(weight.numel() for weight in family.parameters()),
                privacy=f"no: {entry.obstacle}" if entry.obstacle else "yes",
                source=entry.source,
            )
        )
    return tuple(rows)


def _kinds(spec: type[Table]) -> tuple[str, ...]:
    """Return the kinds of condition that a family can be told."""
    if "condition" in spec.model_fields:
        return get_args(spec.model_fields["condition"].annotation)
    takes = getattr(spec.model_validate({"shape": (64, 64, 64)}), "conditioning", None)
    return (takes.kind if takes else "none",)


def check(plan: StudyPlan) -> Table:
    """Return the spec that the plan asks for.

    Raises:
        PlanError: unknown family, settings that are wrong (it names every wrong key at once), a
            condition that the family does not take, or needs, or a budget for a family that
            cannot be trained with privacy.
    """
    if plan.family not in FAMILIES:
        known = ", ".join(names())
        raise PlanError("unknown family", got=plan.family, expected=known, hint="voxfed models")
    if plan.privacy.enabled and FAMILIES[plan.family].obstacle:
        raise PlanError(
            f"the family {plan.family} cannot be trained with privacy",
            got=FAMILIES[plan.family].obstacle,
            hint="choose one of which `voxfed models` says yes, or privacy.enabled = false",
        )
    for key, where in {"shape": "volumes", **dict.fromkeys(TOLD, "condition")}.items():
        if key in plan.settings:
            raise PlanError(f"settings.{key}: unknown key", hint=f"it stands in [{where}]")
    made = FAMILIES[plan.family].spec
    table = {**plan.settings, **_told(plan, made), "shape": list(plan.volumes.shape)}
    try:
        text = tomli_w.dumps(table).encode()
    except (TypeError, ValueError):
        raise PlanError("the settings hold a value that TOML has not") from None
    spec = made.parse(text, file="the table [settings]", error=PlanError)
    takes = getattr(spec, "conditioning", None)
    _check_condition(plan, takes.kind if takes else "none")
    return spec


def conditioning(plan: StudyPlan) -> Conditioning:
    """Return what the plan's family is told, with the plan's weights of classes.

    Raises:
        PlanError: as in `check`.
    """
    takes = getattr(check(plan), "conditioning", None)
    if plan.condition is None or not isinstance(takes, Conditioning):
        return Conditioning("none", 0, 0, plan.volumes.shape)
    return replace(takes, weights=plan.condition.weights)


def _told(plan: StudyPlan, spec: type[Table]) -> dict[str, Any]:
    """Return the settings that follow from the plan's condition, as far as the family has them."""
    if plan.condition is None:
        return {}
    told = {
        "condition": plan.condition.kind,
        "classes": plan.condition.classes,
        "attributes": plan.condition.attributes,
        "weights": list(plan.condition.weights),
    }
    return {key: value for key, value in told.items() if key in spec.model_fields}


def _check_condition(plan: StudyPlan, takes: str) -> None:
    given = plan.condition.kind if plan.condition else "none"
    if given != takes:
        raise PlanError(
            f"the family {plan.family} is told another condition",
            got=given,
            expected=takes,
            hint="change the table [condition], or leave it out"
            if given != "none"
            else "add a table [condition]: what each volume's condition is read from",
        )


def faults(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with family and settings in a study file that is wrong elsewhere too."""
    family, volumes = values.get("family"), values.get("volumes")
    settings = values.get("settings", {})
    if family not in FAMILIES:
        return [f"family: unknown (got {family!r}, expected {', '.join(names())})"]
    shape = volumes.get("shape") if isinstance(volumes, dict) else None
    if not isinstance(settings, dict):
        return []
    table = {**settings, "shape": shape or [64, 64, 64]}
    try:
        FAMILIES[family].spec.checked(table, file="", error=PlanError)
    except PlanError as fault:
        lines = fault.what.splitlines()[1:]
        return [f"settings.{x.strip()}" for x in lines if not x.strip().startswith("shape")]
    return []


def schedule_of(plan: StudyPlan) -> Schedule:
    """Return the plan's stages with their rounds and the turns that read patients.

    Raises:
        PlanError: as in `check`, or the plan names a stage that the family has not, or no rounds.
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
    if not any(stage.rounds for stage in stages):
        raise PlanError("stages: every stage has 0 rounds", expected="1 or more of one stage")
    return Schedule(tuple(stages))


def build(plan: StudyPlan) -> Family:
    """Return the plan's family with first weights that depend on the plan's digest alone.

    Raises:
        PlanError: as in `check`.
    """
    spec = check(plan)
    made = FAMILIES[plan.family].family
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(plan.digest[:15], 16))
        return made(spec)
