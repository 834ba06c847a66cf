"""Does the model hand out copies of the patients it learned from?

The recipe of Dar et al. (Nature Biomedical Engineering, 2025) in several spaces: a sample is a copy
if it is nearer to a patient than real patients are to each other; a patient with a copy is
memorised. What counts is the excess of memorised members over memorised non-members, in equal
numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....models.base import Batch, Embeds, joined, rows_of
from ....study.errors import VolumeError
from ...sampling import choose
from .spaces import EMBEDDING, LATENT, OCTANTS, VOXELS, Alike, embedding, latent, octants, voxels

USUAL, STRICT = 0.95, 0.999
INDEPENDENT = ((VOXELS, OCTANTS), (EMBEDDING, LATENT))
"""Spaces of the two kinds look at different things; two of one kind do not."""
WORST = 20
"""Pairs that the operator is shown."""

Patients = Mapping[str, Sequence[Batch]]
Features = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Copies:
    """What leaves of one space: counts alone.

    Attributes:
        samples: synthetic volumes, M.
        compared: patients in each group.
        threshold: the 95th percentile of real patients' similarity to the nearest of the other
            group.
        strict_threshold: the 99.9th.
        copies_of_members: samples nearer to a member than the threshold.
        copies_of_non_members: the same of those held out.
        memorised_members: members of whom there is a copy.
        memorised_non_members: the same of those held out.
        strict_copies_of_members: by the strict threshold, as the three below.
        strict_copies_of_non_members: as above.
        strict_memorised_members: as above.
        strict_memorised_non_members: as above.
    """

    samples: int
    compared: int
    threshold: float
    strict_threshold: float
    copies_of_members: int
    copies_of_non_members: int
    memorised_members: int
    memorised_non_members: int
    strict_copies_of_members: int
    strict_copies_of_non_members: int
    strict_memorised_members: int
    strict_memorised_non_members: int

    def counts(self) -> dict[str, float]:
        """Return the counts by name, as an answer carries them."""
        return {name: float(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Pair:
    """A sample and the patient it is nearest to; it never leaves the site.

    Attributes:
        sample: its number.
        patient: the patient's name.
        volume: which of the patient's volumes.
        member: whether the patient trained.
        space: where they are alike.
        similarity: at most 1.
        strict: whether it is above the strict threshold.
    """

    sample: int
    patient: str
    volume: int
    member: bool
    space: str
    similarity: float
    strict: bool


@dataclass(frozen=True)
class Search:
    """What a site found.

    Attributes:
        spaces: by the space's name, what leaves.
        confirmed_members: members with a confirmed copy.
        confirmed_non_members: the same of those held out, whom no model can have copied.
        pairs: the worst, for the operator alone.
    """

    spaces: Mapping[str, Copies]
    confirmed_members: int
    confirmed_non_members: int
    pairs: tuple[Pair, ...]


def search(
    samples: Batch,
    members: Patients,
    non_members: Patients,
    *,
    extract: Callable[[Tensor], Features] | None = None,
    family: object = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Search:
    """Compare synthetic volumes with members and with as many non-members, in every space.

    Thresholds are percentiles of a real patient's similarity to the nearest of the other group,
    looked at from both groups; no space knows the groups. So members and non-members are treated
    alike, and only the model can make them differ. A sample can be a copy only of the one patient
    it is nearest to. A copy is confirmed by two spaces that look at different things, see
    `confirmed`.

    Args:
        samples: M synthetic volumes (M, 1, D, H, W) in [-1, 1], with what they were told.
        members: patients who trained, each with batches of volumes.
        non_members: held-out patients; of the larger group, as many as the smaller has are drawn.
        extract: the contrastive encoder's features of volumes; None leaves out this space.
        family: the model, whose own latent is compared where it satisfies `Embeds`.
        random_bytes: for tests only.

    Returns:
        Counts by space and pairs; no space where a group has no patient or there is no sample.

    Guarantee: none; these counts are exact and no epsilon covers them.
    Assumes: the coin flips were fair, so that without copying both groups are alike.

    Raises:
        VolumeError: volumes differ in shape.
    """
    compared = min(len(members), len(non_members))
    if not compared or not len(samples.volumes):
        return Search({}, 0, 0, ())
    chosen = [_drawn(group, compared, random_bytes) for group in (members, non_members)]
    owned = [(name, joined(batches)) for group in chosen for name, batches in group]
    for name, batch in owned:
        if batch.volumes.shape[1:] != samples.volumes.shape[1:]:
            raise VolumeError(
                "samples and patients differ in shape",
                got=tuple(samples.volumes.shape[1:]),
                expected=tuple(batch.volumes.shape[1:]),
                hint=f"patient {name}",
            )
    owners = np.repeat(np.arange(2 * compared), [len(batch.volumes) for _, batch in owned])
    patients = joined([batch for _, batch in owned])
    found = {
        space: _nearest(alike, owners, compared)
        for space, alike in _alike(samples, patients, extract, family).items()
    }
    copied = confirmed(found)
    return Search(
        {space: _counted(near, compared) for space, near in found.items()},
        int((copied < compared).sum()),
        int((copied >= compared).sum()),
        _worst(found, [name for name, _ in owned], owners, compared),
    )


@dataclass(frozen=True)
class Nearest:
    """Each sample's nearest volume of a patient, in one space.

    Attributes:
        similarity: (M,).
        volume: (M,), its number.
        patient: (M,), whose it is; members are numbered from 0, non-members after them.
        threshold: usual.
        strict_threshold: strict.
    """

    similarity: npt.NDArray[np.float32]
    volume: npt.NDArray[np.intp]
    patient: npt.NDArray[np.intp]
    threshold: float
    strict_threshold: float

    @property
    def sure(self) -> npt.NDArray[np.bool_]:
        """Whether the similarity is nearer to 1 than to the strict threshold, (M,)."""
        return np.asarray(self.similarity > (1 + self.strict_threshold) / 2)


def confirmed(found: Mapping[str, Nearest]) -> npt.NDArray[np.intp]:
    """Return the patients of whom a sample is a copy beyond doubt, each once.

    A copy is confirmed where one sample is nearest to the same patient in a space of voxels and in
    one of features, and in both lies nearer to 1 than to the strict threshold. Strict matches in
    both alone come up by chance: in 3 % of simulated audits of honest generators with 100
    members, 100 non-members and 1,000 samples, and in 10 % with 30, 30 and 200.
    """
    pixels, features = ([found[x] for x in names if x in found] for names in INDEPENDENT)
    patients = [
        first.patient[first.sure & second.sure & (first.patient == second.patient)]
        for first in pixels
        for second in features
    ]
    return np.unique(np.concatenate(patients)) if patients else np.zeros(0, np.intp)


def _alike(
    samples: Batch,
    patients: Batch,
    extract: Callable[[Tensor], Features] | None,
    family: object,
) -> dict[str, Alike]:
    made, real = samples.volumes.cpu(), patients.volumes.cpu()
    found = {VOXELS: voxels(made, real), OCTANTS: octants(made, real)}
    if extract is not None:
        found[EMBEDDING] = embedding(made, real, extract)
    if isinstance(family, Embeds):
        found[LATENT] = latent(_rows(family, samples), _rows(family, patients))
    return found


def _rows(family: Embeds, batch: Batch) -> Tensor:
    """Return the family's latents, one volume at a time, so that memory does not grow."""
    with torch.no_grad():
        rows = [
            family.embed(rows_of(batch, slice(n, n + 1))).cpu() for n in range(len(batch.volumes))
        ]
    return torch.cat(rows)


