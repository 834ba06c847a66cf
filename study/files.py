"""Files and folders written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskError, UsageError


def write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` to a temporary file, fsync it and rename it to `path`.

    Raises:
        DiskError: the disk has no room or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as fault:
        raise DiskError(f"{path.parent} cannot be written: {fault.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as fault:
        Path(temporary).unlink(missing_ok=True)
        raise DiskError(
            f"{path} cannot be written: {fault.strerror}", hint="free space on the disk, then retry"
        ) from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a draft to write into, which becomes `folder` unless the block raises.

    Raises:
        UsageError: the folder exists.
        DiskError: it cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="name another; none is overwritten")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as fault:
        raise DiskError(f"{folder.parent} cannot be written: {fault.strerror}") from None
    try:
        yield draft
        draft.chmod(0o755)
        os.rename(draft, folder)
    except OSError as fault:
        raise DiskError(f"{folder} cannot be written: {fault.strerror}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
