"""Bounds what one patient can move: flat clipping of that patient's gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..study.errors import UsageError


class Clipped(NamedTuple):
    """One patient's clipped gradient.

    `finite` is False where the gradient held a NaN or an infinity; the patient then counts as
    zero. The flag depends on a single patient and never leaves the site.
    """

    gradient: list[Tensor]
    finite: bool


def clip(gradient: Sequence[Tensor], norm: float) -> Clipped:
    """Scales one patient's gradient, all tensors as one vector, to an L2 norm of at most `norm`.

    The norm is taken in float64. The scaled vector is aimed a few units of rounding below the
    bound, so that what remains after rounding to its dtype is never above it.

    Guarantee:
        Adding or removing the patient moves a float64 sum of clipped gradients by at most `norm`
        in L2 over all tensors together, rounding included.
    Assumes:
        `gradient` is the gradient of ONE patient's mean loss, over all that patient's volumes and
        noise draws (Abadi et al. 2016, with the patient as the unit).

    Args:
        gradient: one tensor per trained parameter, any shapes, any float dtype, one device.
        norm: the clip norm C.

    Returns:
        The clipped tensors in the same shapes, float64 for float64 and float32 otherwise.

    Raises:
        UsageError: if `norm` is not a positive finite number.
    """
    if not (math.isfinite(norm) and norm > 0):
        raise UsageError("a clip norm must be positive and finite", got=norm, expected="C > 0")
    wide = [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in gradient]
    length = gradient_norm(wide)
    if not math.isfinite(length):
        return Clipped([torch.zeros_like(tensor) for tensor in wide], finite=False)
    rounding = max((torch.finfo(tensor.dtype).eps for tensor in wide), default=0.0)
    bound = norm * (1 - max(4 * rounding, 1e-12))
    if length <= bound:
        return Clipped([tensor.clone() for tensor in wide], finite=True)
    return Clipped([tensor * (bound / length) for tensor in wide], finite=True)


def gradient_norm(gradient: Sequence[Tensor]) -> float:
    """Returns the L2 norm of all tensors as one vector, in float64; NaN or infinite if any is."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in gradient]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
