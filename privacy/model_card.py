"""The model card that every release carries, in words for whoever receives the weights."""

from __future__ import annotations

from ..study.plan import StudyPlan
from .audit.report import AuditReport

INTENDED_USE = (
    "Research on methods: drawing synthetic volumes to develop, teach and test software. Not for "
    "diagnosis, not for treatment, not as the only evidence that a method works on patients."
)
HALLUCINATION = (
    "**Anatomy that this model draws is invented.** It may be impossible, may lack or add organs "
    "and lesions, and looks most convincing where it is wrong. A synthetic volume says nothing "
    "about any patient, and how often a finding appears in synthetic volumes says nothing about "
    "a population."
)


def model_card(plan: StudyPlan, report: AuditReport) -> str:
    """Returns the card as Markdown: use, data by site in coarse numbers, privacy, limits."""
    return "\n\n".join(
        [
            f"# {plan.name}: a 3D generative model ({plan.family})",
            f"Weights: sha256 `{report.weights_digest}`",
            "## Intended use",
            INTENDED_USE,
            "## What it draws",
            HALLUCINATION,
            _volumes(plan),
            "## Data",
            _data(report),
            "## Privacy",
            _privacy(report),
            "## Limits",
            "\n".join(f"- Not tested: {line}." for line in report.not_tested),
            "## Audit",
            f"Verdict **{report.verdict.value}**; `audit.html` shows the evidence, `audit.json` "
            "holds the hospitals' signed replies, and `voxfed release verify` checks them.",
        ]
    ) + "\n"  # fmt: skip


def _volumes(plan: StudyPlan) -> str:
    shape = " x ".join(str(side) for side in plan.volumes.shape)
    spacing = " x ".join(f"{side:g}" for side in plan.volumes.spacing)
    return (
        f"Volumes of {shape} voxels of {spacing} mm, RAS orientation, intensities in [-1, 1] "
        f"({plan.volumes.intensity}), trained for {plan.rounds} rounds of {plan.local_steps} steps."
    )


def _data(report: AuditReport) -> str:
    rows = ["| site | patients, at least | faces removed | unit |", "| --- | --- | --- | --- |"]
    for site in sorted(report.sites, key=lambda site: site.site):
        unit = "volume (pseudo-patient)" if site.pseudo_patients else "patient"
        rows.append(f"| {site.site} | {site.declared_patients} | {site.defaced} | {unit} |")
    rows.extend(f"| {site} | not audited | | |" for site in report.absent)
    return "\n".join([*rows, "", "Numbers are rounded down to a multiple of 5."])


def _privacy(report: AuditReport) -> str:
    if report.private and report.epsilon is not None:
        claim = (
            f"Accounted upper bound (proof): epsilon {report.epsilon:.3g} at delta "
            f"{report.delta:g} for one patient with all volumes, the most of any site."
        )
    else:
        claim = "**Trained without privacy: nothing bounds what these weights hold of a patient.**"
    worst = report.memberships[0] if report.memberships else None
    attack = (
        "Attack result (lower bound): members told from non-members with AUC "
        f"{worst.auc.value:.2f} (95 % interval {worst.auc.low:.2f} to {worst.auc.high:.2f}) "
        f"at {worst.site}."
        if worst
        else "Attack result (lower bound): none was measured."
    )
    lines = [claim, attack]
    lines += [f"Not covered by epsilon: {line}." for line in report.not_covered]
    lines += [line for line in report.notes if "pseudo-patients" in line]
    return "\n".join(f"- {line}" for line in lines)