def _nearest(alike: Alike, owners: npt.NDArray[np.intp], compared: int) -> Nearest:
    member = owners < compared
    across = alike.patients[member][:, ~member], alike.patients[~member][:, member]
    real = np.concatenate([rows.max(axis=1) for rows in across])
    usual, strict = (float(np.quantile(real, x, method="higher")) for x in (USUAL, STRICT))
    volume = alike.samples.argmax(axis=1)
    return Nearest(alike.samples.max(axis=1), volume, owners[volume], usual, strict)


def _counted(near: Nearest, compared: int) -> Copies:
    counts: list[int] = []
    for threshold in (near.threshold, near.strict_threshold):
        copied = near.patient[near.similarity > threshold]
        groups = copied[copied < compared], copied[copied >= compared]
        counts += [len(group) for group in groups] + [len(np.unique(group)) for group in groups]
    thresholds = round(near.threshold, 6), round(near.strict_threshold, 6)
    return Copies(len(near.patient), compared, *thresholds, *counts)


def _worst(
    found: Mapping[str, Nearest],
    names: Sequence[str],
    owners: npt.NDArray[np.intp],
    compared: int,
) -> tuple[Pair, ...]:
    """Return the pairs furthest above their space's threshold, as a share of the way to 1."""
    firsts = np.searchsorted(owners, np.arange(2 * compared))
    pairs = []
    for space, near in found.items():
        above = (near.similarity - near.threshold) / max(1 - near.threshold, 1e-6)
        for sample in np.argsort(-above, kind="stable")[:WORST]:
            patient, similarity = near.patient[sample], float(near.similarity[sample])
            pair = Pair(
                sample=int(sample),
                patient=names[patient],
                volume=int(near.volume[sample] - firsts[patient]),
                member=bool(patient < compared),
                space=space,
                similarity=round(similarity, 6),
                strict=similarity > near.strict_threshold,
            )
            pairs.append((float(above[sample]), pair))
    pairs.sort(key=lambda scored: -scored[0])
    return tuple(pair for _, pair in pairs[:WORST])


def _drawn(
    group: Patients, n: int, random_bytes: Callable[[int], bytes]
) -> list[tuple[str, Sequence[Batch]]]:
    patients = list(group.items())
    return [patients[i] for i in choose(len(patients), n, random_bytes=random_bytes)]
