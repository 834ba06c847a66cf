"""A hostile or damaged file is refused in time, and says nothing of what its header holds."""

import contextlib
import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxfed.client.nifti import MAX_OFFSET, read_volume
from voxfed.study.errors import VolumeError

SECRET = b"DOE^JANE 1950"
GENERATOR = np.random.default_rng(0)
BLOCK = GENERATOR.normal(size=(8, 9, 10)).astype(np.float32)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes a NIfTI whose header names a patient wherever it can."""
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = SECRET
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET))
    nib.save(image, path)
    return path


def altered(path: Path, change: Callable[[nib.Nifti1Header], None]) -> Path:
    """Writes a plain .nii whose header was changed without nibabel's checks."""
    image = nib.Nifti1Image(BLOCK, np.eye(4))
    image.header["descrip"] = SECRET
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    change(header)
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


def setting(field: str, value: object) -> Callable[[nib.Nifti1Header], None]:
    def change(header: nib.Nifti1Header) -> None:
        header[field] = value

    return change


def refusal(path: Path) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    error = caught.value
    assert error.hint, "a refusal names the remedy"
    assert error.__suppress_context__ or error.__context__ is None
    for text in (error.message, error.hint):
        assert "DOE" not in text
        assert path.name not in text
    return error


ARRAYS = {
    "4D": (np.stack([BLOCK, BLOCK], axis=-1), "4D"),
    "5D": (np.ones((4, 4, 4, 1, 3), np.float32), "5D"),
    "2D": (BLOCK[0], "fewer than three"),
    "a slice": (BLOCK[:, :, :1], "fewer than three"),
    "constant": (np.full((4, 4, 4), 7, np.int16), "constant"),
    "nan": (np.where(BLOCK > 2, np.nan, BLOCK), "not finite"),
    "infinite": (np.where(BLOCK > 2, np.inf, BLOCK), "not finite"),
    "beyond float32": (BLOCK.astype(np.float64) * 1e300, "not finite"),
    "complex": (BLOCK.astype(np.complex64), "complex"),
    "colour": (np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])), "colour"),
}


@pytest.mark.parametrize(("voxels", "reason"), ARRAYS.values(), ids=ARRAYS.keys())
def test_unusable_arrays_are_refused_with_the_reason(
    tmp_path: Path, voxels: np.ndarray, reason: str
) -> None:
    assert reason in refusal(write(tmp_path / "scan.nii.gz", voxels)).message


HEADERS = {
    "zero axis": (setting("dim", [3, 8, 0, 10, 1, 1, 1, 1]), "empty"),
    "negative axis": (setting("dim", [3, 8, -9, 10, 1, 1, 1, 1]), "empty"),
    "no axes": (setting("dim", [0, 8, 9, 10, 1, 1, 1, 1]), "empty"),
    "too many axes": (setting("dim", [9, 8, 9, 10, 1, 1, 1, 1]), "empty"),
    "100 GB": (setting("dim", [3, 3000, 3000, 3000, 1, 1, 1, 1]), "too large"),
    "1 GB": (setting("dim", [3, 700, 700, 500, 1, 1, 1, 1]), "truncated"),
    "unknown type": (setting("datatype", 999), "type"),
    "no type": (setting("datatype", 0), "type"),
    "nan intercept": (setting("scl_inter", np.nan), "scaling"),
    "far voxels": (setting("vox_offset", 2.0 * MAX_OFFSET), "absurd place"),
    "nan offset": (setting("vox_offset", np.nan), "scaling"),
    "negative offset": (setting("vox_offset", -352), "absurd place"),
    "zero spacing": (setting("srow_x", [0, 0, 0, 0]), "absurd"),
    "nan affine": (setting("srow_y", [0, np.nan, 0, 0]), "absurd"),
    "metres as mm": (setting("srow_z", [0, 0, 1e4, 0]), "absurd"),
    "two axes alike": (setting("srow_x", [0, 1, 0, 0]), "absurd"),
    "two files": (setting("magic", b"ni1"), "two files"),
}


@pytest.mark.parametrize(("change", "reason"), HEADERS.values(), ids=HEADERS.keys())
def test_absurd_headers_are_refused_before_voxels_are_read(
    tmp_path: Path, change: Callable[[nib.Nifti1Header], None], reason: str
) -> None:
    assert reason in refusal(altered(tmp_path / "scan.nii", change)).message


