"""The noise of a release: what was released minus what went into the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from scipy.special import gammainc, gammaincc, ndtr
from torch import Tensor

from .. import engine
from .specimen import SETTINGS, Reading, Specimen

RELEASES = 16
LIMIT = 1e-6
Noise = Callable[[Sequence[Tensor], float], list[Tensor]]
Values = npt.NDArray[np.float64]


def read() -> Reading:
    """Test the noise of several releases against sigma C and for bits that were used twice.

    Guarantee:
        A sound engine raises an alarm with probability at most 2 LIMIT: one for each test.
    Assumes:
        Rounding to the release grid and to float32 is small beside the noise.
    """
    noise = _noise(Specimen())
    size, repeats = size_p_value(noise), repeat_p_value(noise)
    smallest = min(size, repeats)
    deviation = math.sqrt(float(np.mean(noise**2)))
    detail = f"deviation {deviation:.4f} sigma C, p {size:.2g}; repeats, p {repeats:.2g}"
    return Reading(smallest, LIMIT, not (smallest >= LIMIT and np.isfinite(noise).all()), detail)


def size_p_value(noise: Values) -> float:
    """Returns how often N(0, 1) values have a sum of squares so far off (chi-square, two-sided)."""
    half = noise.size / 2
    total = float(np.sum(noise**2)) / 2
    return min(1.0, 2 * min(float(gammainc(half, total)), float(gammaincc(half, total))))


def repeat_p_value(noise: Values) -> float:
    """Returns how often independent N(0, 1) values resemble themselves so much at some distance.

    A keystream that is used again, in the next release or the next tensor, repeats the noise at
    that distance. Each autocorrelation over n - k products is nearly N(0, n - k); the largest of
    all distances k up to 3/4 of the record counts, times their number (Bonferroni).

    Args:
        noise: (n,), the noise of all releases one after the other.
    """
    n = noise.size
    spectrum = np.fft.rfft(noise, 2 * n)
    products = np.fft.irfft(np.abs(spectrum) ** 2, 2 * n)
    distances = np.arange(1, 3 * n // 4)
    largest = float(np.max(np.abs(products[distances]) / np.sqrt(n - distances)))
    return min(1.0, 2 * len(distances) * float(ndtr(-largest)))


def _noise(specimen: Specimen) -> Values:
    """Returns the noise of all releases in units of sigma C, one after the other."""
    real: Noise = vars(engine)["add_noise"]  # as it now is: a fault may be planted
    before: list[Values] = []

    def kept(total: Sequence[Tensor], deviation: float) -> list[Tensor]:
        before.append(np.concatenate([part.numpy().ravel() for part in total]))
        return real(total, deviation)

    patients = tuple(specimen.cohort)
    with patch.object(engine, "add_noise", kept):
        after = [specimen.release(patients).numpy() for _ in range(RELEASES)]
    noise = np.concatenate(after) * SETTINGS.divisor - np.concatenate(before)
    return np.asarray(noise / (SETTINGS.sigma * SETTINGS.clip_norm), dtype=np.float64)
