"""Recognising a DICOM folder, and saying how to convert it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

LOOKS = 20  # files that are opened before a folder is taken for something else


def is_dicom(folder: Path) -> bool:
    """Tells whether a folder holds DICOM: .dcm, DICOMDIR, or DICM at byte 128 (PS3.10, 7.1)."""
    looked = 0
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if name.lower().endswith(".dcm") or name == "DICOMDIR":
                return True
            if looked >= LOOKS:
                return False
            looked += 1
            if _has_magic(Path(parent) / name):
                return True
    return False


def conversion(folder: Path, modality: str) -> str:
    """Returns what to run beside the DICOM folder so that a patient's NIfTI folder comes of it."""
    target = shlex.quote(f"nifti/{folder.name}")
    name = shlex.quote(f"{folder.name}_%s_{modality or 'image'}")
    command = f"dcm2niix -z y -b n -f {name} -o {target} {shlex.quote(folder.name)}"
    return f"convert it, from the folder that holds it: mkdir -p {target} && {command}"


def _has_magic(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except PermissionError:
        return False
