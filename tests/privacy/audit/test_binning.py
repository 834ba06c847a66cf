"""Quantile bins: few patients stay together, membership does not matter, intervals stay honest."""

import numpy as np
import pytest
from scipy import stats
from voxfed.privacy.audit.binning import quantile_bins
from voxfed.privacy.audit.membership import histogram
from voxfed.privacy.audit.statistics import BinnedScores, auc
from voxfed.study.errors import UsageError


def binned(members: np.ndarray, others: np.ndarray) -> BinnedScores:
    edges = quantile_bins(members, others)
    return BinnedScores(histogram(members, edges), histogram(others, edges))


def test_bins_hold_four_patients_where_scores_differ() -> None:
    """60 different scores make 15 bins of four."""
    scores = np.random.default_rng(0).permutation(60) + 0.25
    edges = quantile_bins(scores[:30], scores[30:])
    assert histogram(scores, edges) == (4.0,) * 15
    assert edges[1:4] == (3.8, 7.8, 11.8)  # half-way between 3.25 and 4.25 to a tenth, and so on


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e7])
@pytest.mark.parametrize("offset", [0.0, -1e6])
@pytest.mark.parametrize("shape", ["normal", "heavy", "ties", "few", "equal"])
def test_no_bin_holds_fewer_than_four(shape: str, offset: float, scale: float) -> None:
    """Whatever the scores look like, edges rise strictly, are finite and part whole groups."""
    draw = np.random.default_rng(1)
    raw = {
        "normal": draw.normal(size=101),
        "heavy": draw.standard_cauchy(101),
        "ties": draw.integers(0, 9, 101),
        "few": draw.normal(size=6),
        "equal": np.full(40, 3.0),
    }[shape]
    scores = offset + scale * raw
    edges = quantile_bins(scores[::2], scores[1::2])
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    counts = histogram(scores, edges)
    assert sum(counts) == len(scores)
    assert min(counts) >= 4
    assert (len(counts) == 1) == (shape in ("few", "equal"))


def test_bins_do_not_depend_on_who_is_a_member() -> None:
    """The same patients give the same edges to the bit, whoever trained and in whatever order."""
    draw = np.random.default_rng(2)
    scores = draw.normal(size=80)
    edges = quantile_bins(scores[:40], scores[40:])
    for _ in range(10):
        mixed, n = draw.permutation(scores), int(draw.integers(0, 81))
        assert quantile_bins(mixed[:n], mixed[n:]) == edges


def test_edges_have_few_digits_and_tell_no_extreme_score() -> None:
    """A score is not to be read off an edge: not to all its digits, nor the largest at all."""
    scores = np.random.default_rng(3).normal(size=100)  # the middle half is 1.35 wide
    scores[7] = 1000.0
    edges = quantile_bins(scores[:50], scores[50:])
    assert all(edge == round(edge, 2) for edge in edges)
    assert edges[-1] < 10
    assert quantile_bins(np.append(scores[:50], 5.0), scores[50:])[-1] < 10


def test_rounding_keeps_scores_apart_that_lie_far_from_zero() -> None:
    """Digits count from the scores' spread: three of the whole -12345.6 would leave one bin."""
    scores = -12345.6 + np.random.default_rng(4).normal(size=100)
    assert len(quantile_bins(scores[:50], scores[50:])) - 1 >= 20


def test_many_patients_share_at_most_256_bins() -> None:
    """A reply stays small: larger cohorts get larger bins."""
    scores = np.random.default_rng(5).normal(size=5000)
    edges = quantile_bins(scores[:2500], scores[2500:])
    assert 150 <= len(edges) - 1 <= 256


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [np.inf], [1e200, -1e200]])
def test_scores_that_cannot_be_binned_are_refused(bad: list[float]) -> None:
    """A score that is no number is an error and not a bin."""
    with pytest.raises(UsageError, match="binned"):
        quantile_bins(bad, [])


def coverage(n: int, area: float, spread: float = 1.0, sets: int = 2000) -> float:
    """The share of simulated audits whose interval covers the true AUC, on the bins they make."""
    draw = np.random.default_rng([n, round(100 * area), round(10 * spread)])
    shift = stats.norm.ppf(area) * np.hypot(1, spread)
    found = [auc(binned(draw.normal(shift, spread, n), draw.normal(size=n))) for _ in range(sets)]
    return float(np.mean([one.low <= area <= one.high for one in found]))


def test_interval_covers_the_truth_on_quantile_bins() -> None:
    """2,000 sets of simulated scores; the standard error is 0.5 %."""
    assert 0.93 <= coverage(30, 0.7) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("area", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("n", [30, 100])
def test_interval_covers_the_truth_on_quantile_bins_everywhere(
    n: int, area: float, spread: float
) -> None:
    """The same for few and many patients, weak and strong leaks, equal and unequal spreads."""
    assert 0.93 <= coverage(n, area, spread) <= 0.97
