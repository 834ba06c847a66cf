"""Aggregation: a running weighted mean of updates, each checked and then dropped."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..study.errors import VerificationError, WireError

Tensors = dict[str, npt.NDArray[np.float32]]


class RunningMean:
    """The weighted mean of the updates seen so far; memory does not grow with their number.

    Args:
        weights: the global tensors, as safetensors.
        trained: the tensors that an update holds, all of them and no other.
        update_norm: the largest L2 norm of an update.
    """

    def __init__(self, weights: bytes, trained: Collection[str], update_norm: float) -> None:
        self._global: Tensors = load(weights)
        self._trained = set(trained)
        self._limit = update_norm
        self._sum: dict[str, npt.NDArray[np.float64]] = {}
        self._weight = 0.0

    def add(self, update: bytes, weight: float) -> float:
        """Check one update, add it, and return its L2 norm.

        Raises:
            WireError: not safetensors, or other names, shapes or types than the global tensors.
            VerificationError: not finite, or longer than the limit.
        """
        try:
            tensors = load(update)
        except (SafetensorError, ValueError, KeyError):
            raise WireError("an update is truncated or not safetensors") from None
        norm = self._check(tensors)
        for name, change in tensors.items():
            total = self._sum.setdefault(name, np.zeros(change.shape, np.float64))
            total += weight * change.astype(np.float64)
        self._weight += weight
        return norm

    def apply(self) -> bytes:
        """Return the global tensors plus the mean update, as safetensors.

        Raises:
            WireError: no update was added.
        """
        if self._weight <= 0:
            raise WireError("no update was added")
        moved = dict(self._global)
        for name, total in self._sum.items():
            moved[name] = (moved[name] + total / self._weight).astype(np.float32)
        return save({name: np.ascontiguousarray(moved[name]) for name in sorted(moved)})

    def _check(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> float:
        if set(tensors) != self._trained:
            raise WireError(
                "an update holds other tensors than the plan trains",
                got=f"{len(tensors)} tensors",
                expected=f"{len(self._trained)}",
            )
        squares = 0.0
        for name, change in tensors.items():
            known = self._global.get(name)
            if known is None or known.shape != change.shape or change.dtype != np.float32:
                raise WireError(
                    f"an update's tensor {name[:80]} does not fit",
                    got=f"{change.dtype} {change.shape}",
                    expected=f"float32 {known.shape}" if known is not None else "a known name",
                )
            squares += float(np.sum(np.square(change, dtype=np.float64)))
        norm = math.sqrt(squares) if math.isfinite(squares) else math.inf
        if not tensors or not norm <= self._limit:
            raise VerificationError(
                "an update is not finite or too long", got=f"norm {norm:.4g}", expected=self._limit
            )
        return norm