def test_files_that_are_no_images(tmp_path: Path) -> None:
    """Empty, foreign, half, a folder, a pipe, missing: each is one error and none blocks."""
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "text.nii").write_bytes(SECRET * 100)
    (tmp_path / "text.nii.gz").write_bytes(SECRET * 100)
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "short.nii").write_bytes((348).to_bytes(4, "little") + b"\0" * 40)
    (tmp_path / "folder.nii.gz").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "scan.img").write_bytes(b"\0")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    reasons = {path.name: refusal(path).what for path in sorted(tmp_path.iterdir())}
    assert reasons == {
        "empty.nii.gz": "the file is empty",
        "folder.nii.gz": "this is not a file",
        "loop.nii": "the file is damaged or truncated",
        "packed.nii.gz": "the file is not NIfTI",
        "pipe.nii": "this is not a file",
        "scan.img": "the name does not end in .nii or .nii.gz",
        "short.nii": "the file is damaged or truncated",
        "text.nii": "the file is not NIfTI",
        "text.nii.gz": "the file is damaged or truncated",
    }
    assert "not exist" in refusal(tmp_path / "missing.nii").message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is permission, not a new export; planted, since root reads everything."""
    path = write(tmp_path / "scan.nii.gz", BLOCK)

    def deny(*_: object) -> None:
        raise PermissionError(13, "DOE")

    monkeypatch.setattr("voxfed.client.nifti.gzip.open", deny)
    assert "permission" in refusal(path).hint


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_truncation_is_found(tmp_path: Path, suffix: str) -> None:
    """No prefix of a file reads as an image, not even one that lacks only gzip's checksum."""
    content = write(tmp_path / f"whole{suffix}", BLOCK).read_bytes()
    path = tmp_path / f"part{suffix}"
    for length in [*range(1, len(content), 97), len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        refusal(path)


def test_a_changed_byte_in_a_packed_file_is_found(tmp_path: Path) -> None:
    """Nibabel stops before gzip's checksum; we read to it."""
    path = write(tmp_path / "scan.nii.gz", BLOCK)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # within the CRC
    path.write_bytes(content)
    assert "damaged" in refusal(path).message


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    """400 MB of zeros in 400 kB, and a header that claims 1 GB, are refused within 32 MB."""
    bomb, claim = tmp_path / "bomb.nii.gz", tmp_path / "claim.nii.gz"
    header = nib.Nifti1Image(BLOCK, np.eye(4)).to_bytes()[:352]
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        stream.write(header + BLOCK.tobytes())
        for _ in range(400):
            stream.write(bytes(2**20))
    plain = altered(tmp_path / "plain.nii", setting("dim", [3, 700, 700, 500, 1, 1, 1, 1]))
    claim.write_bytes(gzip.compress(plain.read_bytes()))
    tracemalloc.start()
    assert "longer" in refusal(bomb).message
    assert "truncated" in refusal(claim).message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_random_damage_never_gives_another_error(tmp_path: Path) -> None:
    """300 headers with random bytes: each reads or is a VolumeError, never a traceback."""
    content = nib.Nifti1Image(BLOCK, np.eye(4)).to_bytes()
    path = tmp_path / "scan.nii"
    for _ in range(300):
        damaged = bytearray(content)
        for place in GENERATOR.integers(4, 348, size=4):
            damaged[place] = GENERATOR.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(VolumeError):  # any other error fails the test
            assert np.isfinite(read_volume(path).voxels).all()


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_are_those_that_nibabel_reads(
    tmp_path: Path, dtype: str, kind: type[nib.Nifti1Image]
) -> None:
    """Every stored type, byte order and scaling of both NIfTIs, against nibabel's get_fdata."""
    voxels = GENERATOR.integers(0, 100, size=(4, 5, 6, 1))
    image = kind(voxels.astype(dtype), np.diag([2, 3, 4, 1]), dtype=np.dtype(dtype))
    image.header.set_slope_inter(0.5, -3)
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.voxels, nib.load(path).get_fdata()[..., 0], rtol=1e-6)
    assert volume.grid.spacing == (2, 3, 4)
    assert volume.grid.oriented


def test_real_volumes_equal_nibabels_canonical_ones(real_data: Path) -> None:
    """Second library on real scans: nibabel's as_closest_canonical gives the same RAS voxels."""
    for patient in sorted((real_data / "openkbp_ct").glob("okbp-*"))[:3]:
        for path in sorted(patient.glob("*_ct.nii.gz")):
            canonical = nib.as_closest_canonical(nib.load(path))
            volume = read_volume(path)
            np.testing.assert_array_equal(volume.voxels, canonical.get_fdata(dtype=np.float32))
            np.testing.assert_allclose(volume.grid.spacing, canonical.header.get_zooms(), rtol=1e-5)


def test_digest_sees_the_image_not_the_file(tmp_path: Path) -> None:
    """Compression, type and orientation leave it, one voxel changes it."""
    whole = np.round(BLOCK * 10).astype(np.int16)
    plain = write(tmp_path / "a.nii", whole)
    packed = write(tmp_path / "b.nii.gz", whole.astype(np.float32))
    flipped = write(tmp_path / "c.nii.gz", whole[::-1], np.diag([-1, 1, 1, 1]))
    other = whole.copy()
    other[3, 3, 3] += 1
    digests = [read_volume(path).digest for path in (plain, packed, flipped)]
    assert len(set(digests)) == 1
    assert read_volume(write(tmp_path / "d.nii", other)).digest not in digests
