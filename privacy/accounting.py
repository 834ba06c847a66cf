"""Says what a list of noisy steps costs: epsilon within a study, and across all of a lifetime.

Neighbouring cohorts differ by one patient, added or removed, with all of that patient's volumes.
Within a study the events are fixed by the plan, so their privacy loss distributions compose
(Koskela et al. 2020; Doroshenko et al. 2022, dp-accounting). Studies are chosen after earlier
results were seen, so the lifetime is held by a filter on Renyi curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from ..study.errors import UsageError

ORDERS = (2, 3, 4, 6, 10, 20, 64)
"""The Renyi orders of the lifetime filter: fixed, and few, since they share its delta."""

HOPELESS = 500.0
"""Above this epsilon nothing is protected; a Renyi bound is returned without refinement."""

_INTERVAL = 1e-4  # width of a privacy loss bucket, the default of dp-accounting


@dataclass(frozen=True, order=True)
class Event:
    """Equal noisy steps that read patients.

    Attributes:
        kind: "sampled-gaussian" for Poisson-sampled patients, "gaussian" for all of them.
        sigma: the noise multiplier, standard deviation over clip norm.
        rate: the sampling rate q, in (0, 1]; 1 for "gaussian".
        steps: how many, at least 1.

    Raises:
        UsageError: if a value lies outside its range.
    """

    kind: Literal["sampled-gaussian", "gaussian"]
    sigma: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        if self.kind not in ("sampled-gaussian", "gaussian"):
            raise UsageError(
                "unknown kind of privacy event",
                got=self.kind,
                expected="sampled-gaussian or gaussian",
            )
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError("a noise multiplier is positive", got=self.sigma, expected="sigma > 0")
        if not 0 < self.rate <= 1 or (self.kind == "gaussian" and self.rate != 1):
            raise UsageError(
                f"wrong sampling rate of a {self.kind} event",
                got=self.rate,
                expected="1" if self.kind == "gaussian" else "0 < rate <= 1",
            )
        if self.steps != int(self.steps) or self.steps < 1:
            raise UsageError("an event has at least one step", got=self.steps, expected="1 or more")


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Joins events of the same kind, sigma and rate into one with all their steps, sorted."""
    steps: dict[tuple[Literal["sampled-gaussian", "gaussian"], float, float], int] = {}
    for event in events:
        key = (event.kind, event.sigma, event.rate)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(sorted(Event(*key, count) for key, count in steps.items()))


def epsilon(events: Iterable[Event], delta: float, *, coarseness: int = 1) -> float:
    """Returns the epsilon of all events together, composed as privacy loss distributions.

    Guarantee:
        Whoever sees all the releases that the events stand for cannot tell a cohort from one
        with a patient more or less, beyond (epsilon, delta). The value is an upper bound:
        losses are rounded up to buckets of 1e-4 (1e-5 for small losses, 1e-3 above epsilon 20)
        and cut tails count as infinite loss.
    Assumes:
        Events are fixed in advance; each step draws patients with `sampling.poisson` at the
        event's rate, clips with `clipping.clip_weights` and gets noise of `noise.add_noise` of
        standard deviation sigma C.

    Args:
        events: the steps; none cost 0.
        delta: in (0, 1).
        coarseness: how many times wider than said above the buckets are; the value stays an upper
            bound, and is found sooner.

    Raises:
        UsageError: if delta lies outside (0, 1).
    """
    _check_delta(delta)
    return _composed(merge(events), delta, coarseness)


@lru_cache(maxsize=512)
def _composed(events: tuple[Event, ...], delta: float, coarseness: int) -> float:
    # Imported here: dp-accounting takes a second to load, and most commands never need it.
    from dp_accounting.pld import privacy_loss_distribution as losses

    if not events:
        return 0.0
    rough = float(np.min(_converted(renyi_curve(events), delta)))
    if rough > HOPELESS:
        return rough
    interval = coarseness * _interval(rough, min(event.sigma for event in events))
    total = losses.identity(interval)
    for event in events:
        if event.rate == 1:  # T Gaussians are one, with sigma over the root of T
            study = _losses(event.sigma / math.sqrt(event.steps), 1, interval)
        else:
            study = _losses(event.sigma, event.rate, interval).self_compose(event.steps)
        total = total.compose(study)
    return min(rough, float(total.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=8)
def _losses(sigma: float, rate: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as losses

    return losses.from_gaussian_mechanism(
        sigma, sampling_prob=float(rate), value_discretization_interval=interval
    )


def _interval(rough: float, least_sigma: float) -> float:
    """Returns a bucket width for an epsilon of about this size: fine enough, and few buckets."""
    if rough > 20:
        return 10 * _INTERVAL
    # With much noise a step's losses are tiny: buckets must be too, and can be, being few.
    return _INTERVAL / 10 if rough < 1 and least_sigma > 10 else _INTERVAL


def renyi_curve(events: Iterable[Event]) -> npt.NDArray[np.float64]:
    """Returns the Renyi divergence of all events together at each of `ORDERS`.

    Closed form of the sampled Gaussian at integer orders (Mironov, Talwar and Zhang 2019,
    section 3.3), valid for adding and for removing a patient.
    """
    total = np.zeros(len(ORDERS))
    for event in merge(events):
        curve = [_renyi(event.sigma, event.rate, order) for order in ORDERS]
        total += event.steps * np.asarray(curve)
    return total


def _renyi(sigma: float, rate: float, order: int) -> float:
    if rate == 1:
        return order / (2 * sigma**2)
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    mixture = binomial + k * math.log(rate) + (order - k) * math.log1p(-rate)
    return max(0.0, float(logsumexp(mixture + k * (k - 1) / (2 * sigma**2)))) / (order - 1)


def _converted(curve: npt.NDArray[np.float64], delta: float) -> npt.NDArray[np.float64]:
    """Turns Renyi divergences into epsilons (Canonne, Kamath and Steinke 2020, proposition 12)."""
    order = np.asarray(ORDERS, dtype=np.float64)
    gain = np.log1p(-1 / order) - (math.log(delta) + np.log(order)) / (order - 1)
    return np.asarray(np.maximum(0.0, curve + gain))


def lifetime_epsilon(events: Iterable[Event], delta: float) -> float:
    """Returns what a lifetime has cost when each study was chosen after seeing the earlier ones.

    A study may be admitted as long as the value, with the study, stays at or below the cap.

    Guarantee:
        Such a stopping rule gives (cap, delta)-DP for everything ever released, however the
        events were chosen. At one order the rule is a Renyi filter (Feldman and Zrnic 2021;
        Lécuyer 2021). Which order is satisfied at the end may depend on what was seen, so each
        order gets an equal share of delta, and the shares add up.
    Assumes:
        As `epsilon`, save that events may be chosen as one goes; the cap and delta may not.

    Args:
        events: everything charged and everything reserved; none cost 0.
        delta: the lifetime's, in (0, 1).

    Raises:
        UsageError: if delta lies outside (0, 1).
    """
    _check_delta(delta)
    merged = merge(events)
    if not merged:
        return 0.0
    return float(np.min(_converted(renyi_curve(merged), delta / len(ORDERS))))


def training_event(sigma: float, rate: float, steps: int) -> Event:
    """Returns the event of training steps: a plain Gaussian when every patient takes part."""
    return Event("gaussian" if rate == 1 else "sampled-gaussian", sigma, rate, steps)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise UsageError("delta is a probability", got=delta, expected="0 < delta < 1")
