"""Reading a NIfTI file that is not trusted.

The header is judged before a byte of voxels is allocated, its extensions are never read, and
neither header text nor a library's error text enters a message. Messages leave out the path too:
whoever asked knows it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from ..study.errors import VolumeError

MAX_VOXELS = 2**29  # 1024 x 1024 x 512: 2 GiB of float32, more than any scanner of today writes
MAX_OFFSET = 2**24  # bytes of header extensions that are skipped, never read into memory at once
MAX_DEFLATE = 1040  # deflate cannot shrink by more than 1032, so a header that claims more lies
SPACINGS = (0.01, 100.0)  # mm: from a microscope to a localiser
SUFFIXES = (".nii.gz", ".nii")

_REWRITE = "export the image again from its source, for instance with dcm2niix"

Header = Nifti1Header | Nifti2Header
Stream = gzip.GzipFile | BufferedReader


@dataclass(frozen=True)
class Grid:
    """Where an image's voxels lie, along right, anterior, superior.

    Attributes:
        shape: (D, H, W).
        affine: (4, 4), from voxel index to the scanner's mm.
        oriented: False when the header states no orientation, so that left and right are a guess.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    oriented: bool

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of voxel centres in mm."""
        sizes = nib.affines.voxel_sizes(self.affine)
        return float(sizes[0]), float(sizes[1]), float(sizes[2])


@dataclass(frozen=True)
class Volume:
    """A scan as float32 voxels (D, H, W) along right, anterior, superior.

    Attributes:
        voxels: (D, H, W), in the scanner's own unit (HU for CT).
        grid: where they lie.
    """

    voxels: npt.NDArray[np.float32]
    grid: Grid

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape and voxels: equal however the image was compressed or oriented."""
        state = hashlib.sha256(repr(self.voxels.shape).encode())
        state.update(np.ascontiguousarray(self.voxels).data)
        return state.hexdigest()


def read_volume(path: Path, *, constant: bool = False) -> Volume:
    """Reads a NIfTI-1 or NIfTI-2 file (nifti.nimh.nih.gov) in one piece, reoriented to RAS.

    Args:
        path: the file.
        constant: whether one value throughout may pass, as in a mask without a structure.

    Raises:
        VolumeError: unreadable, truncated, 4D, RGB, complex, empty, constant, not finite or huge.
    """
    with _open(path) as (stream, size):
        header = _read_header(stream)
        shape = _shape(header)
        affine = _affine(header)
        voxels = _read_voxels(stream, header, shape, size, path.name.endswith(".gz"))
    _refuse_useless(voxels, constant)
    ras = nib.orientations.apply_orientation(voxels, nib.orientations.io_orientation(affine))
    return Volume(np.ascontiguousarray(ras), _ras_grid(header, shape, affine))


def read_grid(path: Path) -> Grid:
    """Reads from the header alone where the voxels of `read_volume` lie.

    Raises:
        VolumeError: the header cannot be used.
    """
    with _open(path) as (stream, _):
        header = _read_header(stream)
        return _ras_grid(header, _shape(header), _affine(header))


@contextmanager
def _open(path: Path) -> Iterator[tuple[Stream, int]]:
    """Yields the unpacked file with the size of the packed one, and says why it cannot be read."""
    try:
        size = _file_size(path)
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
            yield stream, size
    except PermissionError:
        raise VolumeError(
            "the file may not be read", hint="give this user read permission (chmod, chown)"
        ) from None
    except FileNotFoundError:
        raise VolumeError(
            "the file does not exist", hint="correct the path or restore it"
        ) from None
    except (OSError, EOFError, zlib.error):
        raise VolumeError("the file is damaged or truncated", hint=_REWRITE) from None


