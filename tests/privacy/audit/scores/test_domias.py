"""DOMIAS against densities that are known, and against a generator that replays."""

import math

import numpy as np
import pytest
import torch
from families import balls, tiny
from scipy.stats import gaussian_kde, norm
from torch import Tensor
from voxfed.models.base import Batch
from voxfed.privacy.audit.scores.domias import (
    DIMENSIONS,
    SCORES,
    DensityRatio,
    Rows,
    Whitening,
    log_density,
    scott_width,
)
from voxfed.privacy.audit.scores.score import Context

(SCORE,) = SCORES
SHAPE = (8, 8, 8)


def normal(n: int, dimensions: int, seed: int = 0, mean: float = 0.0) -> Rows:
    return np.random.default_rng(seed).normal(mean, 1.0, size=(n, dimensions))


def coarse(volumes: Tensor) -> np.ndarray:
    """Return means of 4 x 4 x 4 cells: an embedding that anybody can follow."""
    return torch.nn.functional.adaptive_avg_pool3d(volumes, 4).flatten(1).numpy()


def test_the_density_is_scipy_s() -> None:
    """With Scott's width on points whose covariance is 1."""
    known = normal(200, 2)
    white = Whitening.of(known, 2)(known)
    points, width = normal(20, 2, seed=1), scott_width(200, 2)
    expected = gaussian_kde(white.T, bw_method="scott").logpdf(points.T)
    assert log_density(points, white, width) == pytest.approx(expected, abs=1e-6)


def test_whitened_points_have_variance_1() -> None:
    """Along every component, whatever the features' units; constants are left out."""
    table = normal(50, 4) @ np.diag([1e-3, 1.0, 50.0, 0.0]) + 7
    whitening = Whitening.of(table, 10)
    found = whitening(table)
    assert found.shape == (50, 3)
    assert np.cov(found.T) == pytest.approx(np.eye(3), abs=1e-6)
    assert Whitening.of(table, 2)(table) == pytest.approx(found[:, :2])


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_ratio_of_known_gaussians_is_theirs(shift: float) -> None:
    """Smoothed Gaussians are Gaussians: between them the ratio is known in closed form."""
    n = 20000
    made, reference = normal(n, 1, 1, shift), normal(n, 1, 2)
    ratio = DensityRatio.of(made, reference)
    points = np.linspace(-1.5, 2.0, 15)[:, None]
    spread = np.concatenate([made, reference]).std(ddof=1)  # whitening divides by it
    smoothed = math.hypot(1.0, scott_width(n, 1) * spread)
    expected = norm.logpdf(points, shift, smoothed) - norm.logpdf(points, 0.0, smoothed)
    assert ratio(points) == pytest.approx(expected[:, 0], abs=0.12)  # 4 standard errors


def test_a_set_that_is_one_point_is_no_error() -> None:
    """A generator whose samples are all the same has a density, and a patient there stands out."""
    ratio = DensityRatio.of(np.zeros((30, 3)), normal(30, 3))
    found = ratio(np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [500.0, 0.0, 0.0]]))
    assert np.isfinite(found).all()
    assert found[0] > found[1]


def test_few_references_have_few_dimensions() -> None:
    """Densities of 20 dimensions need more than 15 points."""
    many = normal(500, 60)
    assert DensityRatio.of(many, normal(15, 60, 1)).made.shape[1] == 3
    assert DensityRatio.of(many, normal(400, 60, 1)).made.shape[1] == DIMENSIONS


def scores(made: Tensor, volumes: Tensor) -> list[float]:
    reference = [Batch(scan[None]) for scan in balls(40, SHAPE, seed=99)]
    context = Context(seed=0, made=Batch(made), reference=reference, extractor=coarse)
    measure = SCORE.prepare(tiny("vae", SHAPE), context)
    return [float(measure(Batch(volume[None]))) for volume in volumes]


def auc(members: list[float], others: list[float]) -> float:
    return float(np.mean([a > b for a in members for b in others]))


def test_a_generator_that_replays_is_caught() -> None:
    """Samples lie denser about members than real scans do."""
    members, others = balls(10, SHAPE, seed=1), balls(10, SHAPE, seed=2)
    made = members[torch.arange(60) % 10]
    made = made + 0.05 * torch.randn(made.shape, generator=torch.Generator().manual_seed(0))
    assert auc(scores(made, members), scores(made, others)) > 0.8


def test_a_generator_of_fresh_scans_is_not_caught() -> None:
    """Samples of the same kind as all patients tell nothing."""
    made, found = balls(60, SHAPE, seed=3), []
    for seed in (1, 2):
        found.append(scores(made, balls(60, SHAPE, seed=10 + seed)))
    assert 0.4 < auc(*found) < 0.6  # a standard deviation is 0.053


def test_it_needs_samples_references_and_an_embedding() -> None:
    """Without any of them it is not offered."""
    assert SCORE.needs == ("made", "reference", "extractor")
