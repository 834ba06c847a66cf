"""Terms: what a plan and a site's declared size fix for the whole study, sigma above all."""

from __future__ import annotations

from dataclasses import dataclass

from ..study.errors import Refusal
from ..study.plan import StudyPlan
from .accounting import Event, calibrate_sigma, training_event

LEAST_DECLARED = 5


@dataclass(frozen=True)
class Terms:
    """The constants of a study at a site; none depends on who was drawn.

    Attributes:
        declared: patients of the site, rounded down to a multiple of 5; public.
        rate: the probability q that a member is drawn for a step.
        divisor: what the noised sum of a step is divided by, the expected number of patients.
        sigma: the noise multiplier of a training step; 0 without privacy.
        per_round: the events of one round.
        per_audit: the events of one audit.
        whole: the events of the whole study, reserved at approval.
    """

    declared: int
    rate: float
    divisor: float
    sigma: float
    per_round: tuple[Event, ...]
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
    members = declared * (1 - plan.audit_fraction / 2)
    rate = min(1.0, plan.expected_patients / members)
    if not plan.privacy.enabled:
        return Terms(declared, rate, rate * members, 0.0, (), (), ())
    privacy = plan.privacy
    metric = (
        (Event("gaussian", privacy.metric_noise, 1, 1),) if privacy.metric_noise is not None else ()
    )
    audit = (
        (Event("gaussian", privacy.audit_noise, 1, 1),) if privacy.audit_counts == "noised" else ()
    )
    others = metric * plan.rounds + audit * privacy.audits
    sigma = calibrate_sigma(
        rate=rate,
        steps=plan.steps,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        others=others,
    )
    training = training_event(sigma, rate, plan.local_steps)
    whole = (training_event(sigma, rate, plan.steps), *others)
    return Terms(declared, rate, rate * members, sigma, (training, *metric), audit, whole)
