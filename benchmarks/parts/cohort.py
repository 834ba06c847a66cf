"""The patients of the benchmark of families: what is drawn of each, and what a family is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from voxfed.client.alignment import align, preprocess_beside
from voxfed.client.cohort import Image, read_cohort
from voxfed.client.volumes import preprocess
from voxfed.models.base import NO_CONDITION, Condition
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.study.condition import ConditionSettings
from voxfed.study.plan import VolumeSettings

Volumes = npt.NDArray[np.float32]
Told = npt.NDArray[Any] | None

ROOT = Path(__file__).resolve().parents[2]
PATIENTS, TEST = 72, 24
FIELD = 256.0  # mm along each axis
CT_WINDOW = {"intensity": "window", "window": (0.0, 1500.0)}  # stored as about HU + 1000


class Task(NamedTuple):
    """What a family draws and is told: the tables [volumes], but for the grid, and [condition].

    The title is empty where a family is told nothing.
    """

    title: str
    volumes: Mapping[str, Any]
    condition: Mapping[str, Any] | None = None

    @property
    def settings(self) -> ConditionSettings | None:
        """How what is told is read, or None."""
        return None if self.condition is None else ConditionSettings(**self.condition)

    def grid(self, side: int) -> VolumeSettings:
        """Return how volumes are read: a field of 256 mm, `side` voxels along each axis."""
        return VolumeSettings(shape=(side,) * 3, spacing=(FIELD / side,) * 3, **self.volumes)

    def told(self, values: Told) -> Condition:
        """Return what was read beside volumes, (B, 1, D, H, W), as a family takes it."""
        if self.condition is None or values is None:
            return NO_CONDITION
        tensor = torch.from_numpy(values)
        if self.condition["kind"] == "mask":
            return Condition(mask=tensor.long())
        return Condition(source=tensor)


CT = Task("", {"modality": "ct", **CT_WINDOW})
ORGANS_TO_CT = Task("organs to CT", CT.volumes, {"kind": "mask", "suffix": "oar", "structures": 8})
CT_TO_DOSE = Task(
    "CT to dose",
    {"modality": "dose", "intensity": "window", "window": (0.0, 80.0)},  # Gy
    {"kind": "source", "suffix": "ct", **CT_WINDOW},
)
TASKS = CT, ORGANS_TO_CT, CT_TO_DOSE
TOLD = {"conditional-vae": ORGANS_TO_CT, "pix2pix": CT_TO_DOSE, "cycle-gan": CT_TO_DOSE}


def task_of(family: str) -> Task:
    """Return what a family is trained for here: to be told nothing, where it can."""
    return TOLD.get(family, CT)


class Cohort(NamedTuple):
    """The volumes of all patients, (72, 1, D, H, W) in [-1, 1], one each, and where from.

    What is told of each lies beside: a mask or a source of the same shape, or None.
    """

    volumes: Volumes
    source: str
    beside: Told = None

    def fold(self, number: int) -> tuple[Volumes, Volumes]:
        """Return 48 patients to train and 24 to test; the three folds' tests are disjoint."""
        train, test = self._split(number)
        return self.volumes[train], self.volumes[test]

    def told(self, number: int) -> tuple[Told, Told]:
        """Return what is told of a fold's patients, those to train and those to test."""
        if self.beside is None:
            return None, None
        train, test = self._split(number)
        return self.beside[train], self.beside[test]

    def _split(self, number: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        order = np.random.default_rng(0).permutation(len(self.volumes))
        tested = order[number * TEST : (number + 1) * TEST]
        return np.setdiff1d(order, tested), tested


def read_volumes(side: int, task: Task = CT) -> Cohort:
    """Return 72 patients through the package's own preprocessing, or phantoms where none are."""
    for folder in (
        Path(os.environ.get("VOXFED_DATA", "/nonexistent")),
        ROOT.parent / "shared/data",
    ):
        if (folder / "openkbp_ct").is_dir():
            wanted = folder / "openkbp_ct", task.volumes["modality"], task.settings
            owned = list(read_cohort(*wanted).patients.values())[:PATIENTS]
            read = [_read(images[0], task, side) for images in owned]
            beside = None if task.condition is None else np.stack([told for _, told in read])
            return Cohort(np.stack([volume for volume, _ in read]), "openkbp_ct", beside)
    return _phantoms(side, task)


def _read(image: Image, task: Task, side: int) -> tuple[Volumes, Any]:
    grid, settings = task.grid(side), task.settings
    beside = image.beside(settings)
    if settings is None or beside is None:
        return preprocess(image.path, grid), None
    return preprocess_beside(image.path, beside, grid, settings), align(beside, grid, settings)


def _phantoms(side: int, task: Task) -> Cohort:
    """Return phantoms, told their negative for a source and bands of brightness for a mask."""
    volumes = draw_phantoms(PATIENTS, (side,) * 3, np.random.default_rng(1)).numpy()
    beside: Told = None
    if task.condition is not None and task.condition["kind"] == "source":
        beside = -volumes
    elif task.condition is not None:
        bands = int(task.condition["structures"])
        beside = np.clip((volumes + 1) * (bands / 2), 0, bands - 1).astype(np.int16)
    return Cohort(volumes, "phantoms, for want of openkbp_ct", beside)
