"""StudyPlan: the study file that the coordinator signs and every site approves."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from .condition import ConditionSettings, Percentiles, Rising
from .errors import PlanError
from .tables import Table

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Side = Annotated[int, Field(ge=8, le=512)]
NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
Trained = Literal["all", "attention", "normalisation-and-biases", "adapters"]


class VolumeSettings(Table):
    """How a site turns each scan into a float32 volume (1, D, H, W) in [-1, 1], RAS orientation."""

    shape: tuple[Side, Side, Side] = Field(
        description="three voxel counts from 8 to 512, as (D, H, W)"
    )
    spacing: tuple[Positive, Positive, Positive] = Field(
        description="three voxel sizes above 0, in mm"
    )
    modality: str = Field(
        "", description='the image suffix, e.g. "T1w" or "ct"; "" takes every image'
    )
    intensity: Literal["percentiles", "window"] = Field(
        "percentiles", description='"percentiles" (MRI) or "window" (CT, in HU)'
    )
    percentiles: Percentiles = Field(
        (0.5, 99.5), description="two rising percentiles from 0 to 100, of each volume alone"
    )
    window: Rising = Field((-1000.0, 1000.0), description="lower and upper HU, rising")


class OptimiserSettings(Table):
    """The optimiser of every site, started afresh each round."""

    name: Literal["adam", "sgd"] = Field("adam", description='"adam" or "sgd"')
    learning_rate: Positive = Field(description="a step size above 0, e.g. 3e-4")


class PrivacySettings(Table):
    """What bounds a patient's influence; these settings can change epsilon."""

    enabled: bool = Field(True, description="true, or false to train without differential privacy")
    epsilon: float = Field(8.0, gt=0, le=100, description="the budget of this study, above 0")
    delta: float = Field(1e-5, gt=0, lt=1e-2, description="below 1 / patients, e.g. 1e-5")
    clip_norm: Positive = Field(
        1.0, description="the largest norm of a patient's gradient, above 0"
    )
    volumes_per_patient: Count = Field(
        1, description="volumes of a patient read in one step, 1 or more"
    )
    noise_multiplicity: Count = Field(
        1, description="noise draws averaged per volume before clipping, 1 or more; costs no budget"
    )
    metric_noise: Positive | None = Field(
        None,
        description="noise multiplier of the mean loss sent each round; leave out to send none",
    )
    audit_counts: Literal["noised", "exact"] = Field(
        "noised", description='"noised" (charged) or "exact" (not covered by epsilon)'
    )
    audit_noise: Positive = Field(10.0, description="noise multiplier of audit counts, above 0")
    audits: int = Field(
        2, ge=1, le=10, description="audits that a site answers in this study, 1 to 10"
    )
    reference_models: int = Field(
        0,
        ge=0,
        le=32,
        description="0 to 32 models that each site trains on halves of its audited patients to"
        " attack with; 0: none",
    )
    canaries: int = Field(
        0,
        ge=0,
        le=1000,
        description="0 to 1000 phantom patients with a marker that each site adds, to prove how"
        " much the model keeps of a patient; 0: none",
    )
    evaluations: int = Field(
        0,
        ge=0,
        le=10,
        description="evaluations that a site answers, 0 to 10; their figures leave exactly, and"
        " epsilon does not cover them",
    )


class AggregationSettings(Table):
    """How the coordinator joins the sites' updates."""

    quorum: Count = Field(2, description="sites that must reply before a round counts, 1 or more")
    deadline: float = Field(3600.0, gt=0, description="seconds a round waits for its sites")
    approval_deadline: float = Field(
        86400.0, gt=0, description="seconds that sites have to approve this plan"
    )
    update_norm: Positive = Field(
        1e4, description="largest norm of a site's update; a larger one is dropped"
    )


class StartFile(Table):
    """A file of public weights, named by its digest."""

    weights: str = Field(description="a safetensors file beside the study file")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits, its SHA-256")


class StartSettings(Table):
    """Public weights that the first round starts from: of the whole family, or of some stages."""

    weights: str | None = Field(None, description="a safetensors file beside the study file")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits, its SHA-256"
    )
    stages: dict[str, StartFile] = Field(
        default_factory=dict, description="a [start.stages.NAME] table for each stage of them"
    )

    @model_validator(mode="after")
    def _whole_or_stages(self) -> Self:
        if (self.weights is None) != (self.sha256 is None):
            raise ValueError("weights and sha256 belong together")
        if (self.weights is None) == (not self.stages):
            raise ValueError("give weights and sha256, or tables of stages, and not both")
        return self

    @property
    def whole(self) -> StartFile | None:
        """The file of the whole family, if it is one."""
        if self.weights is None or self.sha256 is None:
            return None
        return StartFile(weights=self.weights, sha256=self.sha256)

    def covers(self, stage: str) -> bool:
        """Say whether a stage starts from public weights."""
        return self.weights is not None or stage in self.stages


class NamedOfficer(Table):
    """A privacy officer whom all sites know from the plan that they approved."""

    hospital: str = Field(pattern=NAME, description="the site that the officer speaks for")
    key: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="the key on the officer's card, 64 digits"
    )


