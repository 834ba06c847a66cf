"""The canaries: what sigma they claim, and what one run can and cannot see."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from voxfed.privacy import engine
from voxfed.privacy.audit import canaries
from voxfed.privacy.audit.canaries import DELTA, EPSILON, bound
from voxfed.privacy.noise import add_noise


def _delta_of(epsilon: float, sigma: float) -> float:
    """Return the exact delta of one Gaussian release (Balle and Wang 2018, theorem 8)."""
    half, shift = 1 / (2 * sigma), epsilon * sigma
    return float(norm.cdf(half - shift) - math.exp(epsilon) * norm.cdf(-half - shift))


def test_the_noise_is_that_of_the_claim() -> None:
    """Sigma costs epsilon 1 at delta 1e-5, and hardly less would not."""
    sigma = canaries.sigma()
    assert _delta_of(EPSILON, sigma) <= DELTA < _delta_of(EPSILON, 0.998 * sigma)


def test_at_half_of_the_noise_the_true_epsilon_is_2_15() -> None:
    """What the docstring of the self-test says: above the claim, and out of this one's sight."""
    assert _delta_of(2.15, canaries.sigma() / 2) == pytest.approx(DELTA, rel=0.05)


def test_a_quarter_of_the_noise_is_seen_in_single_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run is enough nearly always; five of six miss less than once in 10^15."""
    monkeypatch.setattr(engine, "add_noise", lambda total, d: add_noise(total, d / 4))
    assert sum(bound() > 1 for _ in range(6)) >= 2


def test_the_score_is_the_canarys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise every guess is right: each canary is seen through the whole engine."""
    monkeypatch.setattr(engine, "add_noise", lambda total, d: [part.float() for part in total])
    chance = 0.05 ** (1 / canaries.GUESSES)
    assert bound() == pytest.approx(np.log(chance / (1 - chance)), rel=1e-2)
