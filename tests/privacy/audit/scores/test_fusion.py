"""The fused score: its rule is the right one, and it finds nothing where there is nothing."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from voxfed.privacy.audit.scores.fusion import (
    FOLDS,
    PENALTY,
    Flags,
    Values,
    areas,
    cross_validated,
    fuse,
    logistic_weights,
    normal_ranks,
    stratified_folds,
)
from voxfed.privacy.audit.statistics import BinnedScores, auc, newcombe_variance
from voxfed.study.errors import UsageError


def half(n: int) -> Flags:
    """Return n members and then n non-members."""
    return np.arange(2 * n) < n


def leaking(n: int, shift: float, seed: int = 0, features: int = 4) -> Values:
    """Return features of n members and n non-members; all of them leak a little."""
    table = np.random.default_rng(seed).normal(size=(2 * n, features))
    table[:n] += shift
    return table


def folds_of(members: Flags, seed: int = 0) -> np.ndarray:
    return stratified_folds(members, np.random.default_rng(seed))


@pytest.mark.parametrize("shift", [0.0, 0.5, 50.0])
def test_the_rule_is_the_penalised_likelihoods_optimum(shift: float) -> None:
    """Newton's method ends where a general optimiser ends, also where the groups lie apart."""
    members, table = half(30), leaking(30, shift)
    table = (table - table.mean(0)) / table.std(0)

    def cost(weights: Values) -> float:
        score = table @ weights[:-1] + weights[-1]
        lost = np.logaddexp(0, np.where(members, -score, score)).sum()
        return float(lost + PENALTY / 2 * np.square(weights[:-1]).sum())

    best = minimize(cost, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
    assert logistic_weights(table, members) == pytest.approx(best.x, abs=1e-4)


def test_many_tables_at_once_are_each_as_alone() -> None:
    """A permutation is fitted among others exactly as it would be by itself."""
    members, folds = half(12), folds_of(half(12))
    tables = np.stack([leaking(12, 0.3, seed) for seed in range(7)])
    together = cross_validated(tables, members, folds)
    alone = np.stack([cross_validated(table, members, folds) for table in tables])
    assert together == pytest.approx(alone, abs=1e-7)


def test_a_patient_is_scored_by_a_rule_fitted_on_the_other_folds() -> None:
    """Written out for one fold at a time: standardise, fit, score, in spreads of the others."""
    members, table = half(13), leaking(13, 0.4)
    folds = folds_of(members)
    found = cross_validated(table, members, folds)
    for fold in range(FOLDS):
        known, asked = table[folds != fold], table[folds == fold]
        centre, spread = known.mean(0), known.std(0)
        weights = logistic_weights((known - centre) / spread, members[folds != fold])[:-1]
        usual = ((known - centre) / spread @ weights).std()
        expected = (asked - centre) / spread @ weights / usual
        assert found[folds == fold] == pytest.approx(expected, abs=1e-8)


def test_folds_share_out_both_groups() -> None:
    """No fold has more of a group, or more patients, than another but for one."""
    for trained, held in ((5, 5), (17, 23), (40, 8)):
        members = np.arange(trained + held) < trained
        folds = folds_of(members)
        for part in (members, ~members, members | True):
            counts = np.bincount(folds[part], minlength=FOLDS)
            assert counts.max() - counts.min() <= 1
    assert not np.array_equal(folds_of(half(20), 0), folds_of(half(20), 1))
    assert np.array_equal(folds_of(half(20), 0), folds_of(half(20), 0))


def test_the_auc_is_that_of_counting_pairs() -> None:
    """Ties count half."""
    scores, members = np.array([1.0, 2.0, 2.0, 0.0, 2.0]), np.array([1, 1, 0, 0, 0], dtype=bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[members] for b in scores[~members]]
    assert float(areas(scores, members)) == pytest.approx(np.mean(pairs))


def test_scores_that_leak_a_little_each_tell_together() -> None:
    """Fusion finds more than its best feature does, and says that it is no chance."""
    members, table = half(60), leaking(60, 0.5, features=6)
    found = fuse(table, members, 0, permutations=199)
    single = max(float(areas(table[:, n], members)) for n in range(6))
    assert found.area > max(single, 0.75)
    assert found.p_value == pytest.approx(1 / 200)
    assert found.area == pytest.approx(float(areas(found.scores, members)))


def test_the_same_seed_gives_the_same_scores() -> None:
    """An audit can be repeated to the bit."""
    first, second = (fuse(leaking(20, 0.2), half(20), 7, permutations=19) for _ in range(2))
    assert np.array_equal(first.scores, second.scores)
    assert first.p_value == second.p_value


def test_the_unit_of_a_feature_does_not_matter() -> None:
    """Nats, errors and distances can be fused as they are; a constant says nothing."""
    members, table, folds = half(20), leaking(20, 0.4), folds_of(half(20))
    plain = cross_validated(table, members, folds)
    scaled = cross_validated(table * [1e-6, 1, 1e3, 1e6] + [5, 0, -7e4, 0], members, folds)
    constant = cross_validated(np.c_[table, np.full(40, 0.1)], members, folds)
    assert scaled == pytest.approx(plain, abs=1e-6)
    assert constant == pytest.approx(plain, abs=1e-7)


def test_only_the_order_of_a_score_counts() -> None:
    """One patient whose likelihood is far out cannot hide what all others show."""
    members, table = half(40), leaking(40, 0.6)
    plain = fuse(table, members, 0, permutations=19)
    tailed = fuse(np.exp(5 * table), members, 0, permutations=19)
    assert np.array_equal(tailed.scores, plain.scores)
    outlier = table.copy()
    outlier[-1] = 1e12  # a non-member
    found = fuse(outlier, members, 0, permutations=19)
    assert found.area > plain.area - 0.05  # one patient of 40 on the wrong side is worth 0.025
    assert float(areas(cross_validated(outlier, members, folds_of(members)), members)) < found.area
    assert normal_ranks(np.array([[3.0], [1.0], [3.0], [9.0]]))[:, 0] == pytest.approx(
        norm.ppf([0.5, 0.125, 0.5, 0.875])
    )


def test_folds_can_be_pooled() -> None:
    """Without leak the pooled AUC is 1/2 on average; the rules' own scores fall below it."""
    tables = np.random.default_rng(1).normal(size=(3000, 40, 1))
    members, folds = half(20), folds_of(half(20))
    raw = np.zeros(tables.shape[:2])
    for fold in range(FOLDS):
        others = folds != fold
        weights = logistic_weights(tables[:, others], members[others])[..., None]
        asked = np.concatenate([tables[:, ~others], np.ones((3000, int((~others).sum()), 1))], -1)
        raw[:, ~others] = (asked @ weights)[..., 0]
    pooled, naive = areas(cross_validated(tables, members, folds), members), areas(raw, members)
    assert pooled.mean() == pytest.approx(0.5, abs=3 * pooled.std() / math.sqrt(3000))
    assert naive.mean() < 0.5 - 3 * naive.std() / math.sqrt(3000)


@pytest.mark.parametrize("n", [20, 50])
def test_without_leak_the_auc_varies_twice_as_much(n: int) -> None:
    """What makes intervals of a fitted score honest is measured, not only derived."""
    tables = np.random.default_rng(n).normal(size=(400, 2 * n, 5))
    members = half(n)
    found = areas(cross_validated(tables, members, folds_of(members)), members)
    assert 1.6 < found.var() / newcombe_variance(0.5, n, n) < 2.4


def test_intervals_of_the_fused_score_stay_below_without_leak() -> None:
    """Under 5 % of audits of no leak have a lower bound above 1/2; unaware of folds, more do."""
    members, tables = half(30), np.random.default_rng(5).normal(size=(300, 60, 5))
    scores = cross_validated(tables, members, folds_of(members))

    def alarms(*, fitted: bool) -> float:
        lows = []
        for row in scores:
            bins, n = np.unique(row, return_inverse=True), len(np.unique(row))
            counts = [np.bincount(bins[1][part], minlength=n) for part in (members, ~members)]
            trained, held = (tuple(map(float, part)) for part in counts)
            lows.append(auc(BinnedScores(trained, held, fitted=fitted)).low)
        return float(np.mean(np.array(lows) > 0.5))

    assert alarms(fitted=True) <= 0.04  # 1 to 2 % in long simulations
    assert alarms(fitted=False) >= 0.05  # 7 to 9 %


def test_p_values_without_leak_are_even() -> None:
    """Of 200 audits without leak, 5 % at most have a p-value of 5 % or less, up to chance."""
    generator = np.random.default_rng(2)
    values = np.array(
        [
            fuse(generator.normal(size=(24, 3)), half(12), seed, permutations=39).p_value
            for seed in range(200)
        ]
    )
    assert (values <= 0.05).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert (values <= 0.5).mean() == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / 200))


def test_what_cannot_be_fused_is_refused() -> None:
    """A damaged score or a handful of patients gives an error, not a figure."""
    broken = leaking(10, 0.0)
    broken[3, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        fuse(broken, half(10), 0)
    with pytest.raises(UsageError, match="too few"):
        fuse(leaking(4, 0.0), half(4), 0)
    with pytest.raises(UsageError, match="do not fit"):
        fuse(leaking(10, 0.0), half(9), 0)
    with pytest.raises(UsageError, match="do not fit"):
        fuse(np.zeros((20, 0)), half(10), 0)
