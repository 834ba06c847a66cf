"""Preprocessed volumes on disk, so that a scan is read once a study.

    CACHE/<digest of the file>/<digest of the settings>.npy

Each entry ends in the SHA-256 of what precedes it; one that does not match is built again.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..study.errors import CohortChanged, ProcessError
from ..study.files import write
from ..study.plan import VolumeSettings
from .cohort import digest
from .volumes import preprocess

# counted up when preprocess gives other voxels for the same settings
VERSION = 1
_CHECKSUM = hashlib.sha256().digest_size  # bytes


class VolumeCache:
    """Volumes of one plan's settings, by the digest of the file that they come from.

    Args:
        folder: made if it is not there, for this user alone.
        settings: the plan's grid and intensity.
    """

    def __init__(self, folder: Path, settings: VolumeSettings) -> None:
        self.folder = folder
        self.settings = settings
        text = f"{VERSION} {settings.model_dump_json()}"
        self.name = f"{hashlib.sha256(text.encode()).hexdigest()}.npy"

    def get(self, path: Path, file_digest: str) -> npt.NDArray[np.float32]:
        """Returns (1, D, H, W) in [-1, 1], preprocessed now or before.

        Args:
            path: the scan; read only when there is no sound entry.
            file_digest: the SHA-256 that the cohort manifest froze for it.

        Raises:
            CohortChanged: the scan is not the one that was approved.
            VolumeError: the scan cannot be used.
            ProcessError: the cache cannot be written.
        """
        entry = self._entry(file_digest)
        volume = self._read(entry)
        if volume is None:
            if digest(path) != file_digest:
                raise CohortChanged(
                    "a scan differs from the one that was approved",
                    got=path.name,
                    hint="restore the file, or approve the study again with the new one",
                )
            volume = preprocess(path, self.settings)
            self._write(entry, volume)
        return volume

    def forget(self, file_digest: str) -> None:
        """Removes what was made of a file, under this plan's settings and every other's.

        Raises:
            ProcessError: something of it could not be removed.
        """
        parent = self._entry(file_digest).parent
        try:
            shutil.rmtree(parent)
        except FileNotFoundError:
            return
        except OSError as fault:
            hint = "remove the folder by hand: it holds a volume that must go"
            raise ProcessError(f"{parent} cannot be removed: {fault.strerror}", hint=hint) from None

    def _entry(self, file_digest: str) -> Path:
        if re.fullmatch("[0-9a-f]{64}", file_digest) is None:
            raise CohortChanged("a digest in the cohort manifest is not SHA-256", got=file_digest)
        return self.folder / file_digest / self.name

    def _read(self, entry: Path) -> npt.NDArray[np.float32] | None:
        try:
            content = entry.read_bytes()
        except OSError:  # not there, or not readable: writing it will say why
            return None
        body, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        volume = np.load(io.BytesIO(body), allow_pickle=False)
        return np.asarray(volume, dtype=np.float32)

    def _write(self, entry: Path, volume: npt.NDArray[np.float32]) -> None:
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
