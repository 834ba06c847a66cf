"""The first membership score: a patient whose scans are rebuilt too well was in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...study.errors import VolumeError

if TYPE_CHECKING:
    from ...models.base import Reconstructs

RECONSTRUCTION = "reconstruction"
SCORES = {RECONSTRUCTION: "mean absolute reconstruction error"}
LOWER_IS_MEMBER = frozenset({RECONSTRUCTION})
EDGES: tuple[float, ...] = tuple(float(edge) for edge in np.geomspace(1e-4, 4.0, 257))


def reconstruction_errors(
    family: Reconstructs,
    volumes: Mapping[str, Sequence[npt.NDArray[np.float32]]],
    device: str,
) -> dict[str, float]:
    """Returns each patient's mean absolute error when rebuilt by the model; members' are lower.

    Errors are averaged over the voxels of a volume, then over the volumes of a patient.

    Args:
        family: a model that satisfies `Reconstructs`, already on `device`.
        volumes: the patients' volumes, each (1, D, H, W) in [-1, 1].
        device: where the volumes go, such as "cpu" or "cuda".

    Raises:
        VolumeError: a patient has no volume, or the model rebuilt values that are not finite.
    """
    import torch

    errors: dict[str, float] = {}
    with torch.inference_mode():
        for patient, scans in volumes.items():
            means = []
            for scan in scans:
                batch = torch.from_numpy(np.ascontiguousarray(scan, dtype=np.float32))
                batch = batch.unsqueeze(0).to(device)
                means.append(float((family.reconstruct(batch) - batch).abs().mean()))
            if not means or not np.isfinite(means).all():
                raise VolumeError(
                    "a patient cannot be scored",
                    got="no volume" if not means else "an error that is not finite",
                    hint="run the site's check; if it passes, the weights are damaged",
                )
            errors[patient] = float(np.mean(means))
    return errors


def histogram(values: Iterable[float], edges: Sequence[float]) -> tuple[float, ...]:
    """Returns how many values lie in each bin; values outside the edges go to the end bins.

    Sensitivity: a patient adds 1 to one bin of one of the two histograms, so the L2 sensitivity to
    adding or removing a patient is 1.
    """
    given = np.fromiter(values, dtype=np.float64)
    bins = np.searchsorted(np.asarray(edges[1:-1]), given, side="right")
    return tuple(float(n) for n in np.bincount(bins, minlength=len(edges) - 1))


def mean_of(counts: Sequence[float], edges: Sequence[float]) -> float | None:
    """Returns the mean of binned values, each taken at its bin's geometric centre, if any."""
    total = sum(counts)
    if total <= 0:
        return None
    centres = np.sqrt(np.asarray(edges[:-1]) * np.asarray(edges[1:]))
    return float(np.dot(counts, centres) / total)
