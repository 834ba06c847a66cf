"""Forecast: what a plan would mean at each site, from what the sites agreed to describe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..privacy.calibration import noise_to_signal
from ..privacy.terms import LEAST_DECLARED, agree
from ..study.errors import LimitRefusal
from ..study.messages import Description
from ..study.plan import StudyPlan

LOUD_RATIO, HOPELESS_RATIO = 100.0, 1000.0
"""Noise to signal of one step: above the second not even a million steps average it away."""


@dataclass(frozen=True)
class Forecast:
    """One site's numbers, at the lower end of its band of patients.

    Attributes:
        patients: declared patients that the numbers hold for.
        rate: sampling rate q.
        sigma: noise multiplier.
        noise_to_signal: of one step, over all trained parameters.
        verdict: PASS, WARN where the noise drowns the signal, or FAIL where no sigma is enough.
        advice: what to do about it.
    """

    site: str
    patients: int
    rate: float
    sigma: float
    noise_to_signal: float
    verdict: str
    advice: str


def forecast(
    plan: StudyPlan, site: str, description: Description, trained_parameters: int
) -> Forecast:
    """Return what `plan` means at a site that described itself."""
    patients = max(LEAST_DECLARED, lower_end(description.patients))
    if plan.privacy.enabled and plan.privacy.epsilon > description.most_epsilon:
        advice = f"epsilon {plan.privacy.epsilon:g} is over its limit of "
        advice += f"{description.most_epsilon:g}"
        return Forecast(site, patients, 0.0, 0.0, 0.0, "FAIL", advice)
    if not plan.privacy.enabled:
        allowed = description.without_privacy
        advice = "" if allowed else "the site does not allow training without privacy"
        return Forecast(site, patients, 1.0, 0.0, 0.0, "PASS" if allowed else "FAIL", advice)
    try:
        terms = agree(plan, patients)
    except LimitRefusal as fault:
        return Forecast(site, patients, 0.0, 0.0, 0.0, "FAIL", f"hopeless: {fault.message}")
    ratio = noise_to_signal(terms.sigma, plan.privacy.clip_norm, terms.divisor, trained_parameters)
    if terms.sigma < description.least_noise:
        advice = f"sigma is under its least of {description.least_noise:g}: ask for less epsilon"
        return Forecast(site, patients, terms.rate, terms.sigma, ratio, "FAIL", advice)
    verdict, advice = _judge(plan, patients, terms.rate, ratio)
    return Forecast(site, patients, terms.rate, terms.sigma, ratio, verdict, advice)


def _judge(plan: StudyPlan, patients: int, rate: float, ratio: float) -> tuple[str, str]:
    """Return verdict and advice on a plan that a site could agree to."""
    if ratio > HOPELESS_RATIO:
        return "FAIL", (
            f"hopeless: the noise of a step is {ratio:.0f} times its signal; ask for more "
            "epsilon, or train fewer parameters from public weights"
        )
    if plan.privacy.delta >= 1 / patients:
        return "WARN", f"delta protects nobody here: ask for less than 1 in {patients}"
    if rate >= 1:
        return "WARN", "every patient is drawn in each step: expect fewer patients per step"
    if ratio > LOUD_RATIO:
        return "WARN", "the noise is loud: start from public weights, or train fewer parameters"
    return "PASS", ""


def lower_end(band: str) -> int:
    """Return the lower end of a band of patients.

    >>> lower_end("50 to 99"), lower_end("under 10"), lower_end("1000 or more")
    (50, 5, 1000)
    """
    if band.startswith("under"):
        return LEAST_DECLARED
    found = re.match(r"[0-9]+", band)
    return int(found.group()) if found else LEAST_DECLARED
