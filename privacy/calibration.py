"""Finds the noise, or the number of steps, that an epsilon pays for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..study.errors import LimitRefusal
from .accounting import Event, training_event
from .accounting import epsilon as cost

_LEAST_SIGMA, _MOST_SIGMA = 1_000, 10_000_000  # in units of 1e-4
_MOST_STEPS = 1_000_000


def calibrate_sigma(
    *, rate: float, steps: int, epsilon: float, delta: float, others: Sequence[Event] = ()
) -> float:
    """Returns the smallest sigma, to 1e-3 and rounded up, that keeps a study within epsilon.

    Args:
        rate: the sampling rate q of the training steps.
        steps: how many training steps.
        epsilon: what training and `others` together may cost.
        delta: in (0, 1).
        others: the study's other events, such as noised metrics.

    Raises:
        LimitRefusal: if `others` alone cost more, or sigma would have to exceed 1000.
    """
    _check_others(others, epsilon, delta)

    def fits(units: int, coarseness: int = 1) -> bool:
        events = [training_event(units / 10_000, rate, steps), *others]
        return cost(events, delta, coarseness=coarseness) <= epsilon

    if not fits(_MOST_SIGMA):
        raise LimitRefusal(
            "no useful amount of noise reaches this epsilon",
            got=f"epsilon {epsilon:.4g} over {steps} steps at rate {rate:.4g}",
            expected="an epsilon that some sigma up to 1000 reaches",
            hint="ask for fewer steps, a smaller rate or more patients",
        )
    # Coarse buckets are ten times faster and cost a little more, so that few fine ones remain.
    units = _smallest(lambda units: fits(units, 10), _LEAST_SIGMA, _MOST_SIGMA)
    while not fits(units):
        units += max(1, units // 1000)
    while units > _LEAST_SIGMA and fits(units - max(1, units // 1000)):
        units -= max(1, units // 1000)
    return units / 10_000


def _smallest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Bisects to within 1e-3 above the smallest number that fits, or to `high` if none does."""
    if fits(low):
        return low
    while high - low > max(1, low // 1000):
        middle = max(low + 1, math.isqrt(low * high))
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def most_steps(
    *, sigma: float, rate: float, epsilon: float, delta: float, others: Sequence[Event] = ()
) -> int:
    """Returns how many training steps of this sigma and rate an epsilon pays for, up to a million.

    Args:
        sigma: the noise multiplier.
        rate: the sampling rate q.
        epsilon: what training and `others` together may cost.
        delta: in (0, 1).
        others: the study's other events.

    Raises:
        LimitRefusal: if `others` alone cost more; a result of 0 means that no step fits.
    """
    _check_others(others, epsilon, delta)

    def fits(steps: int) -> bool:
        return cost([training_event(sigma, rate, steps), *others], delta) <= epsilon

    low, high = 0, 1
    while high <= _MOST_STEPS and fits(high):
        low, high = high, 2 * high
    high = min(high, _MOST_STEPS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def noise_to_signal(
    sigma: float, clip_norm: float, expected_patients: float, trained_parameters: int
) -> float:
    """Returns the noise's norm over the largest norm that the signal of one step can have.

    The noise of a step has norm sigma C sqrt(d) for d trained parameters; the sum over the
    expected patients, each clipped to C, at most expected_patients C. C cancels: it is asked for
    so that the caller states it. Above about 10, many steps must average the noise away.
    """
    noise = sigma * clip_norm * math.sqrt(trained_parameters)
    return noise / (expected_patients * clip_norm)


def _check_others(others: Sequence[Event], limit: float, delta: float) -> None:
    spent = cost(others, delta)
    if spent > limit:
        raise LimitRefusal(
            "the other events of the study alone cost more than its epsilon",
            got=f"epsilon {spent:.4g}",
            expected=f"at most {limit:.4g}",
            hint="ask for a larger epsilon, or for fewer metrics and audits",
        )
