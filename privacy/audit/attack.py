"""Attack: every score, the blind baseline and the search for copies, on one site's patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...models.base import Batch, Family
from ...study.errors import VolumeError
from ...study.messages import ScoreCounts
from .binning import FEWEST, quantile_bins
from .blind import blind_baseline
from .copies.distances import authenticity, minimum_distance_ratio, nearest_ratio
from .copies.search import Patients, Search, search
from .membership import histogram
from .scores.fusion import FOLDS, fuse
from .scores.score import BLIND, FUSED, Context
from .scores.table import applicable
from .shadows import Lessons, reference_scores

Features = npt.NDArray[np.float64]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Groups:
    """The patients that an audit compares, by the coins they flipped.

    Attributes:
        members: who trained.
        non_members: who were held out.
        reference: some of those held out, whose volumes calibrate scores and start samples from
            images; scores that use them compare the others alone.
    """

    members: Patients
    non_members: Patients
    reference: frozenset[str]

    @property
    def compared(self) -> Patients:
        """The held-out patients who are not the reference."""
        return {name: x for name, x in self.non_members.items() if name not in self.reference}


@dataclass(frozen=True)
class Attacked:
    """What a site found.

    Attributes:
        scores: histograms, by the score's name.
        found: copies by likeness; its pairs never leave the site.
        distances: of synthetic volumes to patients, by name.
    """

    scores: dict[str, ScoreCounts]
    found: Search
    distances: dict[str, float]


def attack(
    family: Family,
    groups: Groups,
    made: Batch,
    *,
    seed: int,
    extract: Callable[[Tensor], Features] | None,
    lessons: Lessons | None = None,
    progress: Progress = lambda *_: None,
) -> Attacked:
    """Run all that fits the family on one site's members and non-members.

    Args:
        family: in evaluation mode, with the weights that are audited.
        groups: the patients, their volumes on the family's device.
        made: synthetic volumes (M, 1, D, H, W) with what they were told, on the CPU.
        seed: from the weights' digest.
        extract: the contrastive encoder's features of volumes.
        lessons: how reference models are trained to attack with; None for none.
        progress: told what is done, of how many parts, and which is next.

    Guarantee:
        None: histograms and counts are exact, and no epsilon covers them.
    Assumes:
        The coins were fair and flipped before training.

    Raises:
        VolumeError: a score is not finite, or volumes differ in shape.
        ProcessError: a reference model's training diverged.
    """
    values, fitted = _values(family, groups, made, seed, extract, progress), {}
    names = sorted({*groups.members, *groups.non_members})  # an order that no coin has set
    members = np.array([name in groups.members for name in names])
    if min(members.sum(), (~members).sum()) >= FOLDS:
        progress(1, 3, BLIND)
        volumes = {**groups.members, **groups.non_members}
        looks = [[batch.volumes.cpu() for batch in volumes[name]] for name in names]
        fitted[BLIND] = blind_baseline(looks, members, seed, permutations=0).scores
        whole = [found for found in values.values() if len(found) == len(names)]
        table = np.array([[found[name] for found in whole] for name in names])
        if len(whole) > 1:
            fitted[FUSED] = fuse(table, members, seed, permutations=0).scores
    if lessons and len(names) > 1:
        fitted |= _referenced(family, groups, names, lessons, seed, progress)
    values |= {name: dict(zip(names, rows, strict=True)) for name, rows in fitted.items()}
    progress(2, 3, "copies")
    rest = Groups(groups.members, groups.compared, frozenset())
    return Attacked(
        {name: _counts(found, groups) for name, found in values.items()},
        search(made, rest.members, rest.non_members, extract=extract, family=family),
        _distances(rest, made, extract) if extract else {},
    )


def attack_apart(
    family: Family, members: Patients, non_members: Patients, seed: int
) -> dict[str, ScoreCounts]:
    """Return histograms of every score that needs nobody else, of phantoms, by the score's name.

    Each phantom may have a bin of its own: there is nobody to hide.

    Args:
        family: in evaluation mode, with the weights that are audited.
        members: phantoms that trained, their volumes on the family's device.
        non_members: phantoms that did not.
        seed: from the weights' digest.

    Raises:
        VolumeError: a score is not finite.
    """
    context, groups = Context(seed), Groups(members, non_members, frozenset())
    found = {}
    for score in applicable(family, context):
        means = _means(score.prepare(family, context), {**members, **non_members}, score.name)
        found[score.name] = _counts(dict(means), groups, fewest=1)
    return found


def _values(
    family: Family,
    groups: Groups,
    made: Batch,
    seed: int,
    extract: Callable[[Tensor], Features] | None,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Return each patient's score, the mean over the patient's volumes, by the score's name."""
    known = [batch for name in sorted(groups.reference) for batch in groups.non_members[name]]
    alone, beside = Context(seed, made, (), extract), Context(seed, made, known, extract)
    measured = [(score, alone, groups.non_members) for score in applicable(family, alone)]
    if known and groups.compared:
        scores = [score for score in applicable(family, beside) if "reference" in score.needs]
        measured += [(score, beside, groups.compared) for score in scores]
    found = {}
    for score, context, held_out in measured:
        progress(0, 3, score.name)
        measure = score.prepare(family, context)
        found[score.name] = dict(_means(measure, {**groups.members, **held_out}, score.name))
    return found


