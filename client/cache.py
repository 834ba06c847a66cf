"""Preprocessed volumes on disk, so that a scan is read once a study.

    CACHE/<digest of the image>/<digest of the settings>.npy
    CACHE/<digest of the image>/<digest of the settings and of the mask or source>.npy, one of each

Each entry ends in the SHA-256 of what precedes it; one that does not match is built again.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..study.condition import ConditionSettings
from ..study.errors import CohortChanged, ProcessError
from ..study.files import write
from ..study.plan import VolumeSettings
from .alignment import Labels, Voxels, align, preprocess_beside
from .cohort import digest
from .volumes import preprocess

# counted up when preprocess gives other voxels for the same settings
VERSION = 2
_CHECKSUM = hashlib.sha256().digest_size  # bytes


@dataclass(frozen=True)
class Beside:
    """The mask or source of an image.

    Attributes:
        path: its file.
        sha256: what the cohort manifest froze for it.
        condition: which of the two it is, and how it is read.
    """

    path: Path
    sha256: str
    condition: ConditionSettings


class VolumeCache:
    """Volumes of one plan's settings, by the digest of the file that they come from.

    Args:
        folder: made if it is not there, for this user alone.
        settings: the plan's grid and intensity.
    """

    def __init__(self, folder: Path, settings: VolumeSettings) -> None:
        self.folder = folder
        self.settings = settings

    def get(
        self, path: Path, file_digest: str, other: Beside | None = None
    ) -> npt.NDArray[np.float32]:
        """Returns (1, D, H, W) in [-1, 1], preprocessed now or before.

        Args:
            path: the scan; read only when there is no sound entry.
            file_digest: the SHA-256 that the cohort manifest froze for it.
            other: the mask or source that says where the scan is cropped.

        Raises:
            CohortChanged: a file is not the one that was approved.
            VolumeError: a file cannot be used.
            ProcessError: the cache cannot be written.
        """
        settings = self.settings
        if other is None:
            return self._kept(
                self._entry(file_digest, settings.model_dump_json()),
                {path: file_digest},
                lambda: preprocess(path, settings),
            )
        return self._kept(
            self._entry(file_digest, self._beside("image", other)),
            {path: file_digest, other.path: other.sha256},
            lambda: preprocess_beside(path, other.path, settings, other.condition),
        )

    def beside(self, file_digest: str, other: Beside) -> Labels | Voxels:
        """Returns the mask or source of an image as `align` does, aligned now or before.

        Args:
            file_digest: of the image, with which it is forgotten.
            other: the mask or source.

        Raises:
            CohortChanged, VolumeError, ProcessError: as `get`, of the mask or source.
        """
        return self._kept(
            self._entry(file_digest, self._beside(other.condition.kind, other)),
            {other.path: other.sha256},
            lambda: align(other.path, self.settings, other.condition),
        )

    def _beside(self, what: str, other: Beside) -> str:
        """Returns what decides over the voxels of an image or of its mask or source."""
        settings, condition = self.settings.model_dump_json(), other.condition.model_dump_json()
        return f"{what} {settings} {condition} {other.sha256}"

    def forget(self, file_digest: str) -> None:
        """Removes what was made of an image, and put beside it, under every plan's settings.

        Raises:
            ProcessError: something of it could not be removed.
        """
        parent = self._entries(file_digest)
        try:
            shutil.rmtree(parent)
        except FileNotFoundError:
            return
        except OSError as fault:
            hint = "remove the folder by hand: it holds a volume that must go"
            raise ProcessError(f"{parent} cannot be removed: {fault.strerror}", hint=hint) from None

    def _kept(
        self, entry: Path, files: dict[Path, str], make: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Returns a sound entry, or makes one of the files that were approved."""
        known = self._read(entry)
        if known is not None:
            return known
        for path, approved in files.items():
            if digest(path) != approved:
                raise CohortChanged(
                    "a scan differs from the one that was approved",
                    got=path.name,
                    hint="restore the file, or approve the study again with the new one",
                )
        made = make()
        self._write(entry, made)
        return made

    def _entry(self, file_digest: str, settings: str) -> Path:
        name = hashlib.sha256(f"{VERSION} {settings}".encode()).hexdigest()
        return self._entries(file_digest) / f"{name}.npy"

    def _entries(self, file_digest: str) -> Path:
        if re.fullmatch("[0-9a-f]{64}", file_digest) is None:
            raise CohortChanged("a digest in the cohort manifest is not SHA-256", got=file_digest)
        return self.folder / file_digest

    def _read(self, entry: Path) -> npt.NDArray[Any] | None:
        try:
            content = entry.read_bytes()
        except OSError:  # not there, or not readable: writing it will say why
            return None
        body, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        volume: npt.NDArray[Any] = np.load(io.BytesIO(body), allow_pickle=False)
        return volume

    def _write(self, entry: Path, volume: npt.NDArray[Any]) -> None:
        stream = io.BytesIO()
        np.save(stream, volume, allow_pickle=False)
        body = stream.getvalue()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as fault:
            hint = "name a folder that this user may write to"
            raise ProcessError(
                f"{self.folder} cannot be made: {fault.strerror}", hint=hint
            ) from None
        write(entry, body + hashlib.sha256(body).digest(), mode=0o600)
