"""Epsilon and lifetime epsilon, against closed forms, brute force and other libraries."""

from __future__ import annotations

import math
import time
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from voxfed.privacy import accounting
from voxfed.privacy.accounting import (
    ORDERS,
    Event,
    epsilon,
    lifetime_epsilon,
    merge,
    renyi_curve,
    training_event,
)
from voxfed.study.errors import UsageError


def sampled(sigma, rate, steps):
    return Event("sampled-gaussian", sigma, rate, steps)


def gaussian(sigma, steps=1):
    return Event("gaussian", sigma, 1, steps)


def exact_gaussian_epsilon(sigma, steps, delta):
    """Analytic Gaussian mechanism (Balle and Wang 2018): T steps are one of sigma / sqrt(T)."""
    mu = math.sqrt(steps) / sigma

    def excess(eps):
        upper = stats.norm.cdf(mu / 2 - eps / mu)
        return upper - math.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu)) - delta

    return optimize.brentq(excess, 0, 500, xtol=1e-10) if excess(0) > 0 else 0.0


def opacus_epsilon(sigma, rate, steps, delta):
    """Opacus' PRV accountant, a library of its own (Gopi, Lee and Wutschitz 2021)."""
    with warnings.catch_warnings():
        # Opacus sizes its grid by a Renyi bound that little leakage puts at its highest order.
        warnings.filterwarnings("ignore", message="Optimal order is the largest alpha")
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(sigma, rate, steps)]
        return accountant.get_epsilon(delta=delta, eps_error=0.01)


def test_the_published_example():
    """Sigma 3, q 0.1, 512 steps, delta 1e-6: 3.770 by PLD, 3.780 by Opacus PRV."""
    assert epsilon([sampled(3, 0.1, 512)], 1e-6) == pytest.approx(3.770, abs=0.005)
    assert opacus_epsilon(3, 0.1, 512, 1e-6) == pytest.approx(3.780, abs=0.005)


