"""How images lie in a patient's folder, and what their names say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .nifti import SUFFIXES

MAX_NAME = 128  # characters of a patient's name
NAMING = f"use 1 to {MAX_NAME} printable characters, no slash, no dot in front"


def is_safe(name: str) -> bool:
    """Says whether a patient's name can stand in a path and on a terminal."""
    usable = 0 < len(name) <= MAX_NAME and name.isprintable() and not name.startswith(".")
    return usable and not set(name) & set("/\\")


def modality_of(path: Path) -> str:
    """Returns the last underscore-separated token of an image's name, in lower case."""
    return _stem(path).rpartition("_")[2].lower()


def beside(path: Path, suffix: str) -> list[Path]:
    """Returns the images in a folder whose name is that of `path` but for ending in `suffix`."""
    head, underscore, _ = _stem(path).rpartition("_")
    wanted = f"{head}{underscore}{suffix}".lower()
    images = [p for p in sorted(path.parent.iterdir()) if p.name.endswith(SUFFIXES)]
    return [p for p in images if _stem(p).lower() == wanted]


def image_files(folder: Path) -> Iterator[Path]:
    """Yields the images at any depth below a folder, by name; hidden ones are left out.

    Raises:
        OSError: a folder may not be read.
    """

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, plain in os.walk(folder, onerror=stop):
        # a folder that bears an image's name is listed, so that the check can say what it is
        names = [*plain, *(n for n in folders if n.endswith(SUFFIXES))]
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in names)
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent) / name


def folder_links(folder: Path) -> Iterator[Path]:
    """Yields every symbolic link to a folder below one; what it holds would be left out unseen."""
    for parent, folders, _ in os.walk(folder):
        yield from (Path(parent) / n for n in sorted(folders) if (Path(parent) / n).is_symlink())


def anat_folders(patient: Path) -> list[Path]:
    """Returns the folders of a BIDS subject that hold anatomical images."""
    return [p for pattern in ("anat", "ses-*/anat") for p in sorted(patient.glob(pattern))]


def _stem(path: Path) -> str:
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
