"""The most that a membership attack can reach where (epsilon, delta) is claimed.

The first two are proofs: no attack does better, on average over runs. The Gaussian figures are what
training with Gaussian noise really allows when its whole privacy is near that of one Gaussian
mechanism (Dong, Roth and Su, JRSS B 84, 2022): closer, for display, and no proof.
"""

from __future__ import annotations

import math

from scipy.special import expit, log_ndtr, ndtr, ndtri

from ...study.errors import UsageError

_HALVINGS = 200
_MOST = 700.0  # e^epsilon still fits into a float, and no claim is near


def rate_ceiling(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """Returns the largest share of members that can be found at a false positive rate.

    One less the trade-off curve max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a))
    (Kairouz, Oh and Viswanath, ICML 2015).

    Guarantee:
        An attack on a run that is (epsilon, delta)-private towards adding or removing a patient
        finds, on average over runs, no more.
    Assumes:
        Coins decided independently who is a member. Scores of one run are compared with each other,
        which adds a term of the order 1 / patients, and they scatter: what a ceiling is held
        against is the lower end of the interval. `one_run` needs neither excuse.

    Raises:
        UsageError: if epsilon is below 0 or no number, or delta or the rate is outside [0, 1].
    """
    _check(epsilon, delta, least_delta=0.0)
    _check_rate(false_positive_rate)
    up = delta + math.exp(min(epsilon, _MOST)) * false_positive_rate
    down = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return min(1.0, up, down)


def auc_ceiling(epsilon: float, delta: float) -> float:
    """Returns the largest AUC of any membership attack: 1 - (1 - delta)^2 / (1 + e^epsilon).

    That is the area under `rate_ceiling`. Guarantee, assumptions and refusals are the same.
    """
    _check(epsilon, delta, least_delta=0.0)
    return 1 - (1 - delta) ** 2 * float(expit(-epsilon))


def gaussian_auc(epsilon: float, delta: float) -> float:
    """Returns the AUC of the best attack on a Gaussian mechanism that just keeps to the claim.

    Raises:
        UsageError: as in `separation`.
    """
    return float(ndtr(separation(epsilon, delta) / math.sqrt(2)))


def gaussian_rate(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """Returns the members that the best attack on that Gaussian mechanism finds at a rate.

    Raises:
        UsageError: as in `separation`, or if the rate is outside [0, 1].
    """
    _check_rate(false_positive_rate)
    return float(ndtr(ndtri(false_positive_rate) + separation(epsilon, delta)))


def separation(epsilon: float, delta: float) -> float:
    """Returns how many standard deviations one patient moves a Gaussian that keeps to the claim.

    It is the mu of Gaussian privacy, where delta = `gaussian_delta(epsilon, mu)`.

    Raises:
        UsageError: if epsilon is below 0 or no number, or delta is not inside (0, 1).
    """
    _check(epsilon, delta, least_delta=math.ulp(0.0))
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) < delta:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(epsilon, middle) > delta else (middle, high)
    return low


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Returns the least epsilon of a Gaussian that one patient moves by mu standard deviations.

    Raises:
        UsageError: if mu is below 0 or no number, or delta is not inside (0, 1).
    """
    _check(mu, delta, least_delta=math.ulp(0.0))
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Returns Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2) (Balle and Wang 2018)."""
    if mu == 0:
        return 0.0
    above = float(ndtr(mu / 2 - epsilon / mu))
    return above - math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)))


def _check(epsilon: float, delta: float, *, least_delta: float) -> None:
    if not (0 <= epsilon < math.inf and least_delta <= delta < 1):
        raise UsageError(
            "no ceiling follows",
            got=f"epsilon {epsilon}, delta {delta}",
            expected=f"epsilon 0 or more, delta {'inside (0' if least_delta else 'in [0'}, 1)",
        )


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise UsageError("a rate lies between 0 and 1", got=rate)
