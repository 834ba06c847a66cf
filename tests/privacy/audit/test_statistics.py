"""AUC, intervals and rates against brute force, published values and simulation."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats
from voxfed.privacy.audit.scores.fusion import fuse
from voxfed.privacy.audit.statistics import (
    NOTHING_KNOWN,
    BinnedScores,
    auc,
    clopper_pearson,
    excess_chance,
    half_width_table,
    newcombe_variance,
    roc,
    smallest_leak,
    stratified_auc,
    true_positive_rate,
)
from voxfed.study.errors import UsageError

EDGES = np.linspace(-6, 8, 241)


def binned(members: np.ndarray, non_members: np.ndarray, edges: np.ndarray = EDGES) -> BinnedScores:
    counts = [tuple(np.histogram(x, edges)[0].astype(float)) for x in (members, non_members)]
    return BinnedScores(*counts)


def test_area_is_mann_whitney_with_ties_as_half() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        members, others = (generator.integers(0, 7, n) for n in (9, 13))
        pairs = itertools.product(members, others)
        expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
        scores = binned(members, others, np.arange(-0.5, 8))
        assert scores.area == pytest.approx(expected)
        second = stats.mannwhitneyu(members, others).statistic / (9 * 13)
        assert scores.area == pytest.approx(second)


def test_delong_variance_is_that_of_the_placements() -> None:
    generator = np.random.default_rng(1)
    members, others = generator.normal(1, 2, 17), generator.normal(0, 1, 11)
    fine = np.linspace(-20, 20, 4001)
    wins = members[:, None] > others[None, :]
    expected = wins.mean(1).var(ddof=1) / 17 + wins.mean(0).var(ddof=1) / 11
    assert binned(members, others, fine).delong_variance == pytest.approx(expected, rel=1e-3)


def test_a_score_fitted_to_the_coins_has_twice_the_variance() -> None:
    """Cross-validated noise told apart from noise: the widened interval covers, the plain does not.

    The truth is the mean AUC of such fits, which is a little below 0.5 without a leak.
    """
    generator = np.random.default_rng(9)
    plain, widened = [], []
    for _ in range(400):
        coins = generator.permutation(np.arange(60) < 30)
        found = fuse(generator.normal(size=(60, 6)), coins, seed=1, permutations=0).scores
        scores = binned(found[coins], found[~coins], np.linspace(-4, 4, 161))
        plain.append(auc(scores))
        widened.append(auc(dataclasses.replace(scores, fitted=True)))
    truth = np.mean([one.value for one in plain])
    assert np.mean([one.low <= truth <= one.high for one in plain]) < 0.91
    assert np.mean([one.low <= truth <= one.high for one in widened]) >= 0.93
    spread = np.std([one.value for one in plain])
    assert spread == pytest.approx(math.sqrt(2 * newcombe_variance(0.5, 30, 30)), rel=0.1)


def test_interval_ends_solve_newcombes_equation() -> None:
    for fitted, repeats in ((False, 1), (True, 2)):
        found = auc(BinnedScores((1, 2, 3, 4), (3, 3, 2, 2), fitted=fitted))
        for end in (found.low, found.high):
            margin = 1.959964 * math.sqrt(repeats * newcombe_variance(end, 10, 10))
            assert abs(found.value - end) == pytest.approx(margin, rel=1e-5)


def test_a_fitted_score_sees_only_larger_leaks() -> None:
    """The power that is stated counts the doubled variance."""
    halves = (0.0, 60.0, 0.0)
    fixed = smallest_leak([BinnedScores(halves, halves)], 0.6)
    fitted = smallest_leak([BinnedScores(halves, halves, fitted=True)], 0.6)
    assert fixed is not None
    assert fitted is not None
    assert fixed + 0.03 < fitted < 1


def test_half_widths_are_those_of_hanley_and_mcneil_for_many_patients() -> None:
    """At AUC 0.5 the variance is 1 / (6 n) to first order, the Mann-Whitney null."""
    table = half_width_table((30, 100, 500))
    assert table[100] == pytest.approx(0.080, abs=0.0015)
    assert table[500] == pytest.approx(1.96 * math.sqrt(1 / 3000), rel=0.01)
    assert table[30] > table[100] > table[500]


@pytest.mark.parametrize(("n", "others"), [(10, 10), (10, 30), (40, 40)])
@pytest.mark.parametrize(("shift", "spread"), [(0, 1), (0, 3), (1, 0.3), (1.2, 1), (3, 1)])
def test_interval_covers_the_truth_also_for_ten_patients(
    n: int, others: int, shift: float, spread: float
) -> None:
    """A false claim of certainty is the worst an audit can do; 400 runs are off by 1.1 %."""
    generator = np.random.default_rng(n + others)
    truth = stats.norm.cdf(shift / math.hypot(1, spread))
    covered = 0
    for _ in range(400):
        scores = binned(generator.normal(shift, spread, n), generator.normal(0, 1, others))
        found = auc(scores)
        covered += found.low <= truth <= found.high
    assert 0.925 <= covered / 400 <= 0.998


def test_a_perfect_attack_on_few_patients_is_not_called_certain() -> None:
    found = auc(BinnedScores((0, 0, 5), (5, 0, 0)))
    assert found.value == found.high == 1
    assert 0.5 < found.low < 0.75


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_interval_covers_the_truth_under_noised_counts(shift: float) -> None:
    """Noise on the counts is part of the uncertainty; counts below 0 are taken as they are."""
    generator = np.random.default_rng(7)
    edges = np.linspace(-3, 4, 17)
    covered, n = 0, 400
    for _ in range(300):
        exact = binned(
            np.clip(generator.normal(shift, 1, n), -2.9, 3.9),
            np.clip(generator.normal(0, 1, n), -2.9, 3.9),
            edges,
        )
        noised = [
            tuple(np.array(counts) + generator.normal(0, 10, 16))
            for counts in (exact.members, exact.non_members)
        ]
        found = auc(BinnedScores(*noised, noise=10.0))
        covered += found.low <= stats.norm.cdf(shift / math.sqrt(2)) <= found.high
    assert covered / 300 >= 0.93


def test_noise_variance_is_that_of_many_draws() -> None:
    generator = np.random.default_rng(8)
    exact = binned(
        generator.normal(0.5, 1, 900), generator.normal(0, 1, 900), np.linspace(-6, 7, 9)
    )
    areas = [
        BinnedScores(
            tuple(np.array(exact.members) + generator.normal(0, 20, 8)),
            tuple(np.array(exact.non_members) + generator.normal(0, 20, 8)),
            20.0,
        ).area
        for _ in range(2000)
    ]
    told = BinnedScores(exact.members, exact.non_members, 20.0).noise_variance
    assert told == pytest.approx(np.var(areas), rel=0.1)


def test_counts_that_are_mostly_noise_say_nothing() -> None:
    assert auc(BinnedScores((9, 1), (1, 9), noise=10.0)) == NOTHING_KNOWN
    assert auc(BinnedScores((0, 0), (1, 9))) == NOTHING_KNOWN
    assert smallest_leak([BinnedScores((0, 0), (1, 9))], 0.6) is None


def test_sites_that_differ_do_not_look_like_a_leak() -> None:
    """Pooling one site's members with another's non-members would give an AUC of 0.8 here."""
    low = BinnedScores((8, 0, 0), (2, 0, 0))
    high = BinnedScores((0, 0, 2), (0, 0, 8))
    pooled = BinnedScores((2, 0, 8), (8, 0, 2))
    assert auc(pooled).value == pytest.approx(0.8)
    assert stratified_auc([low, high]).value == pytest.approx(0.5)


def test_three_small_sites_together_know_more_than_one() -> None:
    site = BinnedScores((0, 1, 4), (4, 1, 0))
    assert stratified_auc([site] * 3).half_width < 0.65 * auc(site).half_width


def test_smallest_leak_is_blocked_in_four_of_five_audits() -> None:
    """The power that the officer reads is the power that the audit has."""
    n = 60
    leak = smallest_leak([BinnedScores((0.0, n, 0.0), (0.0, n, 0.0))], 0.6)
    assert leak is not None
    generator = np.random.default_rng(3)
    shift = stats.norm.ppf(leak) * math.sqrt(2)
    blocked = [
        auc(binned(generator.normal(shift, 1, n), generator.normal(0, 1, n))).low > 0.6
        for _ in range(400)
    ]
    assert np.mean(blocked) == pytest.approx(0.8, abs=0.07)


def test_five_patients_cannot_promise_to_see_anything() -> None:
    assert smallest_leak([BinnedScores((5, 0), (5, 0))], 0.6, level=0.99) is None


def test_clopper_pearson_matches_scipy_and_the_rule_of_three() -> None:
    for k, n in [(0, 10), (3, 10), (10, 10), (7, 300)]:
        exact = stats.binomtest(k, n).proportion_ci(0.95, "exact")
        found = clopper_pearson(k, n)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert clopper_pearson(0, 300, level=0.9).high == pytest.approx(3 / 300, rel=0.02)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_rates_are_refused(k: int, n: int) -> None:
    with pytest.raises(UsageError, match="got"):
        clopper_pearson(k, n)


def test_true_positives_are_not_given_without_enough_non_members() -> None:
    """3 / n is the least false positive rate that n non-members can speak of."""
    few = BinnedScores((0.0, 299.0), (299.0, 0.0))
    assert true_positive_rate([few], 0.01) is None
    assert true_positive_rate([few, few], 0.01) is not None, "two sites have enough together"
    assert true_positive_rate([BinnedScores((0.0, 300.0), (300.0, 0.0))], 0.01) is not None
    assert true_positive_rate([BinnedScores((0.0, 300.0), (300.0, 0.0), 1.0)], 0.1) is None


def test_true_positive_rate_counts_whole_bins_within_the_false_positives() -> None:
    scores = BinnedScores((10, 20, 30, 40), (80, 12, 6, 2))
    pair = true_positive_rate([scores], 0.10)
    assert pair is not None
    assert pair[0].value == pytest.approx(0.70)
    assert pair[1].value == pytest.approx(0.08)
    pair = true_positive_rate([scores], 0.05)
    assert pair is not None
    assert (pair[0].value, pair[1].value) == pytest.approx((0.40, 0.02))
    other = BinnedScores((50, 20, 20, 10), (30, 20, 30, 20))
    pair = true_positive_rate([scores, other], 0.20)
    assert pair is not None
    assert pair[0].value == pytest.approx((90 + 10) / 200), "each site has a threshold of its own"
    assert pair[1].value == pytest.approx((20 + 20) / 200)


def test_fisher_matches_scipy() -> None:
    for a, b, n in itertools.product((0, 2, 5), (0, 1, 4), (5, 12)):
        expected = stats.fisher_exact([[a, n - a], [b, n - b]], alternative="greater").pvalue
        assert excess_chance(a, b, n) == pytest.approx(expected)


def test_roc_has_the_area_it_shows() -> None:
    scores = BinnedScores((1, 2, 5), (4, 3, 1))
    x, y = zip(*roc(scores), strict=True)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(scores.area)


def test_histograms_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="different bins"):
        BinnedScores((1.0,), (1.0, 2.0))
    with pytest.raises(UsageError, match="negative"):
        BinnedScores((1.0, -1.0), (1.0, 2.0))
