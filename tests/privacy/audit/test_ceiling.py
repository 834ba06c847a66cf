"""Ceilings: numeric integration, brute force over mechanisms, published values, dp-accounting."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from scipy.integrate import quad
from voxfed.privacy.audit.ceiling import (
    auc_ceiling,
    gaussian_auc,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_rate,
    rate_ceiling,
    separation,
)
from voxfed.study.errors import UsageError

CLAIMS = [(0.0, 0.0), (0.5, 0.1), (1.0, 1e-5), (3.0, 1e-3), (8.0, 1e-5)]


def best_auc(member: np.ndarray, other: np.ndarray) -> float:
    """The AUC of the likelihood ratio, the best score there is, over all pairs of outcomes."""
    score = likelihood(member, other)
    wins = (score[:, None] > score[None, :]) + 0.5 * (score[:, None] == score[None, :])
    return float(member @ wins @ other)


def best_rate(member: np.ndarray, other: np.ndarray, rate: float) -> float:
    """The power of the most powerful test: outcomes by likelihood ratio, the last one by chance."""
    order = np.argsort(-likelihood(member, other), kind="stable")
    wrong = np.concatenate([[0.0], np.cumsum(other[order])])
    found = np.concatenate([[0.0], np.cumsum(member[order])])
    held = int(np.searchsorted(wrong, rate + 1e-15, side="right"))
    if held == len(wrong):
        return 1.0
    share = (rate - wrong[held - 1]) / (wrong[held] - wrong[held - 1])
    return float(found[held - 1] + (found[held] - found[held - 1]) * share)


def likelihood(member: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How likely each outcome comes from a member; 0 for outcomes that never are."""
    return member / np.maximum(member + other, 1e-300)


@pytest.mark.parametrize(("epsilon", "delta"), CLAIMS)
def test_auc_ceiling_is_the_area_under_the_rate_ceiling(epsilon: float, delta: float) -> None:
    """The closed form is checked against the curve it is said to be the integral of."""
    kink = (1 - delta) / (1 + math.exp(epsilon))
    area, _ = quad(lambda a: rate_ceiling(epsilon, delta, a), 0, 1, points=[kink, 1 - delta])
    assert auc_ceiling(epsilon, delta) == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize(("epsilon", "delta"), CLAIMS)
def test_randomised_response_attains_the_ceilings(epsilon: float, delta: float) -> None:
    """With delta it tells the truth openly, else by e^epsilon to 1: no mechanism leaks more."""
    truth = (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    lie = (1 - delta) / (1 + math.exp(epsilon))
    member, other = np.array([delta, truth, lie, 0.0]), np.array([0.0, lie, truth, delta])
    assert best_auc(member, other) == pytest.approx(auc_ceiling(epsilon, delta), abs=1e-12)
    for rate in (0.0, 0.01, 0.1, 0.5, 1.0):
        expected = best_rate(member, other, rate)
        assert rate_ceiling(epsilon, delta, rate) == pytest.approx(expected, abs=1e-9)


def test_no_mechanism_passes_the_ceilings_of_its_own_epsilon() -> None:
    """Random mechanisms of five outcomes, whose delta at an epsilon is summed up directly."""
    generator = np.random.default_rng(0)
    closest = 1.0
    for _ in range(300):
        member, other = generator.dirichlet(np.full(5, 0.7), 2)
        epsilon = generator.uniform(0, 3)
        delta = max(
            np.maximum(member - math.exp(epsilon) * other, 0).sum(),
            np.maximum(other - math.exp(epsilon) * member, 0).sum(),
        )
        gap = auc_ceiling(epsilon, delta) - best_auc(member, other)
        closest = min(closest, gap)
        assert gap >= -1e-12
        for rate in (0.01, 0.05, 0.3):
            assert rate_ceiling(epsilon, delta, rate) >= best_rate(member, other, rate) - 1e-9
    assert closest < 0.02  # the ceiling is no empty promise


@pytest.mark.parametrize(
    ("epsilon", "mu", "area", "rate"),
    [(1.0, 0.268, 0.575, 0.020), (3.0, 0.719, 0.694, 0.054), (8.0, 1.666, 0.881, 0.255)],
)
def test_gaussian_figures_at_delta_1e_minus_5(
    epsilon: float, mu: float, area: float, rate: float
) -> None:
    """The table that officers read beside what was measured."""
    assert separation(epsilon, 1e-5) == pytest.approx(mu, abs=5e-4)
    assert gaussian_auc(epsilon, 1e-5) == pytest.approx(area, abs=5.1e-4)
    assert gaussian_rate(epsilon, 1e-5, 0.01) == pytest.approx(rate, abs=5e-4)


@pytest.mark.parametrize("mu", [0.05, 0.7, 2.0, 6.0])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 9.0])
def test_gaussian_delta_agrees_with_dp_accounting(mu: float, epsilon: float) -> None:
    """A second library computes the same delta, and both inverses undo it."""
    expected = GaussianPrivacyLoss(1 / mu).get_delta_for_epsilon(epsilon)
    delta = gaussian_delta(epsilon, mu)
    assert delta == pytest.approx(expected, rel=1e-6, abs=1e-15)
    if delta > 1e-12:
        assert separation(epsilon, delta) == pytest.approx(mu, rel=1e-6)
        assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, abs=1e-6)


def test_gaussian_figures_are_those_of_two_gaussians() -> None:
    """Drawn from the two Gaussians, AUC and rate come out as stated; below the proven ceilings."""
    generator = np.random.default_rng(1)
    mu, n = separation(3.0, 1e-5), 200_000
    members, others = generator.normal(mu, 1, n), generator.normal(0, 1, n)
    # standard errors: 0.001 each
    assert gaussian_auc(3.0, 1e-5) == pytest.approx(np.mean(members > others), abs=0.005)
    threshold = np.quantile(others, 0.9)
    assert gaussian_rate(3.0, 1e-5, 0.1) == pytest.approx(np.mean(members > threshold), abs=0.005)
    assert gaussian_auc(3.0, 1e-5) < auc_ceiling(3.0, 1e-5)
    assert gaussian_rate(3.0, 1e-5, 0.1) < rate_ceiling(3.0, 1e-5, 0.1)


def test_the_ends_of_the_scale() -> None:
    """No epsilon means no attack, much epsilon means no promise, and neither overflows."""
    assert (auc_ceiling(0.0, 0.0), rate_ceiling(0.0, 0.0, 0.3)) == (0.5, 0.3)
    assert auc_ceiling(5000.0, 0.0) == rate_ceiling(5000.0, 0.0, 0.01) == 1.0
    assert rate_ceiling(5000.0, 0.1, 0.0) == pytest.approx(0.1)
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_rate(1.0, 1e-5, 0.0) == 0.0
    assert separation(300.0, 1e-5) > separation(30.0, 1e-5) > 4


@pytest.mark.parametrize(
    "asked",
    [
        lambda: auc_ceiling(-1.0, 0.0),
        lambda: auc_ceiling(math.inf, 0.0),
        lambda: auc_ceiling(1.0, 1.0),
        lambda: rate_ceiling(1.0, math.nan, 0.1),
        lambda: rate_ceiling(1.0, 0.0, 1.1),
        lambda: gaussian_rate(1.0, 1e-5, -0.1),
        lambda: separation(1.0, 0.0),
        lambda: gaussian_epsilon(1.0, 0.0),
    ],
)
def test_claims_that_cannot_be_are_refused(asked: Callable[[], float]) -> None:
    """A claim out of range gives an error and no ceiling."""
    with pytest.raises(UsageError, match="got"):
        asked()
