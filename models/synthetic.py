"""Writing generated volumes so that nobody takes them for scans."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ..study.errors import VolumeError
from ..study.files import write


def write_synthetic(
    path: Path,
    volume: npt.NDArray[np.floating],
    spacing: tuple[float, float, float],
    *,
    digest: str,
    told: Mapping[str, object] | None = None,
) -> None:
    """Writes a generated volume as float32 NIfTI-1, with a JSON file beside it.

    The header's description reads `SYNTHETIC voxfed` and the first 16 digits of the bundle's
    digest; the JSON file names the whole digest. Equal volumes give equal bytes.

    Args:
        path: ends in .nii.gz; the JSON file takes the same name with .json.
        volume: (D, H, W) along right, anterior, superior.
        spacing: mm between voxels along the same axes.
        digest: SHA-256 of the release bundle, 64 hexadecimal digits.
        told: what the model was told, for the JSON file.

    Raises:
        VolumeError: the volume is not 3D or not finite, or the name, spacing or digest is wrong.
        ProcessError: the files cannot be written.
    """
    _refuse_unfit(path, volume, spacing, digest)
    image = _image(volume.astype(np.float32), spacing)
    image.header["descrip"] = f"SYNTHETIC voxfed {digest[:16]}".encode()
    sidecar = {
        "synthetic": True,
        "generator": "voxfed",
        "bundle_sha256": digest,
        "shape_voxels": list(volume.shape),
        "spacing_mm": list(spacing),
        "orientation": "RAS",
        **({"told": dict(told)} if told else {}),
    }
    name = path.name.removesuffix(".nii.gz")
    # the JSON file first: a volume never stands without what says that it is synthetic
    write(path.with_name(f"{name}.json"), json.dumps(sidecar, indent=2).encode() + b"\n")
    write(path, _gzipped(image.to_bytes()))


def write_told(
    path: Path, voxels: npt.NDArray[np.generic], spacing: tuple[float, float, float]
) -> None:
    """Writes the mask or source that a volume was made from, on the volume's own grid.

    Args:
        path: ends in .nii.gz.
        voxels: (D, H, W), whole numbers of a mask or a source in [-1, 1].
        spacing: mm between voxels.

    Raises:
        ProcessError: the file cannot be written.
    """
    kind = np.int16 if np.issubdtype(voxels.dtype, np.integer) else np.float32
    write(path, _gzipped(_image(voxels.astype(kind), spacing).to_bytes()))


def _image(
    voxels: npt.NDArray[np.generic], spacing: tuple[float, float, float]
) -> nib.nifti1.Nifti1Image:
    """Returns an image whose middle is the origin of the world."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(voxels.shape) - 1) / 2 * spacing
    image = nib.nifti1.Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    return image


def _refuse_unfit(
    path: Path,
    volume: npt.NDArray[np.floating],
    spacing: tuple[float, float, float],
    digest: str,
) -> None:
    if not path.name.endswith(".nii.gz"):
        hint = "give a name that ends in .nii.gz"
        raise VolumeError("a synthetic volume needs a NIfTI name", got=path.name, hint=hint)
    if volume.ndim != 3:
        raise VolumeError(
            "a synthetic volume has three axes", got=volume.shape, expected="(D, H, W)"
        )
    if not np.isfinite(volume).all():
        hint = "the weights may be damaged: verify the bundle"
        raise VolumeError("the model drew values that are not finite", hint=hint)
    if not all(np.isfinite(side) and side > 0 for side in spacing):
        raise VolumeError("the spacing is wrong", got=spacing, expected="three lengths in mm")
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        expected = "64 hexadecimal digits"
        raise VolumeError("the bundle's digest is not SHA-256", got=digest, expected=expected)


def _gzipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed:
        packed.write(content)
    return stream.getvalue()
