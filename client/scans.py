"""Scans: the approved volumes of one study and their conditions, cached and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..models.base import NO_CONDITION, Batch, Condition
from ..models.canary import make_canary
from ..study.condition import ConditionSettings
from ..study.errors import CohortChanged
from ..study.plan import VolumeSettings
from .cache import Beside, VolumeCache
from .manifest import FrozenFile, Manifest, check_unchanged

MEMORY_BYTES = 2 * 1024**3
"""What is kept in memory, at most; further volumes are read from the cache on disk."""


class Scans:
    """Volumes by patient, checked against the frozen manifest.

    Args:
        manifest: the cohort as it was approved.
        folder: the cohort's folder now.
        cache: where preprocessed volumes are kept.
        settings: the plan's grid and intensity.
        device: where batches are put.
        condition: what each volume is told, in a study that asks for it.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        cache: Path,
        settings: VolumeSettings,
        device: torch.device,
        condition: ConditionSettings | None = None,
    ) -> None:
        self._condition = condition
        self._manifest, self._folder, self._device = manifest, folder, device
        self._cache, self._shape = VolumeCache(cache, settings), settings.shape
        self._known: dict[str, tuple[int, ...]] = {}
        self._kept: dict[tuple[str, ...], npt.NDArray[Any]] = {}
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
        return [self._volume(file) for file in self._manifest.patients[patient]]

    def batches(self, patient: str) -> list[Batch]:
        """Return a patient's volumes, each as a batch of one, (1, 1, D, H, W), with its condition.

        A canary has one volume, and studies that have canaries have no condition.

        Raises:
            CohortChanged: a file is not the one that was approved.
            VolumeError: a scan, mask or source cannot be used.
        """
        if patient in self._manifest.canaries.names:
            return [Batch(self._tensor(self._canary(patient)[None]))]
        return [
            Batch(self._tensor(self._volume(file)[None]), self._told(patient, file))
            for file in self._manifest.patients[patient]
        ]

    def table(self, patients: Sequence[str]) -> Mapping[str, list[npt.NDArray[np.float32]]]:
        """Return the volumes of several patients by name."""
        return {patient: self.volumes(patient) for patient in patients}

    def _told(self, patient: str, file: FrozenFile) -> Condition:
        """Return what a volume is told, as a condition of one row."""
        other = self._beside(file)
        if other is not None:
            seen = self._keep(
                ("beside", other.sha256), lambda: self._cache.beside(file.sha256, other)
            )
            if other.condition.kind == "mask":
                return Condition(mask=self._tensor(seen[None].astype(np.int64)))
            return Condition(source=self._tensor(seen[None]))
        if self._condition is None:
            return NO_CONDITION
        if self._condition.kind == "class":
            return Condition(label=self._tensor(self._numbers(patient, np.int64)))
        return Condition(attributes=self._tensor(self._numbers(patient, np.float32)[None]))

    def _numbers(self, patient: str, kind: type[np.generic]) -> npt.NDArray[Any]:
        if patient not in self._manifest.numbers:
            raise CohortChanged("the approved cohort has no class or attributes", got=patient)
        return np.array(self._manifest.numbers[patient], dtype=kind)

    def _volume(self, file: FrozenFile) -> npt.NDArray[np.float32]:
        path, other = self._folder / file.path, self._beside(file)
        key = file.sha256, other.sha256 if other else ""
        return self._keep(("image", *key), lambda: self._cache.get(path, file.sha256, other))

    def _canary(self, name: str) -> npt.NDArray[np.float32]:
        canaries = self._manifest.canaries
        number = canaries.names.index(name)
        return self._keep(("canary", name), lambda: make_canary(canaries.seed, number, self._shape))

    def _beside(self, file: FrozenFile) -> Beside | None:
        """Return the mask or source that an image is cropped and told by, where the study has it.

        Raises:
            CohortChanged: the study has it, and the approved cohort has not.
        """
        condition = self._condition
        if condition is None or condition.kind in ("class", "attributes"):
            return None
        if file.beside is None:
            raise CohortChanged("the approved cohort has no image beside this one", got=file.path)
        return Beside(self._folder / file.beside.path, file.beside.sha256, condition)

    def _keep(self, key: tuple[str, ...], read: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if key in self._kept:
            return self._kept[key]
        volume = read()
        if self._bytes + volume.nbytes <= MEMORY_BYTES:
            self._kept[key] = volume
            self._bytes += volume.nbytes
        return volume

    def _tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)