def test_it_is_dp_accounting_called_directly():
    """Two mechanisms composed by the library's own accountant: the same number."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    noisy = dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(1.5))
    accountant.compose(noisy, 24)
    accountant.compose(dp_accounting.GaussianDpEvent(8.0), 3)
    events = [sampled(1.5, 0.2, 20), gaussian(8.0, 3), sampled(1.5, 0.2, 4)]
    assert epsilon(events, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-9)


def check_against_opacus(sigma, rate, steps, delta):
    ours = epsilon([sampled(sigma, rate, steps)], delta)
    theirs = opacus_epsilon(sigma, rate, steps, delta)
    assert abs(ours - theirs) <= max(0.015, 0.01 * theirs)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [
        (1.0, 0.02, 500, 1e-5),
        (0.8, 0.1, 30, 1e-3),
        (5.0, 0.3, 200, 1e-6),
        (3.0, 0.02, 10_000, 1e-5),
        (30.0, 0.3, 10_000, 1e-6),
    ],
)
def test_it_agrees_with_opacus(sigma, rate, steps, delta):
    """PLD and PRV to 1 % or 0.015."""
    check_against_opacus(sigma, rate, steps, delta)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("steps", [10, 200, 3000])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("sigma", [0.9, 2.0, 6.0])
def test_it_agrees_with_opacus_over_a_grid(sigma, rate, steps, delta):
    """PLD and PRV to 1 % or 0.015, wherever the answer means anything (up to 30)."""
    if lifetime_epsilon([sampled(sigma, rate, steps)], delta) < 30:
        check_against_opacus(sigma, rate, steps, delta)
    else:
        assert epsilon([sampled(sigma, rate, steps)], delta) > 10


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(1, 1), (0.5, 1), (4, 16), (50, 10_000), (20, 1), (200, 3), (30, 10_000)]
)
def test_without_sampling_it_is_the_analytic_gaussian_mechanism(sigma, steps, delta):
    """Never below the closed form, and above by rounding to buckets only."""
    exact = exact_gaussian_epsilon(sigma, steps, delta)
    value = epsilon([gaussian(sigma, steps)], delta)
    assert exact - 1e-9 <= value <= exact * 1.001 + 2e-3


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.1), (0.7, 0.5), (3.0, 0.9)])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_cohort_of_one_against_nobody_by_brute_force(sigma, rate, steps):
    """The definition itself: the densities on a grid, empty draws included, in both directions.

    What is seen is N(0, sigma^2) without the patient, and with the patient a mixture in which
    the empty draw has its share. Delta at the epsilon found is the one asked for.
    """
    x = np.linspace(-9 * sigma, 1 + 9 * sigma, 4001)
    nobody = stats.norm.pdf(x, scale=sigma) * (x[1] - x[0])
    one = (1 - rate) * nobody + rate * stats.norm.pdf(x, 1, sigma) * (x[1] - x[0])
    if steps == 2:
        nobody, one = np.outer(nobody, nobody), np.outer(one, one)
    eps = epsilon([sampled(sigma, rate, steps)], 1e-4)
    excess = [np.maximum(p - math.exp(eps) * q, 0).sum() for p, q in ((one, nobody), (nobody, one))]
    assert max(excess) == pytest.approx(1e-4, rel=5e-3)


def test_coarser_buckets_cost_more_and_hardly_more():
    """What calibration searches with: still an upper bound, within 1 %."""
    events = [sampled(1.5, 0.2, 100), gaussian(10.0, 2)]
    fine, coarse = epsilon(events, 1e-5), epsilon(events, 1e-5, coarseness=10)
    assert fine <= coarse <= 1.01 * fine


@pytest.mark.parametrize(
    ("sigma", "rate", "order"), [(1.0, 0.1, 2), (2.0, 0.5, 10), (4, 0.01, 64), (3, 1, 6)]
)
def test_the_renyi_curve_is_the_integral(sigma, rate, order):
    """Brute force: the divergence of the mixture from N(0, sigma^2), by quadrature."""

    def integrand(x):
        log_ratio = np.logaddexp(
            math.log1p(-rate) if rate < 1 else -np.inf,
            math.log(rate) + (2 * x - 1) / (2 * sigma**2),
        )
        return math.exp(stats.norm.logpdf(x, scale=sigma) + order * log_ratio)

    top = order + 12 * sigma
    moment, _ = integrate.quad(
        integrand, -12 * sigma, top, points=[0, order], limit=500, epsabs=0, epsrel=1e-11
    )
    curve = renyi_curve([training_event(sigma, rate, 7)])
    expected = 7 * math.log(moment) / (order - 1)
    assert curve[ORDERS.index(order)] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_renyi_curve_is_that_of_dp_accounting():
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS)
    event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(3.0))
    accountant.compose(event, 512)
    converted = accounting._converted(renyi_curve([sampled(3.0, 0.1, 512)]), 1e-6)
    assert float(converted.min()) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-9)


@settings(max_examples=8)
@given(
    sigma=st.floats(0.7, 20),
    rate=st.floats(0.001, 1),
    steps=st.integers(1, 300),
    more=st.floats(1.01, 2),
)
def test_more_noise_fewer_steps_and_rarer_draws_cost_less(sigma, rate, steps, more):
    """Monotone in each, and the lifetime's filter is never below the composition."""

    def cost(sigma, rate, steps):
        return epsilon([training_event(sigma, rate, steps)], 1e-5)

    value, tolerance = cost(sigma, rate, steps), 1e-3  # two bucket widths meet at epsilon 1
    assert cost(sigma * more, rate, steps) <= value + tolerance
    assert cost(sigma, rate / more, steps) <= value + tolerance
    assert cost(sigma, rate, steps + 5) >= value - tolerance
    assert lifetime_epsilon([training_event(sigma, rate, steps)], 1e-5) >= value


@pytest.mark.parametrize(
    "events",
    [
        [],
        [gaussian(3, 10_000)],
        [gaussian(31, 10_000)],
        [sampled(0.5, 0.1, 10_000)],
        [sampled(1.0, 0.01, 10_000)],
        [sampled(2.0, 0.1, 10_000)],
        [gaussian(1e6, 10_000)],
        [sampled(1e6, 1e-6, 1)],
        [sampled(0.01, 0.5, 1)],
        [sampled(1.0, 1.0, 10)],
    ],
)
def test_every_corner_is_answered_within_five_seconds(events):
    """Nothing, everybody, ten thousand steps, hardly any and far too much noise."""
    accounting._composed.cache_clear()
    accounting._losses.cache_clear()
    start = time.process_time()
    value, lifetime = epsilon(events, 1e-6), lifetime_epsilon(events, 1e-6)
    assert time.process_time() - start < 5
    assert 0 <= value <= lifetime < math.inf
    assert events or value == lifetime == 0


def test_equal_events_are_merged_and_their_order_does_not_matter():
    many = [sampled(2, 0.1, 3), gaussian(5), sampled(2, 0.1, 4), gaussian(5, 2)]
    assert merge(many) == (gaussian(5, 3), sampled(2, 0.1, 7))
    assert epsilon(many, 1e-5) == epsilon(reversed(many), 1e-5)


