"""The model card that every release carries, in words for whoever receives the weights."""

from __future__ import annotations

from collections.abc import Sequence

from ..study.figures import FigureRow
from ..study.plan import StudyPlan
from .audit.report import AuditReport
from .evidence import TOGETHER
from .quality import Quality

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


def model_card(
    plan: StudyPlan,
    report: AuditReport,
    quality: Quality | None = None,
    forgotten: Sequence[str] | None = None,
) -> str:
    """Returns the card as Markdown: use, data in coarse numbers, quality, privacy, history, limits.

    Args:
        plan: the study's plan.
        report: the audit of the weights.
        quality: their evaluation, if there was one.
        forgotten: one line for each patient or hospital that the model was made to forget, and
            how; empty where it is known that nobody asked, None where it is not known.
    """
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
            "## Quality",
            _quality(plan, quality),
            "## Privacy",
            _privacy(report),
            "## Unlearning history",
            _history(forgotten),
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
    worst = next((m for m in report.memberships if m.site != TOGETHER), None)
    attack = (
        "Attack result (lower bound): members told from non-members with AUC "
        f"{worst.auc.value:.2f} (95 % interval {worst.auc.low:.2f} to {worst.auc.high:.2f}) "
        f"at {worst.site}, the worst site."
        if worst
        else "Attack result (lower bound): none was measured."
    )
    lines = [claim, attack, _proved(report)]
    lines += [f"Not covered by epsilon: {line}." for line in report.not_covered]
    lines += [line for line in report.notes if "pseudo-patients" in line]
    return "\n".join(f"- {line}" for line in lines)


def _proved(report: AuditReport) -> str:
    """Returns the best lower bound on epsilon, and the most that so many patients could prove."""
    if not report.bounds:
        return "Proved lower bound on epsilon: none; the audit's counts allow none."
    best = report.bounds[0]
    return (
        f"Proved lower bound: epsilon at least {best.general:.2f} at delta {report.delta:g} with "
        f"95 % confidence, by {best.score} at {best.place}, where so many coins could prove at "
        f"most {best.cap:.2f}; if the mechanism is a Gaussian one, at least {best.gaussian:.2f} "
        f"of at most {best.gaussian_cap:.2f}. A low value is low power, not safety."
    )


def _quality(plan: StudyPlan, quality: Quality | None) -> str:
    if quality is None:
        return f"Not measured: run `voxfed evaluate {plan.name}` before the release is built."
    rows = [
        "| figure | better | all hospitals (95 % interval) | n | real against real | worst |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows += [_row(row, quality) for row in quality.together if row.group == "all"]
    sites = ", ".join(site.site for site in quality.sites)
    lines = [
        f"Of these very weights, on held-out patients of {sites}; features: {quality.extractor}. "
        "`evaluation.json` holds the figures that each hospital signed, and those by sex and age. "
        "They are exact: epsilon does not cover them.",
        "\n".join(rows),
    ]
    lines += [f"Not evaluated at {site}: {code}." for site, code in quality.refused.items()]
    return "\n\n".join(lines)


def _row(row: FigureRow, quality: Quality) -> str:
    name = quality.worst.get(row.name, "")
    own = [
        found.value
        for site in quality.sites
        for found in site.figures
        if (site.site, found.name, found.group) == (name, row.name, "all")
    ]
    cells = [
        row.name,
        row.better,
        f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})",
        str(row.n),
        "none" if row.real is None else f"{row.real:.3g}",
        f"{name}: {own[0]:.3g}" if own else "",
    ]
    return f"| {' | '.join(cells)} |"


def _history(forgotten: Sequence[str] | None) -> str:
    if forgotten is None:
        return "Not recorded."
    lines = [f"- {line}" for line in forgotten]
    return "\n".join(lines) or "No patient and no hospital has asked to be forgotten."