def _referenced(
    family: Family,
    groups: Groups,
    names: Sequence[str],
    lessons: Lessons,
    seed: int,
    progress: Progress,
) -> dict[str, Features]:
    """Return the scores beside reference models, of the family's first score, by name."""
    context, patients = Context(seed), {**groups.members, **groups.non_members}
    patients, score = {name: patients[name] for name in names}, applicable(family, context)[0]

    def known(model: Family) -> Features:
        found = dict(_means(score.prepare(model, context), patients, score.name))
        return np.array([found[name] for name in names])

    volumes = list(patients.values())
    return reference_scores(known(family), volumes, known, lessons, seed, progress=progress)


def _means(
    measure: Callable[[Batch], Tensor], patients: Patients, score: str
) -> Iterator[tuple[str, float]]:
    for name, batches in patients.items():
        value = float(np.mean([float(measure(batch)) for batch in batches]))
        if not np.isfinite(value):
            raise VolumeError(
                "a patient cannot be scored",
                got=f"{score}: a score that is not finite",
                hint="run the site's check; if it passes, the weights are damaged",
            )
        yield name, value


def _counts(values: Mapping[str, float], groups: Groups, fewest: int = FEWEST) -> ScoreCounts:
    members, non_members = (
        [value for name, value in values.items() if name in group]
        for group in (groups.members, groups.non_members)
    )
    edges = quantile_bins(members, non_members, fewest=fewest)
    return ScoreCounts(
        edges=edges,
        members=histogram(members, edges),
        non_members=histogram(non_members, edges),
    )


def _distances(
    groups: Groups, made: Batch, extract: Callable[[Tensor], Features]
) -> dict[str, float]:
    """Return cheap signs of copying, of equal numbers of patients, one volume each."""
    n = min(len(groups.members), len(groups.non_members))
    if n < 2 or len(made.volumes) < 2:
        return {}
    members, others = (
        _features([batches[0].volumes for batches in group.values()][:n], extract)
        for group in (groups.members, groups.non_members)
    )
    synthetic = _features(made.volumes.split(1), extract)
    ratio = nearest_ratio(members, others, synthetic)
    return {
        "average minimum distance, ratio": minimum_distance_ratio(members, others, synthetic),
        "authenticity": authenticity(members, synthetic),
        "nearest-neighbour ratio, synthetic": ratio.synthetic,
        "nearest-neighbour ratio, held out": ratio.held_out,
        "nearest-neighbour ratio, p": ratio.chance,
    }


def _features(volumes: Sequence[Tensor], extract: Callable[[Tensor], Features]) -> Features:
    with torch.no_grad():
        return np.concatenate([extract(volume) for volume in volumes])
