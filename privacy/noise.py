"""Gaussian noise for releases, from a ChaCha20 keystream that the operating system keys."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

from ..study.errors import UsageError

DRAWS = 2
"""Independent Gaussians summed in each value."""

GRID_BITS = 16
"""The release grid is at most 2^-16 standard deviations wide."""

_BLOCK = 1 << 15  # values worked on at a time: the buffers stay in the processor's cache


class Keystream:
    """Random bits of one release: ChaCha20 (RFC 8439) under a key that is used once.

    Args:
        key: 32 bytes. Only tests choose it; everything else calls `from_system`.
    """

    def __init__(self, key: bytes) -> None:
        # A key serves one release, so the nonce may be zero; the counter then never repeats.
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    @classmethod
    def from_system(cls) -> Keystream:
        """Opens a keystream under a fresh key from the operating system's CSPRNG."""
        return cls(os.urandom(32))

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """Returns the next n words of 64 bits; no bit is ever given out twice."""
        drawn = bytearray(8 * n)
        self._cipher.update_into(bytes(8 * n), drawn)
        return np.frombuffer(drawn, dtype="<u8").astype(np.uint64, copy=False)


def add_noise(
    total: Sequence[Tensor], standard_deviation: float, *, keystream: Keystream | None = None
) -> list[Tensor]:
    """Adds N(0, standard_deviation^2) to every value of a sum and rounds the result to a grid.

    Sum and noise are float64. Each noise value is the scaled sum of `DRAWS` Box-Muller values
    from uniforms of 53 bits (`_uniforms`). The result is rounded to multiples of
    `grid(standard_deviation)` and only then becomes float32. A value of plain floating-point
    noise has gaps that tell which sum it was added to (Mironov 2012); a sum of draws fills them
    (Holohan and Braghin 2021) and the grid covers what is left.

    Guarantee:
        With L2 sensitivity C and standard_deviation = sigma C, the release is the Gaussian
        mechanism with noise multiplier sigma, followed by a rounding that sees only the release.
    Assumes:
        ChaCha20 under a secret key is indistinguishable from uniform bits; float64 stands for the
        reals up to 2^-36 of a grid step; the sum's terms were clipped by `clipping.clip_weights`.

    Args:
        total: the sum over patients, float64 tensors of any shapes.
        standard_deviation: sigma C, in the units of the sum.
        keystream: tests only; a release otherwise opens its own, with a fresh key.

    Returns:
        The noised tensors, float32, in the same shapes and on the same devices.

    Raises:
        UsageError: if the standard deviation is not positive and finite, or a tensor is not
            finite float64.
    """
    step = grid(standard_deviation)
    if any(tensor.dtype != torch.float64 for tensor in total):
        raise UsageError("a sum to be noised must be float64")
    stream = keystream or Keystream.from_system()
    return [_noised(tensor, standard_deviation, step, stream) for tensor in total]


def grid(standard_deviation: float) -> float:
    """Returns the width of the release grid: the largest power of two up to sd 2^-16.

    Raises:
        UsageError: if the standard deviation is not positive and finite.
    """
    if not (math.isfinite(standard_deviation) and standard_deviation > 0):
        raise UsageError(
            "noise needs a positive, finite standard deviation",
            got=standard_deviation,
            expected="sigma C > 0",
        )
    return math.ldexp(0.5, math.frexp(standard_deviation)[1] - GRID_BITS)


def _noised(tensor: Tensor, deviation: float, step: float, stream: Keystream) -> Tensor:
    values = tensor.detach().cpu().contiguous().numpy().reshape(-1)
    released = np.empty(values.size, dtype=np.float32)
    scale = deviation / math.sqrt(DRAWS)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        noise = _sum_of_draws(block.size, stream)
        noise *= scale
        noise += block
        if not np.isfinite(noise).all():
            raise UsageError("a sum to be noised must be finite", hint="clip each patient first")
        # A power of two divides and multiplies without error: only rint rounds.
        noise *= 1 / step
        np.rint(noise, out=noise)
        noise *= step
        released[start : start + _BLOCK] = noise
    return torch.from_numpy(released).reshape(tensor.shape).to(tensor.device)


def _sum_of_draws(n: int, stream: Keystream) -> npt.NDArray[np.float64]:
    """Returns n sums of `DRAWS` standard normal values, float64."""
    total = np.zeros(n + n % 2)
    for cosine, sine in _pairs(n, stream):
        total[0::2] += cosine
        total[1::2] += sine
    return total[:n]


def _pairs(
    n: int, stream: Keystream
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Yields `DRAWS` times the two halves of n standard normal values (Box and Muller 1958).

    With t = tan(pi (u - 1/2)), cosine and sine of the uniform angle are (1 - t^2) / (1 + t^2)
    and 2 t / (1 + t^2): one fast function instead of two slow ones.
    """
    half = (n + 1) // 2
    for _ in range(DRAWS):
        uniform = _uniforms(stream.words(2 * half))
        radius, tangent = uniform[:half], uniform[half:]
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        tangent -= 0.5
        tangent *= math.pi
        np.tan(tangent, out=tangent)
        share = tangent * tangent
        share += 1.0
        np.divide(radius, share, out=share)
        tangent *= share
        tangent *= 2.0
        share *= 2.0
        share -= radius
        yield share, tangent


def _uniforms(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Turns words into odd multiples of 2^-53 between 0 and 1: symmetric, never 0, never 1."""
    words >>= np.uint64(12)
    words |= np.uint64(0x3FF0000000000000)
    uniform = words.view(np.float64)
    uniform -= 1.0 - 2.0**-53
    return uniform
