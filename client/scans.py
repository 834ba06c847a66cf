"""Scans: the approved volumes of one study, read through the cache and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..models.base import Batch
from ..study.plan import VolumeSettings
from .cache import VolumeCache
from .manifest import Manifest, check_unchanged

MEMORY_BYTES = 2 * 1024**3
"""Volumes kept in memory, at most; further ones are read from the cache on disk."""


class Scans:
    """Volumes by patient, checked against the frozen manifest.

    Args:
        manifest: the cohort as it was approved.
        folder: the cohort's folder now.
        cache: where preprocessed volumes are kept.
        settings: the plan's grid and intensity.
        device: where batches are put.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        cache: Path,
        settings: VolumeSettings,
        device: torch.device,
    ) -> None:
        self._manifest, self._folder, self._device = manifest, folder, device
        self._cache = VolumeCache(cache, settings)
        self._known: dict[str, tuple[int, ...]] = {}
        self._kept: dict[str, npt.NDArray[np.float32]] = {}
        self._bytes = 0

    def check(self, patients: Iterable[str]) -> None:
        """Raise CohortChanged naming the first file that is not the one that was approved."""
        check_unchanged(self._manifest, self._folder, patients, self._known)

    def volumes(self, patient: str) -> list[npt.NDArray[np.float32]]:
        """Return a patient's volumes, each (1, D, H, W) in [-1, 1].

        Raises:
            CohortChanged: a scan is not the one that was approved.
            VolumeError: a scan cannot be used.
        """
        return [self._volume(file.path, file.sha256) for file in self._manifest.patients[patient]]

    def batches(self, patient: str) -> list[Batch]:
        """Return a patient's volumes, each as a batch of one, (1, 1, D, H, W)."""
        return [
            Batch(volumes=torch.from_numpy(volume)[None].to(self._device))
            for volume in self.volumes(patient)
        ]

    def table(self, patients: Sequence[str]) -> Mapping[str, list[npt.NDArray[np.float32]]]:
        """Return the volumes of several patients by name."""
        return {patient: self.volumes(patient) for patient in patients}

    def _volume(self, path: str, sha256: str) -> npt.NDArray[np.float32]:
        if sha256 in self._kept:
            return self._kept[sha256]
        volume = self._cache.get(self._folder / path, sha256)
        if self._bytes + volume.nbytes <= MEMORY_BYTES:
            self._kept[sha256] = volume
            self._bytes += volume.nbytes
        return volume
