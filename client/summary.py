"""Summary: what an operator reads of a plan before deciding about it."""

from __future__ import annotations

from typing import Any

from ..privacy.audit.shadows import local_steps
from ..privacy.terms import agree, declared_size
from ..study.errors import VoxfedError
from ..study.plan import StudyPlan
from .approval import Approval
from .cohort import read_cohort
from .permission import KINDS, permissions
from .rehearsal import rehearse
from .site import Site


def summary(site: Site, approval: Approval) -> dict[str, Any]:
    """Return what an operator must know to decide about one plan."""
    plan = approval.plan
    facts: dict[str, Any] = {
        "study": plan.name,
        "state": approval.state,
        "who asks": f"coordinator, key {site.coordinator_key.identifier}",
        "family": plan.family,
        "reads beside each volume": plan.condition.summary if plan.condition else "nothing",
        "rounds": plan.rounds,
        "epsilon asked": plan.privacy.epsilon if plan.privacy.enabled else "NO PRIVACY",
        "lifetime left": f"{site.ledger.lifetime_left():.3f}",
        "what leaves": ", ".join(_leaving(approval)),
        "waiting": "; ".join(_waiting(approval)) or "nothing",
    }
    if approval.state == "pending":
        try:
            cohort = read_cohort(site.cohort, plan.volumes.modality, plan.condition)
            patients = len(cohort.patients)
            terms = agree(plan, declared_size(patients))
            facts["noise multiplier"] = f"{terms.sigma:.3f}, sampling rate {terms.rate:.3f}"
            measured = rehearse(plan, site.settings.device, site.settings.performance)
            if plan.privacy.reference_models:
                facts["reference models"] = _trained_for_audits(plan)
            if plan.privacy.canaries:
                facts["canaries"] = _added(plan)
            facts["estimated hours"] = f"{measured.hours:.2f} on {measured.device}"
        except VoxfedError as fault:
            facts["cannot be approved"] = fault.message
    return facts


def _trained_for_audits(plan: StudyPlan) -> str:
    """Return what training an audit with reference models means here."""
    models, steps = plan.privacy.reference_models, sum(local_steps(plan).values())
    return (
        f"each of at most {plan.privacy.audits} audits trains {models} models here, {steps}"
        f" optimiser steps each, {models * steps} in all, WITHOUT PRIVACY, on halves of the"
        " patients whose coin was flipped; they are never written down, and dropped"
    )


def _added(plan: StudyPlan) -> str:
    """Return what adding canaries means here."""
    return (
        f"{plan.privacy.canaries} phantoms with a marker are added here, and a coin decides for"
        " each whether it trains beside the patients; the model learns a little of them, and an"
        " audit tells by them how much it keeps. No patient's epsilon changes"
    )


def _waiting(approval: Approval) -> list[str]:
    """Return the audits and evaluations that wait for the operator, with what they are about."""
    return [
        f"{kind} of round {asked.round}: {asked.about} (allow it with --{kind})"
        for kind in KINDS
        for asked in permissions(approval, kind)
        if not asked.number
    ]


def _leaving(approval: Approval) -> list[str]:
    """Return, by name, what leaves the site in this study."""
    privacy = approval.plan.privacy
    noised = "noised " if privacy.enabled else "EXACT "
    leaving = [
        "band of patients, modalities, spacing range, device and limits (asked at any time)",
        "declared size, faces removed or not",
        f"{noised}update of each round",
        "ledger head",
        "epsilon spent",
        "a code from a list for each refusal",
    ]
    if privacy.metric_noise is not None or not privacy.enabled:
        leaving.append(f"{noised}mean loss")
    copies = " and copy counts" if privacy.audit_counts == "exact" else ""
    shown = privacy.audit_counts.replace("exact", "EXACT")
    leaving.append(f"{shown} histograms{copies} of at most {privacy.audits} audits")
    if privacy.canaries:
        leaving.append("EXACT histograms of the scores of canaries, who are no patients")
    if privacy.reference_models:
        leaving.append("of the reference models nothing but EXACT histograms of two attacks")
    if privacy.evaluations:
        leaving.append(
            f"EXACT figures of at most {privacy.evaluations} evaluations, also by sex and age, and"
            " a histogram of intensities, of held-out patients and members whose coin was flipped:"
            " epsilon does not cover them; what a sample costs here in time and memory"
        )
    return leaving
