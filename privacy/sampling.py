"""Who takes part in a private step, and who is held out: exact draws from the system's CSPRNG.

Rates and coins are compared as integers, so that a patient is drawn with the probability that
the accountant was told, to the last bit. `random_bytes` is replaced in tests only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..study.errors import UsageError


def poisson(
    patients: Sequence[str], rate: float, *, random_bytes: Callable[[int], bytes] = os.urandom
) -> list[str]:
    """Draws each patient independently with probability `rate`; the draw may be empty.

    A float is a fraction m / 2^e. Each patient gets e fresh bits, read as an integer, and takes
    part if that integer is below m: no rounding happens anywhere.

    Guarantee:
        Every patient takes part with probability exactly `rate`, independently of the others and
        of every earlier draw: the Poisson sampling that `accounting.Event.rate` stands for.
    Assumes:
        The operating system's generator is indistinguishable from uniform bits, and each patient
        is listed once.

    Args:
        patients: the cohort's patients, each once.
        rate: the sampling rate q, in (0, 1].
        random_bytes: tests only; n -> n random bytes.

    Returns:
        The patients drawn, in the order given.

    Raises:
        UsageError: if the rate lies outside (0, 1] or a patient is listed twice.
    """
    if not 0 < rate <= 1:
        raise UsageError("a sampling rate is a probability", got=rate, expected="0 < rate <= 1")
    if len(set(patients)) != len(patients):
        raise UsageError(
            "a patient is listed twice",
            got=f"{len(patients)} entries for {len(set(patients))} patients",
            hint="list each patient once: twice would double that patient's share",
        )
    numerator, denominator = rate.as_integer_ratio() if isinstance(rate, float) else (1, 1)
    bits = denominator.bit_length() - 1
    width = (bits + 7) // 8
    drawn = random_bytes(width * len(patients))
    return [
        patient
        for i, patient in enumerate(patients)
        if int.from_bytes(drawn[i * width : (i + 1) * width]) >> (8 * width - bits) < numerator
    ]


def flip(n: int, *, random_bytes: Callable[[int], bytes] = os.urandom) -> list[bool]:
    """Flips n fair, independent coins: heads (True) trains, tails (False) is held out.

    Guarantee:
        Each coin is one bit of the operating system's generator, so that the one-run audit's
        p-values hold (Steinke, Nasr and Jagielski 2023).
    Assumes:
        The coins are recorded before training and never flipped again.

    Args:
        n: how many coins.
        random_bytes: tests only; n -> n random bytes.
    """
    drawn = int.from_bytes(random_bytes((n + 7) // 8))
    return [bool(drawn >> i & 1) for i in range(n)]


def choose(n: int, k: int, *, random_bytes: Callable[[int], bytes] = os.urandom) -> list[int]:
    """Chooses k of the indices 0 … n - 1, every set of k with the same probability, in order.

    Args:
        n: how many there are.
        k: how many to choose.
        random_bytes: tests only; n -> n random bytes.

    Raises:
        UsageError: if there are fewer than k.
    """
    if not 0 <= k <= n:
        raise UsageError("more patients are asked for than there are", got=k, expected=f"0 to {n}")
    indices = list(range(n))
    for i in range(k):
        j = i + _below(n - i, random_bytes)
        indices[i], indices[j] = indices[j], indices[i]
    return sorted(indices[:k])


def _below(n: int, random_bytes: Callable[[int], bytes]) -> int:
    """Draws an integer from 0 to n - 1; rejects instead of taking a remainder, which is biased."""
    bits = (n - 1).bit_length()
    width = (bits + 7) // 8
    while True:
        drawn = int.from_bytes(random_bytes(width)) >> (8 * width - bits)
        if drawn < n:
            return drawn
