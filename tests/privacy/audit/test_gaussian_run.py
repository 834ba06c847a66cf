"""The Gaussian one-run bound: published values, jax-privacy, and that it claims not too much."""

import itertools
from functools import cache

import numpy as np
import pytest
from scipy import stats
from voxfed.privacy.audit import one_run
from voxfed.privacy.audit.ceiling import gaussian_epsilon
from voxfed.privacy.audit.gaussian_run import lower_bound, rejected
from voxfed.study.errors import UsageError

# From jax-privacy 2.0.0, for (m, r, v, delta):
#   auditing._epsilon_one_run(0.0, m, r, v, 0.05, delta) and auditing._epsilon_one_run_fdp(…)
JAX_PRIVACY = [
    (60, 30, 25, 1e-3, 0.69687, 1.00517),
    (100, 100, 100, 1e-5, 3.49022, 8.21619),
    (200, 100, 80, 1e-5, 0.95778, 1.83528),
    (500, 100, 90, 1e-5, 1.62849, 2.70679),
    (1000, 300, 240, 1e-5, 1.1417, 1.89252),
    (1000, 1000, 650, 1e-6, 0.50818, 1.10707),
    (400, 100, 70, 1e-2, 0.0, 0.28085),
    (180, 90, 50, 1e-4, 0.0, 0.0),
    (30, 14, 14, 1e-3, 1.32991, 2.12214),
]


@pytest.mark.parametrize(("m", "r", "v", "delta", "general", "gaussian"), JAX_PRIVACY)
def test_both_bounds_agree_with_jax_privacy(
    m: int, r: int, v: int, delta: float, general: float, gaussian: float
) -> None:
    """A second implementation gives the same bounds of both forms."""
    found = {"right": v, "guesses": r, "canaries": m, "delta": delta}
    assert one_run.lower_bound(**found) == pytest.approx(general, abs=2e-5)
    assert lower_bound(**found) == pytest.approx(gaussian, abs=2e-5)


def test_a_bound_grows_with_what_is_right_and_falls_with_what_is_passed_over() -> None:
    """More right guesses prove more; canaries not guessed at, and more confidence, prove less."""
    bounds = [lower_bound(right=v, guesses=60, canaries=120, delta=1e-5) for v in range(0, 61, 4)]
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[7], bounds[-1] > 4) == (0.0, 0.0, True)
    many = [lower_bound(right=50, guesses=60, canaries=m, delta=1e-5) for m in (60, 120, 600)]
    assert many == sorted(many, reverse=True)
    assert many[0] > many[-1]
    levels = [
        lower_bound(right=50, guesses=60, canaries=120, delta=1e-5, level=level)
        for level in (0.9, 0.95, 0.999)
    ]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > levels[-1]


def test_the_bound_is_where_rejection_ends() -> None:
    """A little less separation is rejected and a little more is not."""
    found = {"right": 50, "guesses": 60, "canaries": 120}
    bound = lower_bound(**found, delta=1e-5)
    edge = next(x for x in np.arange(0.0, 4.0, 0.001) if not rejected(x, **found))
    assert gaussian_epsilon(edge - 0.001, 1e-5) <= bound <= gaussian_epsilon(edge, 1e-5)


def test_a_gaussian_run_is_not_accused() -> None:
    """Each coin told once with Gaussian noise is guessed right with Phi(mu / 2): exact, not drawn.

    The chance of as many right guesses as are rejected stays within 5 % for every size and mu, and
    comes close to it where the bound has no slack, which is where nothing leaks.
    """
    chances = []
    for m, mu in itertools.product((5, 10, 20, 60, 200), (0.0, 0.1, 0.3, 1.0)):
        counts = range(m + 1)
        many = next((v for v in counts if rejected(mu, right=v, guesses=m, canaries=m)), m + 1)
        chances.append(stats.binom.sf(many - 1, m, stats.norm.cdf(mu / 2)))
    assert 0.03 < max(chances) <= 0.05


def test_a_gaussian_run_is_not_accused_by_guesses_at_its_ends() -> None:
    """As above where only the clearest half is guessed at; and of so large a leak it sees some."""
    mu, m, r = 1.0, 180, 90
    epsilon = gaussian_epsilon(mu, 1e-5)

    @cache
    def bound(right: int) -> float:
        return lower_bound(right=right, guesses=r, canaries=m, delta=1e-5)

    generator = np.random.default_rng(4)
    bounds = []
    for _ in range(500):
        included = generator.random(m) < 0.5
        scores = generator.normal(size=m) + mu * included
        bounds.append(bound(one_run.right_guesses(scores, list(included), r)))
    assert sum(found > epsilon for found in bounds) <= 25
    assert 1 < np.median(bounds) < epsilon == pytest.approx(4.377, abs=1e-3)


def test_numbers_that_cannot_be_are_refused() -> None:
    """A count that cannot be is an error, not a bound; delta 0 is no Gaussian's."""
    good = {"right": 5, "guesses": 6, "canaries": 8, "delta": 0.1}
    for change in [{"right": 7}, {"guesses": 9}, {"right": 0, "guesses": 0}, {"delta": 0.0}]:
        with pytest.raises(UsageError):
            lower_bound(**{**good, **change})
