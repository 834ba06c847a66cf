"""Guesses at the coins of an audit's patients, from histograms, and what they prove about epsilon.

The most member-like patients are guessed to be members, the least member-like to be none, and the
middle is passed over. Whole bins are taken, by how many patients they hold and never by who is a
member, so that the number of guesses is fixed before a coin is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...study.errors import UsageError
from . import gaussian_run, one_run
from .one_run import LEVEL
from .statistics import BinnedScores

SHARE = 0.25  # of a site's patients, guessed at from each end


@dataclass(frozen=True)
class Guesses:
    """How many guesses at coins were right.

    Attributes:
        right: v, the right guesses.
        made: r, all guesses.
        patients: m, all patients whose coin was flipped, guessed at or not.
    """

    right: int
    made: int
    patients: int


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon.

    Attributes:
        general: holds whatever shape the privacy has (Steinke et al. 2023).
        gaussian: holds if the privacy is that of a Gaussian mechanism (Mahloujifar et al. 2024).
    """

    general: float
    gaussian: float


def guess(sites: Sequence[BinnedScores], *, share: float = SHARE) -> Guesses:
    """Returns the guesses at all sites' patients, each site's from both ends of its histogram.

    Assumes:
        Each patient's coin was fair and flipped independently before training; the score reads the
        release and that patient alone.

    Args:
        sites: one score's exact histograms, with bins that do not depend on who is a member.
        share: at most this share of a site's patients is guessed at from each end.

    Raises:
        UsageError: if counts are noised, or the share is not in (0, 0.5]; or the score was fitted
            to other patients' coins: its guesses hang together and would prove too much.
    """
    if any(scores.noise or scores.fitted for scores in sites):
        raise UsageError("guesses need exact counts of a score that was not fitted to coins")
    if not 0 < share <= 0.5:
        raise UsageError("a share of guesses is out of range", got=share, expected="in (0, 0.5]")
    right = made = patients = 0
    for scores in sites:
        members, others = np.array(scores.members), np.array(scores.non_members)
        total = round(float((members + others).sum()))
        most = share * total + 1e-9
        high = int(np.sum(np.cumsum((members + others)[::-1]) <= most))
        low = int(np.sum(np.cumsum(members + others) <= most))
        top, bottom = slice(len(members) - high, None), slice(low)
        right += round(float(members[top].sum() + others[bottom].sum()))
        made += round(float((members + others)[top].sum() + (members + others)[bottom].sum()))
        patients += total
    return Guesses(right, made, patients)


def bounds(guesses: Guesses, delta: float, *, level: float = LEVEL) -> Bounds:
    """Returns what the guesses prove about epsilon at delta, 0 where they prove nothing.

    Guarantee:
        With probability `level`, epsilon at delta is not below `general`; nor below `gaussian`, if
        the privacy is that of a Gaussian mechanism.
    Assumes:
        As in `guess`. Of several scores looked at, each has 1 - (1 - level) / scores for its own.

    Raises:
        UsageError: if the numbers cannot be, or delta is not inside (0, 1).
    """
    if not guesses.made:
        return Bounds(0.0, 0.0)
    return Bounds(
        *(
            form.lower_bound(
                right=guesses.right,
                guesses=guesses.made,
                canaries=guesses.patients,
                delta=delta,
                level=level,
            )
            for form in (one_run, gaussian_run)
        )
    )


def cap(patients: int, delta: float, *, level: float = LEVEL, share: float = SHARE) -> Bounds:
    """Returns the most that so many patients could prove: the bounds if every guess were right.

    Raises:
        UsageError: if delta is not inside (0, 1).
    """
    made = 2 * math.floor(share * patients)
    return bounds(Guesses(made, made, patients), delta, level=level)
