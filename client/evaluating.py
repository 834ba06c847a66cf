"""Evaluations at the site: whom the samples are compared with, and which figures leave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..study.errors import VolumeError
from ..study.figures import FigureRow, Intensities
from ..study.messages import Evaluated, EvaluationRequest
from .participants import number_of, read_participants
from .site import Site

if TYPE_CHECKING:
    from ..models.quality.features import Extractor
    from .manifest import Manifest
    from .warm import Warm

FEWEST = 5
"""Patients that a figure rests on at least, or it does not leave."""
DIGITS = 4
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}
BAND = 10
OLDEST = 120


def summary(request: EvaluationRequest) -> str:
    """Return what an operator compares before allowing an evaluation."""
    return (
        f"weights sha256 {request.weights_digest[:16]}, "
        f"extractor sha256 {request.extractor_digest[:16]}, {request.samples} samples"
    )


def enough(manifest: Manifest) -> bool:
    """Return whether as many patients were held out as a figure needs."""
    from ..models.quality.intervals import LEAST

    return len(manifest.held_out) >= LEAST


def evaluate(
    site: Site, warm: Warm, request: EvaluationRequest, digest: str, extractor: Extractor
) -> Evaluated:
    """Draw samples, compare them with held-out patients, and return the figures.

    Guarantee: none; the figures are exact, about patients who were held out and members whose
        coin was flipped, and no epsilon covers them. Each rests on 5 patients or more, is rounded
        to 4 digits, and is given for a group only as `shown_groups` allows.
    """
    import torch

    from ..models.quality import evaluation
    from ..models.quality.cost import cost_of_sample

    manifest, seed = warm.approval.manifest, int(request.weights_digest[:15], 16)
    family = warm.trainer.family
    family.eval()
    cohort = evaluation.Cohort(
        read=warm.scans.batches,
        held_out=manifest.held_out,
        members=manifest.audited_members,
        strata=_strata(site),
        spacing=warm.approval.plan.volumes.spacing,
    )
    found = evaluation.evaluate(family, extractor, cohort, samples=request.samples, seed=seed)
    cost = cost_of_sample(
        family,
        condition=warm.scans.batches(manifest.held_out[0])[0].condition,
        generator=torch.Generator(warm.trainer.device).manual_seed(seed),
    )
    return Evaluated(
        study=request.study,
        request_digest=digest,
        weights_digest=request.weights_digest,
        extractor_digest=extractor.digest,
        samples=request.samples,
        figures=tuple(
            FigureRow(
                name=figure.name,
                group=group,
                value=_rounded(figure.value),
                low=_rounded(figure.low),
                high=_rounded(figure.high),
                n=figure.n,
                real=None if figure.real is None else _rounded(figure.real),
                better=figure.better,
            )
            for group, figures in found.figures.items()
            for figure in figures
            if figure.n >= FEWEST and math.isfinite(figure.value)
        ),
        intensities=Intensities(
            samples=tuple(map(_rounded, found.samples)),
            held_out=tuple(map(_rounded, found.held_out)),
        ),
        seconds=_rounded(cost.seconds),
        flops=cost.flops,
        memory=cost.memory,
        pseudo_patients=site.settings.pseudo_patients,
    )


def _strata(site: Site) -> dict[str, dict[str, set[str]]]:
    try:
        return strata(read_participants(site.cohort))
    except VolumeError as fault:  # figures of everybody need no table
        site.journal.append("no groups", reason=fault.message)
        return {}


def strata(participants: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, set[str]]]:
    """Return patients by sex and by age in bands of ten years; who has no value is in no group."""
    found: dict[str, dict[str, set[str]]] = {"sex": {}, "age": {}}
    for patient, row in participants.items():
        told = {column.strip().lower(): value.strip().lower() for column, value in row.items()}
        sex, band = SEXES.get(told.get("sex", "")), _band(told.get("age", ""))
        if sex:
            found["sex"].setdefault(f"sex {sex}", set()).add(patient)
        if band:
            found["age"].setdefault(band, set()).add(patient)
    return found


def _band(age: str) -> str:
    """Return the band of an age in years, or nothing where it is no age."""
    years = number_of(age)
    if years is None or not 0 <= years <= OLDEST:
        return ""
    first = int(years) // BAND * BAND
    return f"age {first} to {first + BAND - 1}"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
