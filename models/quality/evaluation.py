"""Evaluation: every figure of quality of a model's samples, beside patients who never trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import torch

from ..base import Batch, Family, joined
from ..conditioning import conditioning_of
from . import distances, neighbours
from .adherence import PAIRS, Visits, anatomy, translations
from .drawing import Drawn, draw
from .features import Extractor
from .intervals import (
    FEWEST,
    LEAST,
    Better,
    Figure,
    Measure,
    Rows,
    Statistic,
    averaged,
    compare,
    diversity,
)
from .segmentation import Spacing
from .utility import utility

EVERYBODY = "all"
BINS = 32
"""Of equal width from -1 to 1."""
LEAST_OF_A_GROUP = 20
LEAST_LEFT = 5
"""Patients that may stay unnamed beside given groups: fewer could be told by the difference."""

Groups = Mapping[str, Collection[str]]
Reader = Callable[[str], Sequence[Batch]]

DISTRIBUTION: tuple[tuple[str, Statistic, Better, tuple[float, float]], ...] = (
    ("FID", distances.fid, "lower", (0, np.inf)),
    ("KID", distances.kid, "lower", (-np.inf, np.inf)),
    ("MMD", distances.mmd, "lower", (-np.inf, np.inf)),
    ("precision", neighbours.precision, "higher", (0, 1)),
    ("recall", neighbours.recall, "higher", (0, 1)),
    ("density", neighbours.density, "higher", (0, np.inf)),
    ("coverage", neighbours.coverage, "higher", (0, 1)),
    ("rarity", neighbours.rarity, "as real", (0, np.inf)),
)
"""Each figure's name, what computes it, which way is better, and its least and largest value."""
COSINE = 0, 2
"""The least and the largest cosine distance."""


@dataclass(frozen=True)
class Cohort:
    """The patients of one site that an evaluation may read.

    Attributes:
        read: from a patient to the volumes with what is told of them, each a batch of one.
        held_out: patients who never trained, `LEAST` or more.
        members: patients who trained, chosen by the same coins.
        strata: from an attribute, such as "sex", to its groups of patients.
        spacing: mm between voxels along D, H, W.
    """

    read: Reader
    held_out: Sequence[str]
    members: Sequence[str]
    strata: Mapping[str, Groups]
    spacing: Spacing


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: of everybody, under `EVERYBODY`, and of each group that may be given.
        samples: the share of the samples' voxels in each of `BINS` bins of intensity.
        held_out: that of the held-out patients, each counting alike.
    """

    figures: Mapping[str, list[Figure]]
    samples: tuple[float, ...]
    held_out: tuple[float, ...]


@dataclass(frozen=True)
class _Measured:
    """The features of each volume."""

    samples: Rows
    patients: Mapping[str, Rows]


def evaluate(
    family: Family, extractor: Extractor, cohort: Cohort, *, samples: int, seed: int
) -> Evaluation:
    """Draw samples and compare them with patients who never trained.

    Real against real is held-out patients against members, at the same n: the coins that parted
    them were fair.

    Guarantee: none; the figures are exact and no epsilon covers them.

    Args:
        family: in evaluation mode, on the device of the batches.
        extractor: what makes features of volumes.
        cohort: whom the samples are compared with.
        samples: synthetic volumes to draw, `LEAST` or more.
        seed: fixes the samples and every draw of the intervals.

    Raises:
        UsageError: fewer samples or patients than `LEAST`.
        VolumeError: the extractor cannot pass volumes of this shape.
    """
    rows = [[(name, batch) for batch in cohort.read(name)] for name in cohort.held_out]
    # each patient's first volume before anybody's second, so that few samples tell of many patients
    visits = [visit for turn in zip_longest(*rows) for visit in turn if visit is not None]
    drawn = draw(family, [batch for _, batch in visits], samples, seed)
    measured = _Measured(
        samples=extractor.features(drawn.volumes.to(visits[0][1].volumes.device)),
        patients={
            name: extractor.features(torch.cat([batch.volumes for batch in cohort.read(name)]))
            for name in (*cohort.held_out, *cohort.members)
        },
    )
    generator = np.random.default_rng(seed)
    found = {EVERYBODY: _figures(measured, cohort.held_out, cohort.members, generator)}
    real = [
        torch.cat([batch.volumes for batch in cohort.read(name)]).cpu().numpy()
        for name in cohort.held_out
    ]
    found[EVERYBODY].append(diversity(real, drawn.array, generator=generator))
    for groups in cohort.strata.values():
        found |= _by_group(measured, cohort, groups, generator)
    pairs = translations(drawn, visits)
    measures = [
        averaged(name, pairs.get(name, {}), better=better, generator=generator)
        for name, _, better in PAIRS
    ]
    for measure in (*measures, *_learned(family, drawn, visits, cohort, seed)):
        for group, figure in _told_of(measure, cohort.strata).items():
            found.setdefault(group, []).append(figure)
    return Evaluation(
        figures=found,
        samples=intensities([drawn.array]),
        held_out=intensities(real),
    )


def intensities(groups: Sequence[npt.NDArray[np.float32]]) -> tuple[float, ...]:
    """Return the share of voxels in each of `BINS` bins, the mean over the groups."""
    shares = [np.histogram(group, bins=BINS, range=(-1, 1))[0] / group.size for group in groups]
    return tuple(float(share) for share in np.mean(shares, axis=0))


def _told_of(measure: Measure, strata: Mapping[str, Groups]) -> dict[str, Figure]:
    """Return a measure's figure of everybody who has a value, and of each group of these."""
    whom: dict[str, Collection[str]] = {EVERYBODY: measure.patients}
    for groups in strata.values():
        whom |= shown_groups(groups, measure.patients)
    figures = {group: measure.figure(patients) for group, patients in whom.items()}
    return {group: figure for group, figure in figures.items() if figure is not None}


