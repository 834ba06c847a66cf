"""How far a set of synthetic volumes is from a set of real ones, by their features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

from ...study.errors import UsageError

Features = npt.NDArray[np.float64]
Kernel = Callable[[Features, Features], Features]


def fid(real: Features, synthetic: Features) -> float:
    """Return the Frechet distance of the Gaussians fitted to two sets (Heusel et al. 2017).

    The trace of the root of the covariances' product is the sum of the singular values of one
    centred set times the other, so that no root of a singular matrix is taken and n may be less
    than F. It is biased upwards at small n (Chong and Forsyth 2020): only distances at the same n
    can be compared.

    Args:
        real: (n, F) features, n 2 or more.
        synthetic: (m, F), m 2 or more.

    Raises:
        UsageError: too few rows, other columns, or values that are not finite.
    """
    check(real, synthetic)
    between = np.square(real.mean(axis=0) - synthetic.mean(axis=0)).sum()
    first, second = _root(real), _root(synthetic)
    shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(between + np.square(first).sum() + np.square(second).sum() - 2 * shared)


def kid(real: Features, synthetic: Features) -> float:
    """Return the kernel distance, the unbiased squared MMD of a cubic kernel.

    The kernel is (x.y / F + 1)^3 (Binkowski et al. 2018). Its mean is 0 at any n where the two
    sets are drawn alike, so that it falls below 0 as often as above.

    Args:
        real: (n, F) features, n 2 or more.
        synthetic: (m, F), m 2 or more.

    Raises:
        UsageError: as in `fid`.
    """
    check(real, synthetic)
    width = real.shape[1]
    return _unbiased(real, synthetic, lambda x, y: (x @ y.T / width + 1) ** 3)


def mmd(real: Features, synthetic: Features) -> float:
    """Return the unbiased squared MMD of a Gaussian kernel (Gretton et al. 2012).

    The kernel's width is the median distance between two real volumes, so that what is
    synthetic cannot choose the scale by which it is judged.

    Args:
        real: (n, F) features, n 2 or more.
        synthetic: (m, F), m 2 or more.

    Raises:
        UsageError: as in `fid`, or half of the real volumes or more have the same features.
    """
    check(real, synthetic)
    width = float(np.median(pdist(real)))
    if width == 0:
        raise UsageError(
            "real volumes have the same features",
            hint="look for copies among them, or take another extractor",
        )
    return _unbiased(
        real, synthetic, lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * width**2))
    )


def check(*sets: Features, least: int = 2) -> None:
    """Refuse sets of features that cannot be compared.

    Raises:
        UsageError: a set is not (n, F) with n at least `least`, columns differ in number, or
            values are not finite.
    """
    for one in sets:
        if one.ndim != 2 or len(one) < least or one.shape[1:] != sets[0].shape[1:]:
            raise UsageError(
                "sets of features do not fit",
                got=" and ".join(str(each.shape) for each in sets),
                expected=f"{least} rows or more, and as many columns in each",
            )
        if not np.isfinite(one).all():
            raise UsageError("features are not finite", hint="look at the volumes and the weights")


def _root(features: Features) -> Features:
    """Return R with R'R the covariance, at most (F, F)."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _unbiased(real: Features, synthetic: Features, kernel: Kernel) -> float:
    """Return the squared MMD without the pairs of a volume with itself."""
    within = [_mean_of_pairs(kernel(one, one)) for one in (real, synthetic)]
    return float(sum(within) - 2 * kernel(real, synthetic).mean())


def _mean_of_pairs(table: Features) -> float:
    n = len(table)
    return float((table.sum() - np.trace(table)) / (n * (n - 1)))