def test_two_studies_cost_less_together_than_apart():
    """What makes `lifetime_left` safe to read as room for another study."""
    first, second = sampled(1.2, 0.2, 100), gaussian(30, 2)
    together = lifetime_epsilon([first, second], 1e-5)
    assert together <= lifetime_epsilon([first], 1e-5) + lifetime_epsilon([second], 1e-5)
    assert together >= lifetime_epsilon([first], 1e-5)


CAP, DELTA = 2.0, 0.01


@cache
def admitted(events, limit=CAP):
    """The rule of the lifetime: a study may run while all of them together stay within the cap."""
    return lifetime_epsilon(events, DELTA) <= limit


def measured_delta(limit):
    """What an adversary who chooses each study by what was seen gets beyond the cap.

    3000 lives of one patient who is in every study. While the loss is high the next study is a
    bold one, else a timid one, as far as the limit admits it; far beyond the cap the adversary
    stops. Returns the mean of (1 - exp(CAP - loss))+, which is delta at CAP, and its error.
    """
    draw = np.random.default_rng(5)
    found = np.zeros(3000)
    for life in range(len(found)):
        loss, events = 0.0, ()
        while loss < CAP + 3:
            wanted = (2.0, 4.0, 8.0) if loss > 0.2 else (8.0, 4.0)
            fit = (s for s in wanted if admitted(merge([*events, gaussian(s)]), limit))
            sigma = next(fit, None)
            if sigma is None:
                break
            events = merge([*events, gaussian(sigma)])
            loss += (2 * draw.normal(1, sigma) - 1) / (2 * sigma**2)
        found[life] = max(0.0, 1 - math.exp(CAP - loss))
    return found.mean(), found.std() / math.sqrt(len(found))


def test_an_adversary_who_chooses_and_stops_at_will_never_exceeds_the_cap():
    """The point of a filter, measured; an adversary with four times the cap does exceed it."""
    mean, error = measured_delta(CAP)
    assert mean + 4 * error <= DELTA
    mean, error = measured_delta(4 * CAP)
    assert mean - 4 * error > DELTA


@settings(max_examples=6)
@given(data=st.data())
def test_wherever_a_life_stops_it_is_within_the_cap(data):
    """Any studies, in any order, some refused: filter and composition both stay at or below it."""
    life = []
    for _ in range(data.draw(st.integers(1, 6))):
        sigma, steps = data.draw(st.floats(0.8, 40)), data.draw(st.integers(1, 200))
        study = training_event(sigma, data.draw(st.sampled_from([0.01, 0.2, 1.0])), steps)
        if admitted(merge([*life, study])):
            life.append(study)
    assert lifetime_epsilon(life, DELTA) <= CAP
    assert epsilon(life, DELTA) <= lifetime_epsilon(life, DELTA)


@pytest.mark.parametrize("sigma", [3.0, 10.0, 40.0])
def test_the_filter_admits_as_many_gaussians_as_the_closed_form(sigma):
    """Order a costs a / (2 sigma^2) a study; the best order at its share of delta counts them."""
    share = DELTA / len(ORDERS)
    room = max(
        (CAP - math.log1p(-1 / a) + (math.log(share) + math.log(a)) / (a - 1)) / a for a in ORDERS
    )
    most = math.floor(room * 2 * sigma**2)
    assert most > 1
    assert admitted((gaussian(sigma, most),))
    assert not admitted((gaussian(sigma, most + 1),))


def test_each_order_of_the_filter_has_its_share_of_delta():
    """The lifetime value is the best order at delta over the number of orders, by hand."""
    delta = 1e-5 / len(ORDERS)
    by_hand = min(
        order / (2 * 4.0**2)
        + math.log((order - 1) / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    )
    assert lifetime_epsilon([gaussian(4.0)], 1e-5) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "sigma", "rate", "steps"),
    [
        ("laplace", 1.0, 0.1, 1),
        ("gaussian", 1.0, 0.5, 1),
        ("gaussian", 0.0, 1, 1),
        ("gaussian", math.inf, 1, 1),
        ("sampled-gaussian", 1.0, 0.0, 1),
        ("sampled-gaussian", 1.0, 1.5, 1),
        ("sampled-gaussian", 1.0, 0.5, 0),
        ("sampled-gaussian", 1.0, 0.5, 1.5),
    ],
)
def test_an_event_that_means_nothing_is_refused(kind, sigma, rate, steps):
    with pytest.raises(UsageError):
        Event(kind, sigma, rate, steps)


@pytest.mark.parametrize("delta", [0, 1, -1, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(UsageError, match="delta"):
        epsilon([gaussian(1.0)], delta)
    with pytest.raises(UsageError, match="delta"):
        lifetime_epsilon([], delta)