def _learned(
    family: Family, drawn: Drawn, visits: Visits, cohort: Cohort, seed: int
) -> list[Measure]:
    """Return the measures of networks that learn from members or samples: anatomy and utility.

    None where fewer than `FEWEST` members could teach them: those would be figures of these few.
    """
    shape = visits[0][1].volumes.shape[2:]
    takes = conditioning_of(family, (shape[0], shape[1], shape[2]))
    if takes.kind not in ("class", "mask") or len(cohort.members) < FEWEST:
        return []
    generator = torch.Generator().manual_seed(seed)
    members = [batch for name in cohort.members for batch in cohort.read(name)]
    found: list[Measure] = []
    if takes.kind == "mask":
        found += anatomy(drawn, visits, members, takes.classes, cohort.spacing, generator)
    synthetic, test, patients = told_and_tested(drawn, visits, apart=takes.kind == "mask")
    found += utility(joined(members), synthetic, test, patients, generator=generator)
    return found


def told_and_tested(drawn: Drawn, visits: Visits, *, apart: bool) -> tuple[Batch, Batch, list[str]]:
    """Return samples to learn from, real volumes to be tested on, and the patients of these.

    Args:
        drawn: samples of what held-out patients are told.
        visits: the held-out patients' volumes.
        apart: whether what made a sample could tell of the volume that is tested, as a mask does:
            every other patient's then make the samples, and the rest are tested, `FEWEST` or more.
    """
    names = list(dict.fromkeys(name for name, _ in visits))
    told = set(names[::2][: len(names) - FEWEST] if apart else names)
    device = visits[0][1].volumes.device
    samples = [
        Batch(drawn.volumes[number : number + 1].to(device), visits[visit][1].condition)
        for number, visit in enumerate(drawn.visits)
        if visits[visit][0] in told
    ]
    tested = [(name, batch) for name, batch in visits if not apart or name not in told]
    return joined(samples), joined([batch for _, batch in tested]), [name for name, _ in tested]


def shown_groups(groups: Groups, patients: Collection[str]) -> dict[str, list[str]]:
    """Return the groups whose figures may be given, each with those of `patients` in it.

    A group has `LEAST_OF_A_GROUP` patients or more, and whoever is in no such group is nobody, or
    one of `LEAST_LEFT` or more: otherwise a figure of all less those of the groups would be a
    figure of one or two patients.
    """
    sizes = {name: [p for p in patients if p in group] for name, group in groups.items()}
    given = {name: them for name, them in sizes.items() if len(them) >= LEAST_OF_A_GROUP}
    while given and 0 < len(patients) - sum(map(len, given.values())) < LEAST_LEFT:
        del given[min(given, key=lambda name: (len(given[name]), name))]
    return given


def _by_group(
    measured: _Measured, cohort: Cohort, groups: Groups, generator: np.random.Generator
) -> dict[str, list[Figure]]:
    """Return the figures of an attribute's groups, all at one n, so that they can be compared."""
    given = shown_groups(groups, cohort.held_out)
    others = {name: [p for p in cohort.members if p in groups[name]] for name in given}
    if any(len(them) < LEAST for them in others.values()):
        others = {name: [] for name in given}
    sizes = [len(them) for them in (*given.values(), *others.values()) if them]
    alike = replace(measured, samples=measured.samples[: min(sizes, default=0)])
    return {
        name: _figures(alike, patients, others[name], generator) for name, patients in given.items()
    }


def _figures(
    measured: _Measured,
    held_out: Sequence[str],
    members: Sequence[str],
    generator: np.random.Generator,
) -> list[Figure]:
    """Return the figures of some patients."""
    real = [measured.patients[name] for name in held_out]
    others = [measured.patients[name] for name in members] if len(members) >= LEAST else []
    wanted = [(*figure, real, others) for figure in DISTRIBUTION]
    nearest = neighbours.average_minimum_cosine_distance
    wanted.append(("cosine distance to held-out", nearest, "as real", COSINE, real, others))
    if others:
        wanted.append(("cosine distance to members", nearest, "as real", COSINE, others, real))
    found: list[Figure | None] = [
        compare(
            name,
            statistic,
            first,
            measured.samples,
            second,
            better=better,
            limits=limits,
            generator=generator,
        )
        for name, statistic, better, limits, first, second in wanted
    ]
    return [figure for figure in found if figure is not None]
