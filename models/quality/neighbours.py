"""What the nearest neighbours of synthetic volumes say: fidelity, variety, rarity and copying.

Each real volume has a ball that reaches to its third nearest real neighbour: the union of the
balls stands for what is real. Third, as in Kynkaanniemi et al. 2019, for all of these figures:
hospitals hold tens of volumes, not the ten thousand of the papers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from .distances import Features, check

NEAREST = 3
LEAST = NEAREST + 1
"""Volumes that a set needs so that each has as many neighbours."""


def precision(real: Features, synthetic: Features) -> float:
    """Return the share of synthetic volumes inside a real ball (Kynkaanniemi et al. 2019).

    Args:
        real: (n, F) features, n `LEAST` or more.
        synthetic: (m, F), m `LEAST` or more.

    Raises:
        UsageError: too few rows, other columns, or values that are not finite.
    """
    return float(_inside(real, synthetic).any(axis=0).mean())


def recall(real: Features, synthetic: Features) -> float:
    """Return the share of real volumes inside a synthetic ball; else as `precision`."""
    return precision(synthetic, real)


def density(real: Features, synthetic: Features) -> float:
    """Return in how many real balls a synthetic volume lies, over `NEAREST` (Naeem et al. 2020).

    Else as `precision`, but one outlier among the real volumes moves it less; it may exceed 1.
    """
    return float(_inside(real, synthetic).sum(axis=0).mean() / NEAREST)


def coverage(real: Features, synthetic: Features) -> float:
    """Return the share of real balls that hold a synthetic volume (Naeem et al. 2020).

    Else as `recall`, but synthetic outliers cannot raise it. Where n = m volumes are drawn alike
    it is 1 - (n - 1) ... (n - k) / ((2n - 1) ... (2n - k)) on average, with k = `NEAREST`.
    """
    return float(_inside(real, synthetic).any(axis=1).mean())


def rarity(real: Features, synthetic: Features) -> float | None:
    """Return the mean rarity score of the synthetic volumes inside a real ball (Han et al. 2023).

    A volume's score is the radius of the smallest real ball that holds it: large where real
    volumes are sparse. None where no synthetic volume lies in any ball. Else as `precision`.
    """
    inside = _inside(real, synthetic)
    scores = np.where(inside, _radii(real)[:, None], np.inf).min(axis=0)
    held = inside.any(axis=0)
    return float(scores[held].mean()) if held.any() else None


def nearest_distance(reference: Features, synthetic: Features) -> Features:
    """Return each synthetic volume's Euclidean distance to the nearest of a set, (m,).

    Args:
        reference: (n, F) features, n 1 or more.
        synthetic: (m, F), m 1 or more.

    Raises:
        UsageError: as in `precision`.
    """
    check(reference, synthetic, least=1)
    return np.asarray(cdist(synthetic, reference).min(axis=1))


def average_minimum_cosine_distance(reference: Features, synthetic: Features) -> float:
    """Return the mean over synthetic volumes of the cosine distance to the nearest of a set.

    Told for the patients who trained and for as many who did not: nearer to the first is a sign
    of copies (AMCD; 1 - cosine similarity, from 0 to 2). Zeros have distance 1 to everything.

    Args:
        reference: (n, F) features, n 1 or more.
        synthetic: (m, F), m 1 or more.

    Raises:
        UsageError: as in `precision`.
    """
    check(reference, synthetic, least=1)
    return float((1 - _directions(synthetic) @ _directions(reference).T).min(axis=1).mean())


def _inside(real: Features, synthetic: Features) -> npt.NDArray[np.bool_]:
    """Return (n, m): whether the ball of each real volume holds each synthetic one."""
    check(real, synthetic, least=LEAST)
    return np.asarray(cdist(real, synthetic) <= _radii(real)[:, None])


def _radii(features: Features) -> Features:
    """Return each volume's distance to its third nearest neighbour, (n,)."""
    return np.asarray(np.partition(cdist(features, features), NEAREST, axis=1)[:, NEAREST])


def _directions(features: Features) -> Features:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
