"""Distances between sets against closed forms, loops and scipy's matrix root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from voxfed.models.quality.distances import Features, check, fid, kid, mmd
from voxfed.study.errors import UsageError


def features(n: int, width: int, *, seed: int = 0, shift: float = 0.0) -> Features:
    """Return correlated Gaussian rows."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    return generator.normal(size=(n, width)) @ mixing + shift


def with_moments(mean: list[float], deviations: list[float]) -> Features:
    """Return rows whose mean and (diagonal, unbiased) covariance are exactly these."""
    width = len(mean)
    corners = np.vstack([np.eye(width), -np.eye(width)])
    return corners * np.array(deviations) * np.sqrt((2 * width - 1) / 2) + np.array(mean)


def test_fid_of_gaussians_is_the_closed_form() -> None:
    """Between diagonal Gaussians: squared difference of means plus that of deviations."""
    real = with_moments([0.0, 1.0, -2.0], [1.0, 2.0, 0.5])
    synthetic = with_moments([3.0, 1.0, 0.0], [2.0, 2.5, 0.0])
    assert fid(real, synthetic) == pytest.approx(9 + 0 + 4 + 1 + 0.25 + 0.25, rel=1e-12)


def test_fid_agrees_with_the_matrix_root() -> None:
    """Where covariances are regular scipy's root is sound, and both give one number."""
    real, synthetic = features(60, 5), features(45, 5, seed=1, shift=0.3)
    first, second = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    between = np.square(real.mean(0) - synthetic.mean(0)).sum()
    expected = between + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert fid(real, synthetic) == pytest.approx(expected, rel=1e-9)


def test_fid_holds_with_fewer_volumes_than_features() -> None:
    """Singular covariances: 0 between equals, a shift's square, unchanged by a turn of features."""
    real = features(6, 40)
    assert fid(real, real) == pytest.approx(0, abs=1e-9)
    assert fid(real, real + 0.5) == pytest.approx(40 * 0.25, rel=1e-9)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(40, 40)))
    synthetic = features(7, 40, seed=1)
    assert fid(real @ turn, synthetic @ turn) == pytest.approx(fid(real, synthetic), rel=1e-9)


def test_fid_falls_with_n_between_equals() -> None:
    """The small-sample bias that forbids comparing FIDs of different n is there, and large."""
    small, large = (fid(features(n, 16), features(n, 16, seed=1)) for n in (12, 400))
    assert small > 5 * large


def _loop(real: Features, synthetic: Features, kernel: object) -> float:
    assert callable(kernel)
    n, m = len(real), len(synthetic)
    own = [kernel(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j]
    other = [
        kernel(a, b) for i, a in enumerate(synthetic) for j, b in enumerate(synthetic) if i != j
    ]
    across = [kernel(a, b) for a in real for b in synthetic]
    return float(sum(own) / (n * (n - 1)) + sum(other) / (m * (m - 1)) - 2 * sum(across) / (n * m))


def test_kid_is_the_loop_over_pairs() -> None:
    """The kernel, the pairs that count and their weights are those of Binkowski et al."""
    real, synthetic = features(7, 4), features(5, 4, seed=1, shift=0.4)
    expected = _loop(real, synthetic, lambda a, b: (float(a @ b) / 4 + 1) ** 3)
    assert kid(real, synthetic) == pytest.approx(expected, rel=1e-10)


def test_mmd_is_the_loop_over_pairs_at_the_real_median() -> None:
    """The bandwidth is the real set's median distance, whatever the synthetic set is."""
    real, synthetic = features(7, 4), features(5, 4, seed=1, shift=2.0)
    distances = [np.linalg.norm(real[i] - real[j]) for i in range(7) for j in range(i)]
    width = float(np.median(distances))
    expected = _loop(
        real, synthetic, lambda a, b: np.exp(-np.square(a - b).sum() / (2 * width * width))
    )
    assert mmd(real, synthetic) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("distance", [kid, mmd])
def test_kernel_distances_have_no_bias_between_equals(distance: object) -> None:
    """Over many small draws of one distribution the mean is 0, within four standard errors."""
    assert callable(distance)
    drawn = np.array(
        [distance(features(6, 3, seed=2 * i), features(6, 3, seed=2 * i + 1)) for i in range(400)]
    )
    assert abs(drawn.mean()) < 4 * drawn.std() / 20
    assert (drawn < 0).any()


def test_unfit_sets_are_refused() -> None:
    """Too few rows, other columns, NaN and equal rows get an error of ours, not a number."""
    good = features(6, 3)
    for bad in (good[:1], good[:, :2], good[0], np.full((6, 3), np.nan)):
        for distance in (fid, kid, mmd):
            with pytest.raises(UsageError):
                distance(good, bad)
    with pytest.raises(UsageError, match="same features"):
        mmd(np.ones((6, 3)), good)
    check(good, good)
