"""Figures of nearest neighbours against loops and closed forms."""

import math

import numpy as np
import pytest
from voxfed.models.quality.distances import Features
from voxfed.models.quality.neighbours import (
    NEAREST,
    average_minimum_cosine_distance,
    coverage,
    density,
    nearest_distance,
    precision,
    rarity,
    recall,
)
from voxfed.study.errors import UsageError

generator = np.random.default_rng(5)
REAL = generator.normal(size=(17, 3))
SYNTHETIC = generator.normal(size=(13, 3)) + 1.2


def radius(points: Features, i: int) -> float:
    """Return the distance to the third nearest other point."""
    return sorted(math.dist(points[i], other) for j, other in enumerate(points) if j != i)[2]


def held(points: Features, sample: Features) -> list[int]:
    """Return which points' balls hold the sample."""
    return [i for i, point in enumerate(points) if math.dist(point, sample) <= radius(points, i)]


def test_shares_are_those_of_a_loop() -> None:
    """Precision, recall, density and coverage count what their papers count."""
    balls = [held(REAL, sample) for sample in SYNTHETIC]
    backwards = [held(SYNTHETIC, point) for point in REAL]
    covered = {i for found in balls for i in found}
    assert precision(REAL, SYNTHETIC) == pytest.approx(sum(map(bool, balls)) / 13)
    assert recall(REAL, SYNTHETIC) == pytest.approx(sum(map(bool, backwards)) / 17)
    assert density(REAL, SYNTHETIC) == pytest.approx(sum(map(len, balls)) / (13 * 3))
    assert coverage(REAL, SYNTHETIC) == pytest.approx(len(covered) / 17)
    assert 0 < precision(REAL, SYNTHETIC) < 1  # the case tells the four apart
    assert len({precision(REAL, SYNTHETIC), recall(REAL, SYNTHETIC), len(covered) / 17}) == 3


def test_rarity_is_that_of_a_loop() -> None:
    """A sample scores the smallest ball that holds it; outsiders do not count."""
    scores = [min(radius(REAL, i) for i in found) for s in SYNTHETIC if (found := held(REAL, s))]
    assert rarity(REAL, SYNTHETIC) == pytest.approx(np.mean(scores))
    assert rarity(REAL, SYNTHETIC + 100) is None


def test_coverage_of_equals_is_the_closed_form() -> None:
    """Naeem et al.'s expectation for two sets drawn alike, within four standard errors."""
    n, k = 12, NEAREST
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    drawn = np.array(
        [
            coverage(pair[:n], pair[n:])
            for seed in range(400)
            for pair in [np.random.default_rng(seed).normal(size=(2 * n, 4))]
        ]
    )
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / 20


def test_a_collapsed_model_is_precise_and_covers_nothing() -> None:
    """Copies of one central volume: full precision, no recall, little coverage; far noise: none."""
    centre = np.repeat(REAL[np.square(REAL).sum(1).argmin()][None], 13, axis=0)
    assert precision(REAL, centre) == 1
    assert recall(REAL, centre) <= 1 / 17
    assert coverage(REAL, centre) < 0.6
    assert precision(REAL, SYNTHETIC + 100) == coverage(REAL, SYNTHETIC + 100) == 0


def test_an_outlier_fools_precision_and_less_so_density() -> None:
    """Naeem et al.'s reason for density: a real outlier's ball holds all bad samples."""
    outlier = np.vstack([REAL, [[30.0, 0, 0]]])
    near = np.full((8, 3), [15.0, 0, 0]) + 0.01 * np.arange(8)[:, None]
    assert precision(outlier, near) == 1
    assert density(outlier, near) < 0.5


def test_nearest_and_cosine_distances_are_those_of_a_loop() -> None:
    """Each synthetic volume looks for its nearest in the other set, and in no other direction."""
    found = nearest_distance(REAL, SYNTHETIC)
    assert found.tolist() == pytest.approx([min(math.dist(s, r) for r in REAL) for s in SYNTHETIC])
    cosines = [
        min(1 - float(s @ r) / (math.hypot(*s) * math.hypot(*r)) for r in REAL) for s in SYNTHETIC
    ]
    assert average_minimum_cosine_distance(REAL, SYNTHETIC) == pytest.approx(np.mean(cosines))
    assert average_minimum_cosine_distance(REAL, REAL[:4] * 7) == pytest.approx(0, abs=1e-12)
    assert average_minimum_cosine_distance(REAL, np.zeros((2, 3))) == 1


def test_too_few_volumes_are_refused() -> None:
    """Fewer volumes than neighbours, other columns and NaN get an error of ours."""
    for figure in (precision, recall, density, coverage, rarity):
        for bad in (SYNTHETIC[:NEAREST], SYNTHETIC[:, :2], np.full((9, 3), np.inf)):
            with pytest.raises(UsageError):
                figure(REAL, bad)
    with pytest.raises(UsageError):
        nearest_distance(REAL, SYNTHETIC[:0])
