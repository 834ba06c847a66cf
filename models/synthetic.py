"""Writing generated volumes so that nobody takes them for scans."""

from __future__ import annotations

import gzip
import io
import json
import re
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
) -> None:
    """Writes a generated volume as float32 NIfTI-1, with a JSON file beside it.

    The header's description reads `SYNTHETIC voxfed` and the first 16 digits of the bundle's
    digest; the JSON file names the whole digest. Equal volumes give equal bytes.

    Args:
        path: ends in .nii.gz; the JSON file takes the same name with .json.
        volume: (D, H, W) along right, anterior, superior.
        spacing: mm between voxels along the same axes.
        digest: SHA-256 of the release bundle, 64 hexadecimal digits.

    Raises:
        VolumeError: the volume is not 3D or not finite, or the name, spacing or digest is wrong.
        ProcessError: the files cannot be written.
    """
    _refuse_unfit(path, volume, spacing, digest)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(volume.shape) - 1) / 2 * spacing
    image = nib.nifti1.Nifti1Image(volume.astype(np.float32), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"SYNTHETIC voxfed {digest[:16]}".encode()
    sidecar = {
        "synthetic": True,
        "generator": "voxfed",
        "bundle_sha256": digest,
        "shape_voxels": list(volume.shape),
        "spacing_mm": list(spacing),
        "orientation": "RAS",
    }
    name = path.name.removesuffix(".nii.gz")
    # the JSON file first: a volume never stands without what says that it is synthetic
    write(path.with_name(f"{name}.json"), json.dumps(sidecar, indent=2).encode() + b"\n")
    write(path, _gzipped(image.to_bytes()))


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
