"""Distances to patients, beside brute force and cases known by hand."""

import numpy as np
import pytest
from scipy.stats import kstest
from voxfed.privacy.audit.copies.distances import (
    authenticity,
    minimum_distance_ratio,
    nearest_ratio,
)
from voxfed.study.errors import UsageError

DRAW = np.random.default_rng(0)
MEMBERS, HELD_OUT, SYNTHETIC = (DRAW.normal(size=(n, 5)) for n in (20, 20, 60))


def test_the_minimum_distance_ratio_is_that_of_a_loop_over_pairs() -> None:
    def mean(reference: np.ndarray) -> float:
        nearest = [
            min(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in reference)
            for x in SYNTHETIC
        ]
        return float(np.mean(nearest))

    expected = mean(MEMBERS) / mean(HELD_OUT)
    assert minimum_distance_ratio(MEMBERS, HELD_OUT, SYNTHETIC) == pytest.approx(expected)


def test_copies_of_members_have_a_ratio_of_nothing() -> None:
    assert minimum_distance_ratio(MEMBERS, HELD_OUT, MEMBERS) == pytest.approx(0, abs=1e-9)
    assert minimum_distance_ratio(MEMBERS, MEMBERS, SYNTHETIC) == 1


def test_authenticity_is_that_of_a_loop_over_pairs() -> None:
    authentic = []
    for x in SYNTHETIC:
        distances = np.linalg.norm(MEMBERS - x, axis=1)
        nearest = int(distances.argmin())
        others = np.linalg.norm(np.delete(MEMBERS, nearest, axis=0) - MEMBERS[nearest], axis=1)
        authentic.append(distances[nearest] >= others.min())
    assert authenticity(MEMBERS, SYNTHETIC) == pytest.approx(np.mean(authentic))
    assert 0 < np.mean(authentic) < 1


def test_copies_are_not_authentic() -> None:
    assert authenticity(MEMBERS, MEMBERS + 1e-6) == 0
    assert authenticity(MEMBERS, MEMBERS + 100) == 1


def test_the_nearest_ratio_is_that_of_a_loop_and_its_chance_that_of_the_test() -> None:
    def ratios(rows: np.ndarray) -> np.ndarray:
        sorted_ = [np.sort(np.linalg.norm(MEMBERS - x, axis=1)) for x in rows]
        return np.array([x[0] / x[1] for x in sorted_])

    found = nearest_ratio(MEMBERS, HELD_OUT, SYNTHETIC)
    ours, theirs = ratios(SYNTHETIC), ratios(HELD_OUT)
    assert found.synthetic == pytest.approx(np.median(ours))
    assert found.held_out == pytest.approx(np.median(theirs))
    assert found.chance == pytest.approx(kstest(ours, theirs, alternative="greater").pvalue)


def test_copies_stand_out_by_their_nearest_ratio_and_others_do_not() -> None:
    """The direction of the one-sided test: small ratios are the alarm, not large ones."""
    assert nearest_ratio(MEMBERS, HELD_OUT, MEMBERS + 1e-3).chance < 1e-6
    assert nearest_ratio(MEMBERS, HELD_OUT, SYNTHETIC).chance > 0.05
    assert nearest_ratio(MEMBERS, MEMBERS + 1e-3, SYNTHETIC).chance > 0.5


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        authenticity(MEMBERS, SYNTHETIC[:, :4])
    with pytest.raises(UsageError, match="do not fit"):
        nearest_ratio(MEMBERS[:1], HELD_OUT, SYNTHETIC)