class ReleaseRules(Table):
    """What the release gate checks; see privacy/release.py for each rule."""

    officers: Count = Field(2, description="privacy officers who must approve, 1 or more")
    named: dict[Annotated[str, Field(pattern=NAME)], NamedOfficer] = Field(
        default_factory=dict,
        description="a [release.named.NAME] table of each officer whose word counts; none: any",
    )
    hospitals: tuple[str, ...] = Field(
        (), description="sites of each of which a named officer must approve"
    )
    auc_block: float = Field(
        0.60, gt=0.5, lt=1, description="block above this lower 95 % bound of any site's AUC"
    )
    rate_block: float = Field(
        0.03,
        gt=0.01,
        lt=1,
        description="block above this lower bound of the members found at 1 % false alarms",
    )
    auc_half_width: Positive = Field(
        0.08, description="widest 95 % half-width of the AUC that may PASS"
    )
    allow_without_privacy: bool = Field(
        False, description="true lets a model trained without privacy be released"
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.named and self.officers > len(self.named):
            raise ValueError("release.officers is more than release.named has")
        if len({one.key for one in self.named.values()}) < len(self.named):
            raise ValueError("two officers in release.named have one key")
        missing = set(self.hospitals) - {one.hospital for one in self.named.values()}
        if missing:
            names = ", ".join(sorted(missing))
            raise ValueError(f"release.hospitals asks for sites without a named officer: {names}")
        return self


class StudyPlan(Table):
    """One study, frozen and validated; its digest is that of the very bytes of the file."""

    name: str = Field(pattern=NAME, description="lower-case letters, digits and hyphens")
    family: str = Field(description="a family that `voxfed models` lists")
    settings: dict[str, Any] = Field(default_factory=dict, description="the family's own settings")
    rounds: int = Field(ge=1, le=100_000, description="federated rounds of a stage, 1 or more")
    stages: dict[str, Annotated[int, Field(ge=0, le=100_000)]] = Field(
        default_factory=dict,
        description="rounds of stages that need another number; 0 leaves one as it starts",
    )
    local_steps: Count = Field(description="optimiser steps of a site in a round, 1 or more")
    expected_patients: Count = Field(description="patients drawn per step on average, 1 or more")
    trained: Trained = Field(
        "all", description='"all", "attention", "normalisation-and-biases" or "adapters"'
    )
    audit_fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of patients that flip a coin for the audit, above 0 to 1",
    )
    volumes: VolumeSettings = Field(description="a [volumes] table")
    optimiser: OptimiserSettings = Field(description="an [optimiser] table")
    privacy: PrivacySettings = Field(description="a [privacy] table")
    condition: ConditionSettings | None = Field(None, description="a [condition] table, or none")
    aggregation: AggregationSettings = Field(
        default_factory=AggregationSettings, description="an [aggregation] table"
    )
    start: StartSettings | None = Field(None, description="a [start] table, or none")
    release: ReleaseRules = Field(default_factory=ReleaseRules, description="a [release] table")
    _text: bytes = PrivateAttr(default=b"")

    @model_validator(mode="after")
    def _bounded_draws(self) -> Self:
        if self.privacy.noise_multiplicity * self.privacy.volumes_per_patient > 1024:
            raise ValueError("volumes_per_patient x noise_multiplicity is over 1024")
        return self

    @model_validator(mode="after")
    def _references(self) -> Self:
        needed = {
            "2 or more of them": self.privacy.reference_models > 1,
            'privacy.audit_counts = "exact"': self.privacy.audit_counts == "exact",
            'optimiser.name = "adam"': self.optimiser.name == "adam",
            'trained = "all"': self.trained == "all",
            "no [start], whose weights sites do not hold": self.start is None,
        }
        missing = ", ".join(what for what, holds in needed.items() if not holds)
        if self.privacy.reference_models and missing:
            raise ValueError(f"privacy.reference_models needs {missing}")
        return self

    @model_validator(mode="after")
    def _unconditioned_canaries(self) -> Self:
        if self.privacy.canaries and self.condition is not None:
            raise ValueError(
                "privacy.canaries needs a study without a [condition]: a phantom has none"
            )
        return self

    @model_validator(mode="after")
    def _two_images(self) -> Self:
        suffix = self.condition.suffix.lower() if self.condition else ""
        if suffix and self.volumes.modality.lower() in ("", suffix):
            raise ValueError("condition.suffix and volumes.modality must name two images")
        return self

    @classmethod
    def from_text(cls, text: bytes, *, file: str = "the study file") -> Self:
        """Read a plan; raise PlanError naming every wrong, missing and unknown key at once."""
        plan = cls.parse(text, file=file, error=PlanError)
        plan._text = text
        return plan

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the plan in `path`; raise PlanError where it is not there or is wrong."""
        try:
            text = path.read_bytes()
        except OSError as fault:
            raise PlanError(
                f"{path} cannot be read: {fault.strerror}", hint="name a study file"
            ) from None
        return cls.from_text(text, file=path.name)

    @property
    def text(self) -> bytes:
        """The bytes of the file as they were read and are signed."""
        return self._text

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal."""
        return hashlib.sha256(self._text).hexdigest()


def safe_name(name: str, *, what: str) -> str:
    """Return `name` if it can stand in a path and a URL; raise PlanError otherwise."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
        raise PlanError(
            f"{what} cannot be used as a name",
            got=repr(name[:60]),
            expected="lower-case letters, digits and hyphens",
        )
    return name
