"""One round of training at a site: local steps from the global tensors to an update."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.base import Family, Step
from ..models.checkpointing import forget_activations
from ..models.registry import build, schedule_of
from ..models.state import load_into
from ..models.trained import add_adapters, freeze_the_rest, stage_parameters
from ..privacy.engine import StepSettings, open_gradient, private_gradient, private_mean
from ..privacy.gradients.patients import PatientGradients
from ..privacy.gradients.performance import PerformanceSettings
from ..privacy.gradients.precision import in_precision, sound_kernels
from ..privacy.inspection import example, inspect_family
from ..privacy.terms import Terms
from ..study.errors import PlanError, ProcessError
from ..study.plan import StudyPlan
from .scans import Scans


def choose_device(wanted: str) -> torch.device:
    """Return the device that site.toml asks for; "auto" takes a GPU if there is one.

    Raises:
        ProcessError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ProcessError(
            "site.toml asks for a GPU and none is usable",
            got="no CUDA device",
            expected='device = "auto" or "cpu", or a GPU visible to this process',
            hint="start the container with the GPU, or change device in site.toml",
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def prepare(plan: StudyPlan, device: torch.device, *, checkpointing: bool = False) -> Family:
    """Return the plan's family on `device` with only its trained part learning."""
    family = build(plan)
    if plan.trained == "adapters":
        add_adapters(family)
    family.to(device)
    freeze_the_rest(family, plan.trained)
    if checkpointing:
        forget_activations(family)
    return family


class _Turn(NamedTuple):
    """A step of this round with what it moves."""

    stage: str
    step: Step
    parameters: Sequence[Tensor]
    optimiser: torch.optim.Optimizer


class Trainer:
    """A warm model of one study that turns global tensors into an update."""

    def __init__(
        self,
        plan: StudyPlan,
        terms: Terms,
        device: torch.device,
        performance: PerformanceSettings,
    ) -> None:
        self.plan, self.terms, self.device = plan, terms, device
        self.family = prepare(plan, device, checkpointing=performance.checkpointing)
        self._performance = performance
        self._trained = {n: p for n, p in self.family.named_parameters() if p.requires_grad}
        self._gradients: dict[tuple[str, str], PatientGradients] = {}
        if schedule_of(plan) != terms.schedule:
            raise PlanError(
                "the family takes other turns than those that were approved and are charged",
                got=schedule_of(plan).written,
                expected=terms.schedule.written,
                hint="train this study with the version of voxfed that approved it",
            )
        inspect_family(self.family, plan.volumes.shape)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the global tensors into the model; raise WireError where they do not fit."""
        load_into(self.family, tensors)

    def train(self, stage: str, scans: Scans, members: tuple[str, ...]) -> dict[str, Tensor]:
        """Run the round's local steps and return the change of each trained tensor.

        An update that is not finite is sent, and charged, as zeros.

        Guarantee:
            With privacy enabled the update is post-processing of private gradients
            (privacy/engine.py), one for each turn that reads patients; their events are
            `terms.per_round[stage]`. A step that reads no patients is given no batch.
        """
        names = stage_parameters(self.family, stage)
        before = {name: self._trained[name].detach().clone() for name in names}
        generator = torch.Generator(self.device).manual_seed(secrets.randbits(63))
        torch.manual_seed(secrets.randbits(63))  # what layers draw by themselves is secret too
        self.family.train()
        turns = [self._turn(stage, step) for step in self.family.steps(stage)]
        for _ in range(self.plan.local_steps):
            for turn in turns:
                for _ in range(turn.step.repeats):
                    self._take(turn, scans, members, generator)
        update = {name: (self._trained[name].detach() - before[name]).cpu() for name in names}
        if all(bool(torch.isfinite(change).all()) for change in update.values()):
            return update
        # A refusal here would tell of draws that were never charged; zeros are post-processing.
        return {name: torch.zeros_like(change) for name, change in update.items()}

    def metrics(self, stage: str, scans: Scans, members: tuple[str, ...]) -> dict[str, float]:
        """Return the mean loss of the received model over the members, noised, or nothing.

        Guarantee:
            With privacy enabled, one Gaussian event of `metric_noise`, part of `terms.per_round`.
        """
        privacy = self.plan.privacy
        if privacy.enabled and privacy.metric_noise is None:
            return {}
        reading = [step for step in self.family.steps(stage) if step.reads_patients]
        if not reading:
            return {}
        step = reading[0]
        self.family.eval()
        losses = {}
        with torch.no_grad():
            for patient in members:
                # Its own draws, so that no patient moves what is measured on another.
                generator = torch.Generator(self.device).manual_seed(0)
                values = [float(step.loss(b, generator).mean()) for b in scans.batches(patient)]
                losses[patient] = sum(values) / len(values)
        if not privacy.enabled:
            return {"loss": sum(losses.values()) / len(losses)}
        assert privacy.metric_noise is not None  # noqa: S101, tells the type checker
        expected = self.terms.divisor / self.terms.rate
        return {"loss": private_mean(losses, expected, privacy.metric_noise)}

    def _turn(self, stage: str, step: Step) -> _Turn:
        parameters = [self._trained[name] for name in step.parameters if name in self._trained]
        return _Turn(stage, step, parameters, self._optimiser(step, parameters))

    def _take(
        self, turn: _Turn, scans: Scans, members: tuple[str, ...], generator: torch.Generator
    ) -> None:
        """Take one optimiser step along the gradient of one draw."""
        cohort = members, scans.batches, self._settings(), generator
        precision = self._performance.precision
        step = in_precision(turn.step, precision)
        with sound_kernels(precision, self.device):
            if not step.reads_patients:
                loss = step.loss(None, generator).mean()
                parts = list(torch.autograd.grad(loss, turn.parameters))
            elif self.plan.privacy.enabled:
                parts = private_gradient(self._patient_gradients(turn), *cohort)
            else:
                parts = open_gradient(step, turn.parameters, *cohort)
        for parameter, part in zip(turn.parameters, parts, strict=True):
            parameter.grad = part.to(parameter)
        turn.optimiser.step()

    def _patient_gradients(self, turn: _Turn) -> PatientGradients:
        """Return what takes a step's gradients, made when the step is met first."""
        key = turn.stage, turn.step.name
        if key not in self._gradients:
            nobody = example(self.family, self.plan.volumes.shape)
            self._gradients[key] = PatientGradients(
                self.family, turn.step, turn.parameters, nobody, self._performance
            )
        return self._gradients[key]

    @property
    def notes(self) -> dict[str, Any]:
        """How gradients were taken, and patients that counted as zero; for the site's eyes only."""
        return {
            f"{stage}, {step}": {"passes": one.passes, "not finite": one.not_finite}
            for (stage, step), one in self._gradients.items()
        }

    def _optimiser(self, step: Step, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        rate = self.plan.optimiser.learning_rate
        if self.plan.optimiser.name == "adam":
            return torch.optim.Adam(parameters, lr=rate, betas=step.decays)
        return torch.optim.SGD(parameters, lr=rate)

    def _settings(self) -> StepSettings:
        privacy = self.plan.privacy
        return StepSettings(
            rate=self.terms.rate,
            divisor=self.terms.divisor,
            clip_norm=privacy.clip_norm,
            sigma=self.terms.sigma,
            volumes_per_patient=privacy.volumes_per_patient,
            noise_multiplicity=privacy.noise_multiplicity,
        )
