"""Distances of synthetic volumes to patients: cheap signs of copying, never proof that none are.

All compare features (n, F), one row a patient; one row a synthetic volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp

from ....models.quality.distances import Features, check
from ....models.quality.neighbours import average_minimum_cosine_distance


@dataclass(frozen=True)
class NearestRatio:
    """How the ratio of the nearest to the second nearest distance differs from that of patients.

    Attributes:
        synthetic: median ratio of synthetic volumes to members, 0 to 1; small near a copy.
        held_out: median ratio of held-out patients to members.
        chance: how often chance alone makes the first so small beside the second, where all
            volumes are independent (Kolmogorov and Smirnov, one-sided).
    """

    synthetic: float
    held_out: float
    chance: float


def minimum_distance_ratio(members: Features, non_members: Features, synthetic: Features) -> float:
    """Return the average minimum cosine distance to members over that to non-members.

    1 where nothing was memorised, 0 where every synthetic volume is a member (AMD). Give as many
    members as non-members: the more there are, the nearer is the nearest.

    Raises:
        UsageError: a set is empty, columns differ, or values are not finite.
    """
    to_members = average_minimum_cosine_distance(members, synthetic)
    to_others = average_minimum_cosine_distance(non_members, synthetic)
    if to_others > 0:
        return to_members / to_others
    return 1.0 if to_members == to_others else np.inf


def authenticity(members: Features, synthetic: Features) -> float:
    """Return the share of synthetic volumes that are no copies (Alaa et al. 2022).

    One is authentic unless it lies nearer to its nearest member than any other member does.

    Args:
        members: (n, F), n 2 or more.
        synthetic: (m, F), m 1 or more.

    Raises:
        UsageError: as in `minimum_distance_ratio`.
    """
    check(members, least=2)
    check(members, synthetic, least=1)
    between = cdist(members, members)
    np.fill_diagonal(between, np.inf)
    distances = cdist(synthetic, members)
    nearest = distances.argmin(axis=1)
    return float((distances.min(axis=1) >= between.min(axis=1)[nearest]).mean())


def nearest_ratio(members: Features, held_out: Features, synthetic: Features) -> NearestRatio:
    """Compare d1 / d2 to members of synthetic volumes with that of held-out patients.

    Only the comparison says something, never the ratio itself.

    Args:
        members: (n, F), n 2 or more.
        held_out: (k, F), k 1 or more.
        synthetic: (m, F), m 1 or more.

    Raises:
        UsageError: as in `minimum_distance_ratio`.
    """
    check(members, least=2)
    check(members, held_out, synthetic, least=1)
    ours, theirs = (_ratios(members, rows) for rows in (synthetic, held_out))
    chance = ks_2samp(ours, theirs, alternative="greater").pvalue
    return NearestRatio(float(np.median(ours)), float(np.median(theirs)), float(chance))


def _ratios(members: Features, rows: Features) -> Features:
    """Return (n,), the nearest member's distance over the second's; 1 where both are 0."""
    near = np.partition(cdist(rows, members), 1, axis=1)[:, :2]
    return np.asarray(
        np.divide(near[:, 0], near[:, 1], out=np.ones(len(rows)), where=near[:, 1] > 0)
    )