def _ras_grid(header: Header, shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> Grid:
    orientation = nib.orientations.io_orientation(affine)
    sides = [shape[i] for i in np.argsort(orientation[:, 0])]
    turned = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return Grid((sides[0], sides[1], sides[2]), turned, oriented)


def _file_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a named pipe would block for ever
        raise VolumeError("this is not a file", hint="put a NIfTI file here, or rename the folder")
    if not path.name.endswith(SUFFIXES):
        raise VolumeError("the name does not end in .nii or .nii.gz", hint=_REWRITE)
    if status.st_size == 0:
        raise VolumeError("the file is empty", hint=_REWRITE)
    return status.st_size


def _read_header(stream: Stream) -> Header:
    """Reads 348 or 540 bytes; nibabel's own reading would also take in extensions of any size."""
    kinds: dict[bytes, tuple[type[Header], str]] = {}
    for kind, size in ((Nifti1Header, 348), (Nifti2Header, 540)):
        kinds[size.to_bytes(4, "little")] = (kind, "<")
        kinds[size.to_bytes(4, "big")] = (kind, ">")
    start = stream.read(4)
    if start not in kinds:
        raise VolumeError(
            "the file is not NIfTI",
            hint="convert DICOM with dcm2niix, other formats with nib-convert",
        )
    kind, order = kinds[start]
    block = start + stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise EOFError
    header = kind(block, endianness=order, check=False)
    if header["magic"].item() not in (b"n+1", b"n+2"):
        raise VolumeError(
            "header and voxels are in two files", hint="join them: nib-convert to .nii.gz"
        )
    return header


def _shape(header: Header) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : count + 1]] if 0 < count <= 7 else []
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    found = " x ".join(map(str, shape)) or "no dimensions"
    if len(shape) > 3:
        hint = "split it into one file a frame, for instance with fslsplit"
        raise VolumeError(f"the image is {len(shape)}D", got=found, expected="3D", hint=hint)
    if any(n <= 0 for n in shape) or not shape:
        raise VolumeError("the image is empty", got=found, hint=_REWRITE)
    if len(shape) < 3 or min(shape) < 2:
        hint = "use a volume, not a slice or a localiser"
        raise VolumeError("the image has fewer than three dimensions", got=found, hint=hint)
    if math.prod(shape) > MAX_VOXELS:
        expected = f"at most {MAX_VOXELS} voxels"
        raise VolumeError("the image is too large", got=found, expected=expected, hint="crop it")
    return shape[0], shape[1], shape[2]


def _affine(header: Header) -> npt.NDArray[np.float64]:
    """Returns voxel index to mm, refusing what no scanner could have meant."""
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            sizes = nib.affines.voxel_sizes(affine)
            skew = abs(np.linalg.det(affine[:3, :3])) / np.prod(sizes)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        sizes, skew = np.zeros(3), 0.0
    low, high = SPACINGS
    # 0.5 lets a gantry tilted by up to 60 degrees pass; nan fails every comparison
    if not (np.all((sizes >= low) & (sizes <= high)) and skew > 0.5 and np.isfinite(affine).all()):
        raise VolumeError(
            "the header's orientation or spacing is absurd",
            expected=f"three different axes with {low} to {high} mm between voxels",
            hint=_REWRITE,
        )
    return affine


def _read_voxels(
    stream: Stream, header: Header, shape: tuple[int, int, int], size: int, compressed: bool
) -> npt.NDArray[np.float32]:
    """Returns (D, H, W) as stored, scaled by the header's slope and intercept."""
    try:
        stored = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        offset = int(header["vox_offset"]) or header.single_vox_offset
    except (HeaderDataError, KeyError, ValueError, OverflowError):
        raise VolumeError("the header's data type or scaling is unknown", hint=_REWRITE) from None
    if stored.names is not None:
        raise VolumeError(
            "the image is in colour (RGB)", hint="use the scan, not a screenshot of it"
        )
    if stored.kind == "c":
        raise VolumeError("the image is complex", hint="convert it to magnitude")
    if stored.kind not in "iuf":
        raise VolumeError("the header's data type is unknown", hint=_REWRITE)
    count = math.prod(shape) * stored.itemsize
    if not header.sizeof_hdr <= offset <= MAX_OFFSET:
        raise VolumeError("the header says that the voxels begin at an absurd place", hint=_REWRITE)
    if offset + count > size * (MAX_DEFLATE if compressed else 1):
        raise VolumeError("the file is truncated, shorter than its header says", hint=_REWRITE)
    stream.seek(offset)
    block = stream.read(count)
    if len(block) < count:
        raise EOFError
    if stream.read(1):  # reading to the end is also what makes gzip compare its checksum
        raise VolumeError("the file is longer than its header says", hint=_REWRITE)
    voxels = np.frombuffer(block, dtype=stored).reshape(shape, order="F")
    with np.errstate(all="ignore"):
        scaled = nib.volumeutils.apply_read_scaling(voxels, slope, intercept)
        return np.asarray(scaled, dtype=np.float32)


def _refuse_useless(voxels: npt.NDArray[np.float32], constant: bool) -> None:
    low, high = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        hint = "replace them by the background's value, and ask why they are there"
        raise VolumeError("the image holds values that are not finite (NaN or infinite)", hint=hint)
    if low == high and not constant:
        raise VolumeError("the image is constant", hint="leave it out: it holds no anatomy")
