"""Terms: what a plan and a site's declared size fix for the whole study, sigma above all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..study.errors import Refusal
from ..study.plan import StudyPlan
from ..study.schedule import Schedule
from .accounting import Event, merge, training_event
from .calibration import calibrate_sigma

LEAST_DECLARED = 5


@dataclass(frozen=True)
class Terms:
    """The constants of a study at a site; none depends on who was drawn.

    Attributes:
        declared: patients of the site, rounded down to a multiple of 5; public.
        rate: the probability q that a member is drawn for a step.
        divisor: what the noised sum of a step is divided by, the expected number of patients.
        sigma: the noise multiplier of a training step; 0 without privacy.
        schedule: the stages with their rounds and turns.
        per_round: the events of one round of each stage, by the stage's name.
        per_audit: the events of one audit.
        whole: the events of the whole study, reserved at approval.
    """

    declared: int
    rate: float
    divisor: float
    sigma: float
    schedule: Schedule
    per_round: Mapping[str, tuple[Event, ...]]
    per_audit: tuple[Event, ...]
    whole: tuple[Event, ...]


def declared_size(patients: int) -> int:
    """Return the size that a site declares: rounded down to a multiple of 5.

    Raises:
        Refusal: fewer than 5 patients.
    """
    if patients < LEAST_DECLARED:
        raise Refusal(
            "the cohort is too small for a study",
            got=f"{patients} patients",
            expected=f"{LEAST_DECLARED} or more",
            hint="add patients, or choose another modality in the study file",
        )
    return patients // 5 * 5


def agree(plan: StudyPlan, declared: int) -> Terms:
    """Return the terms of `plan` at a site that declares `declared` patients.

    Guarantee:
        All that the study releases about a patient, noised audits and metrics included, costs at
        most the plan's epsilon at its delta.
    Assumes:
        `declared` is public and constant; members are the patients left after half of the audit
        fraction is held out, on average.

    Raises:
        LimitRefusal: no useful amount of noise reaches the plan's epsilon.
    """
    from ..models.registry import schedule_of

    schedule = schedule_of(plan)
    if not plan.privacy.enabled:
        return terms_with(plan, declared, 0.0, schedule)
    sigma = calibrate_sigma(
        rate=_rate(plan, declared),
        steps=schedule.steps(plan.local_steps),
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        others=(*_metric(plan) * schedule.rounds, *_audit(plan) * plan.privacy.audits),
    )
    return terms_with(plan, declared, sigma, schedule)


def terms_with(plan: StudyPlan, declared: int, sigma: float, schedule: Schedule) -> Terms:
    """Return the terms of `plan` for a noise multiplier and a schedule that `agree` found."""
    rate = _rate(plan, declared)
    divisor = rate * _members(plan, declared)
    if not plan.privacy.enabled:
        nothing: dict[str, tuple[Event, ...]] = {stage.name: () for stage in schedule.stages}
        return Terms(declared, rate, divisor, 0.0, schedule, nothing, (), ())
    metric, audit = _metric(plan), _audit(plan)
    per_round: dict[str, tuple[Event, ...]] = {
        # a stage that reads nobody has neither noisy steps nor a loss to tell
        stage.name: (training_event(sigma, rate, plan.local_steps * stage.turns), *metric)
        if stage.turns
        else ()
        for stage in schedule.stages
    }
    whole = [event for s in schedule.stages for event in per_round[s.name] * s.rounds]
    whole += audit * plan.privacy.audits
    return Terms(declared, rate, divisor, sigma, schedule, per_round, audit, merge(whole))


def _members(plan: StudyPlan, declared: int) -> float:
    """Return how many of the declared patients train on average: half of the flips are heads."""
    return declared * (1 - plan.audit_fraction / 2)


def _rate(plan: StudyPlan, declared: int) -> float:
    return min(1.0, plan.expected_patients / _members(plan, declared))


def _metric(plan: StudyPlan) -> tuple[Event, ...]:
    noise = plan.privacy.metric_noise
    return () if noise is None else (Event("gaussian", noise, 1, 1),)


def _audit(plan: StudyPlan) -> tuple[Event, ...]:
    exact = plan.privacy.audit_counts == "exact"
    return () if exact else (Event("gaussian", plan.privacy.audit_noise, 1, 1),)
