"""One round of training at a site: local steps from the global tensors to an update."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.base import Family, Step
from ..models.registry import build
from ..models.state import load_into
from ..models.trained import add_adapters, freeze_the_rest, stage_parameters
from ..privacy.engine import StepSettings, open_gradient, private_gradient, private_mean
from ..privacy.gradients.patients import PatientGradients
from ..privacy.gradients.performance import PerformanceSettings
from ..privacy.inspection import example, inspect_family
from ..privacy.terms import Terms
from ..study.errors import ProcessError
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


def prepare(plan: StudyPlan, device: torch.device) -> Family:
    """Return the plan's family on `device` with only its trained part learning."""
    family = build(plan)
    if plan.trained == "adapters":
        add_adapters(family)
    family.to(device)
    freeze_the_rest(family, plan.trained)
    return family


class _Turn(NamedTuple):
    """A step of this round with what it moves."""

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
        self.family = prepare(plan, device)
        self._performance = performance
        self._trained = {n: p for n, p in self.family.named_parameters() if p.requires_grad}
        self._ways: dict[str, PatientGradients] = {}
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
        self.family.train()
        turns = [self._turn(step) for step in self.family.steps(stage)]
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
        step = next(step for step in self.family.steps(stage) if step.reads_patients)
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

    def _turn(self, step: Step) -> _Turn:
        parameters = [self._trained[name] for name in step.parameters if name in self._trained]
        return _Turn(step, parameters, self._optimiser(parameters))

    def _take(
        self, turn: _Turn, scans: Scans, members: tuple[str, ...], generator: torch.Generator
    ) -> None:
        """Take one optimiser step along the gradient of one draw."""
        drawn = members, scans.batches, self._settings(), generator
        if not turn.step.reads_patients:
            loss = turn.step.loss(None, generator).mean()
            parts = list(torch.autograd.grad(loss, turn.parameters))
        elif self.plan.privacy.enabled:
            parts = private_gradient(self._way(turn.step, turn.parameters), *drawn)
        else:
            parts = open_gradient(turn.step, turn.parameters, *drawn)
        for parameter, part in zip(turn.parameters, parts, strict=True):
            parameter.grad = part.to(parameter)
        turn.optimiser.step()

    def _way(self, step: Step, parameters: Sequence[Tensor]) -> PatientGradients:
        """Return the way to a step's gradients, found out when the step is met first."""
        if step.name not in self._ways:
            volumes = example(self.plan.volumes.shape, self.device)
            self._ways[step.name] = PatientGradients(
                self.family, step, parameters, volumes, self._performance
            )
        return self._ways[step.name]

    @property
    def notes(self) -> dict[str, Any]:
        """How gradients were taken, and patients that counted as zero; for the site's eyes only."""
        return {
            name: {"way": way.way, "not finite": way.not_finite} for name, way in self._ways.items()
        }

    def _optimiser(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        rate = self.plan.optimiser.learning_rate
        if self.plan.optimiser.name == "adam":
            return torch.optim.Adam(parameters, lr=rate)
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
