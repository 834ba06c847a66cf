"""Bounds what one patient can move: flat clipping of that patient's gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..study.errors import UsageError

MARGIN = 1e-12
"""How far below the bound a clipped norm is aimed, so that rounding in float64 stays under it."""


def clip_weights(norms: Tensor, bound: float) -> Tensor:
    """Returns what to multiply each patient's gradient by, so that no norm is above `bound`.

    Guarantee:
        In a float64 sum of gradients times weights, adding or removing a patient moves the sum by
        at most `bound` in L2 over all parameters together; a patient whose norm is not finite
        has weight zero and must be left out of the sum (0 times infinity is not 0).
    Assumes:
        `norms` holds the norm, taken in float64 over all parameters as one vector, of each
        patient's ONE gradient: that of the mean loss over all the patient's volumes and noise
        draws (Abadi et al. 2016, with the patient as the unit).

    Args:
        norms: float64 (P,), one for each patient.
        bound: the clip norm C.

    Returns:
        float64 (P,) in [0, 1].

    Raises:
        UsageError: if `bound` is not a positive finite number.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise UsageError("a clip norm must be positive and finite", got=bound, expected="C > 0")
    shrunk = bound * (1 - MARGIN) / norms.clamp(min=bound)
    weights = torch.where(norms <= bound * (1 - MARGIN), torch.ones_like(norms), shrunk)
    return torch.where(torch.isfinite(norms), weights, torch.zeros_like(norms))
