"""Forecast: what a plan means at a site that described itself, before anyone spends a budget."""

from __future__ import annotations

from typing import Any

import pytest
from voxfed.privacy.calibration import noise_to_signal
from voxfed.privacy.terms import agree
from voxfed.server.forecast import forecast, lower_end
from voxfed.study.messages import Description
from voxfed.study.plan import StudyPlan

PLAN = """
name = "trunks"
family = "vae"
rounds = 2
local_steps = 2
expected_patients = 4
[volumes]
shape = [32, 32, 32]
spacing = [6.0, 6.0, 6.0]
[optimiser]
learning_rate = 3e-4
[privacy]
epsilon = {epsilon}
delta = 1e-3
{more}
"""


def make(epsilon: float = 8.0, more: str = "") -> StudyPlan:
    return StudyPlan.from_text(PLAN.format(epsilon=epsilon, more=more).encode())


def described(**changes: Any) -> Description:
    facts: dict[str, Any] = {
        "patients": "20 to 49",
        "modalities": ("ct",),
        "spacing": (1.0, 5.0),
        "labels": False,
        "device": "cpu",
        "most_epsilon": 10.0,
        "least_noise": 0.3,
        "without_privacy": False,
        "defaced": "no",
        "version": "0.1.0",
    }
    return Description(**(facts | changes))


@pytest.mark.parametrize(
    ("band", "patients"),
    [("under 10", 5), ("10 to 19", 10), ("500 to 999", 500), ("1000 or more", 1000), ("?", 5)],
)
def test_the_lower_end_of_a_band(band: str, patients: int) -> None:
    """The forecast is for the fewest patients that a band allows, so it is never too rosy."""
    assert lower_end(band) == patients


def test_the_numbers_are_those_of_the_approval() -> None:
    """Rate and sigma are what the site will freeze if it declares the band's lower end."""
    found = forecast(make(), "north", described(), trained_parameters=10)
    terms = agree(make(), 20)
    assert (found.patients, found.rate, found.sigma) == (20, terms.rate, terms.sigma)
    assert found.noise_to_signal == noise_to_signal(terms.sigma, 1.0, terms.divisor, 10)
    assert (found.verdict, found.advice) == ("PASS", "")


@pytest.mark.parametrize(
    ("trained", "verdict", "advice"), [(10**6, "WARN", "loud"), (10**9, "FAIL", "hopeless")]
)
def test_noise_that_drowns_the_signal(trained: int, verdict: str, advice: str) -> None:
    """A hopeless study is told from one that is merely hard, each with what to do."""
    found = forecast(make(), "north", described(), trained_parameters=trained)
    assert found.verdict == verdict
    assert advice in found.advice
    assert "train fewer parameters" in found.advice


def test_a_delta_that_protects_nobody() -> None:
    """Above 1 in the number of patients, a delta allows one to be given away whole."""
    text = make().text.replace(b"delta = 1e-3", b"delta = 9e-3")
    small = described()
    assert forecast(StudyPlan.from_text(text), "north", small, 10).verdict == "PASS"
    large = forecast(
        StudyPlan.from_text(text), "north", described(patients="200 to 499", least_noise=0.0), 10
    )
    assert (large.verdict, "delta protects nobody" in large.advice) == ("WARN", True)


@pytest.mark.parametrize(
    ("plan", "changes", "advice"),
    [
        (make(20.0), {}, "epsilon 20 is over its limit of 10"),
        (make(8.0, "audit_noise = 0.01"), {}, "hopeless"),
        (make(), {"least_noise": 50.0}, "under its least of 50"),
        (make(8.0, "enabled = false"), {}, "does not allow training without privacy"),
    ],
)
def test_what_the_site_would_refuse(plan: StudyPlan, changes: Any, advice: str) -> None:
    """A plan that a site must refuse fails before it is offered, and says why."""
    found = forecast(plan, "north", described(**changes), trained_parameters=10)
    assert found.verdict == "FAIL"
    assert advice in found.advice


def test_without_privacy_where_it_is_allowed() -> None:
    """No sigma and no noise: the table shows zeros, not a guarantee."""
    plan = make(8.0, "enabled = false")
    found = forecast(plan, "north", described(without_privacy=True), trained_parameters=10)
    assert (found.verdict, found.sigma, found.noise_to_signal) == ("PASS", 0.0, 0.0)
