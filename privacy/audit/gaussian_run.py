"""A lower bound on epsilon from one run, if its privacy is Gaussian (Mahloujifar et al. 2024)."""

from __future__ import annotations

from scipy.special import ndtr, ndtri

from .ceiling import gaussian_epsilon
from .one_run import LEVEL, check_counts

_MOST = 40.0  # standard deviations: no number of guesses that fits into memory proves more
_HALVINGS = 50


def rejected(mu: float, *, right: int, guesses: int, canaries: int, level: float = LEVEL) -> bool:
    """Returns whether so many right guesses are too many for a run with Gaussian privacy mu.

    Bounds from the right guesses downwards what the run can give to each number of them, by the
    trade-off curve g(x) = Phi(Phi^-1(x) - mu) (Mahloujifar, Melis and Chaudhuri 2024, algorithm 3).

    Guarantee:
        If the run is mu-Gaussian private towards adding or removing a canary, it is rejected with
        probability at most 1 - level.
    Assumes:
        The coins are fair and independent, and were recorded before the run; which and how many
        canaries are guessed at depends on the release alone. A run that is (epsilon, delta)-private
        in another shape is not covered: that is what `one_run` is for.

    Args:
        mu: the hypothesis: by how many standard deviations one canary moves what is released.
        right: the right guesses.
        guesses: all guesses made.
        canaries: all coins flipped.
        level: the confidence.

    Raises:
        UsageError: if not 0 <= right <= guesses <= canaries.
    """
    check_counts(right, guesses, canaries)
    lost = (1 - level) * right / canaries
    held = (1 - level) * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        more = max(held, float(ndtr(ndtri(min(lost, 1.0)) - mu)))
        lost += i / (guesses - i) * (more - held)
        held = more
    return lost + held > guesses / canaries


def lower_bound(
    *, right: int, guesses: int, canaries: int, delta: float, level: float = LEVEL
) -> float:
    """Returns the largest epsilon that the guesses reject at delta, 0 where they reject none.

    Guarantee:
        For a run whose privacy is that of a Gaussian mechanism, the value is above its epsilon at
        delta with probability at most 1 - level. A low value proves nothing.
    Assumes:
        As in `rejected`. It is sharper than `one_run.lower_bound` because it assumes more.

    Args:
        right: the right guesses.
        guesses: all guesses made.
        canaries: all coins flipped.
        delta: the delta at which epsilon is asked for, above 0.
        level: the confidence.

    Raises:
        UsageError: as in `rejected`, or if delta is not inside (0, 1).
    """

    def too_many(mu: float) -> bool:
        return rejected(mu, right=right, guesses=guesses, canaries=canaries, level=level)

    low, high = 0.0, _MOST
    if too_many(low):
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if too_many(middle) else (low, middle)
    return gaussian_epsilon(low, delta)
