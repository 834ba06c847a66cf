"""A lower bound on epsilon from one run with many canaries (Steinke, Nasr and Jagielski 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from ...study.errors import UsageError

LEVEL = 0.95
_MOST = 60.0  # no number of guesses that fits into memory proves a larger epsilon
_HALVINGS = 60


def right_guesses(scores: npt.NDArray[np.float64], included: Sequence[bool], guesses: int) -> int:
    """Returns how many guesses are right: "in" for the highest scores, "out" for the lowest.

    Args:
        scores: (m,), one a canary, higher where the canary seems to be included.
        included: the m coins, heads for an included canary.
        guesses: how many canaries are guessed at, even and fixed before any score is seen; the
            others are passed over.

    Raises:
        UsageError: if the number of guesses is odd, or larger than that of the canaries.
    """
    if guesses % 2 or not 0 < guesses <= len(scores) == len(included):
        raise UsageError(
            "guesses must be split into as many in as out",
            got=guesses,
            expected=f"an even number up to {len(scores)}, and one coin a score",
        )
    order = np.argsort(scores, kind="stable")
    coins = np.array(included)[order]
    half = guesses // 2
    return int(coins[-half:].sum() + (~coins[:half]).sum())


def p_value(epsilon: float, *, right: int, guesses: int, canaries: int, delta: float) -> float:
    """Returns the largest chance that an (epsilon, delta)-private run allows so many right guesses.

    Each guess is right with probability at most e^epsilon / (1 + e^epsilon), as if independent;
    delta adds 2 m delta times the steepest mean slope of the binomial tail below `right`
    (Steinke et al. 2023, theorem 5.2).

    Guarantee:
        If the run is (epsilon, delta)-private towards adding or removing a canary, the chance of
        `right` or more right guesses is at most the value.
    Assumes:
        The coins are fair and independent, and were recorded before the run; which and how many
        canaries are guessed at depends on the release alone.

    Args:
        epsilon: the hypothesis, 0 or more.
        right: v, the right guesses.
        guesses: r, all guesses made.
        canaries: m, all coins flipped, also those of canaries that nobody guessed at.
        delta: in [0, 1).

    Raises:
        UsageError: if not 0 <= right <= guesses <= canaries, or epsilon or delta is out of range.
    """
    check_counts(right, guesses, canaries)
    _check(epsilon, delta)
    chance = 1 / (1 + math.exp(-epsilon))
    # at_most[k] = P[Bin(guesses, chance) <= k - 1]
    at_most = np.concatenate([[0.0], bdtr(np.arange(right), guesses, chance)])
    tail = 1 - at_most[right]
    steps = np.arange(1, right + 1)
    slopes = (at_most[right] - at_most[right - steps]) / steps
    slope = float(slopes.max(initial=0.0))
    return min(1.0, float(tail) + 2 * canaries * delta * slope)


def lower_bound(
    *, right: int, guesses: int, canaries: int, delta: float, level: float = LEVEL
) -> float:
    """Returns the largest epsilon that the guesses reject, 0 where they reject none.

    Guarantee:
        For a run that is (epsilon, delta)-private the value is above epsilon with probability at
        most 1 - level. It is a lower bound only: a low value proves nothing.
    Assumes:
        As in `p_value`.

    Args:
        right: the right guesses.
        guesses: all guesses made.
        canaries: all coins flipped.
        delta: the delta at which epsilon is asked for.
        level: the confidence.

    Raises:
        UsageError: as in `p_value`.
    """

    def rejected(epsilon: float) -> bool:
        p = p_value(epsilon, right=right, guesses=guesses, canaries=canaries, delta=delta)
        return p <= 1 - level

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, _MOST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def check_counts(right: int, guesses: int, canaries: int) -> None:
    """Refuse numbers of guesses that cannot be.

    Raises:
        UsageError: if not 0 <= right <= guesses <= canaries with at least one guess.
    """
    if not 0 <= right <= guesses <= canaries or not guesses:
        raise UsageError(
            "right guesses are among the guesses, and those among the canaries",
            got=f"{right}, {guesses}, {canaries}",
        )


def _check(epsilon: float, delta: float) -> None:
    if not (0 <= delta < 1 and 0 <= epsilon < math.inf):
        raise UsageError(
            "epsilon or delta is out of range",
            got=f"epsilon {epsilon}, delta {delta}",
            expected="epsilon 0 or more, delta in [0, 1)",
        )
