"""The cache answers what preprocessing would, and never with what is not sound."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxfed.client import cache as module
from voxfed.client.alignment import align, preprocess_beside
from voxfed.client.cache import Beside, VolumeCache
from voxfed.client.cohort import digest
from voxfed.client.volumes import preprocess
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import CohortChanged, ProcessError, VolumeError
from voxfed.study.plan import VolumeSettings

SETTINGS = VolumeSettings(shape=(8, 8, 8), spacing=(18.0, 18.0, 18.0))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort", 1, HOSPITALS[0], seed=0)
    return min((tmp_path / "cohort").rglob("*.nii.gz"))


def never(*_: object) -> np.ndarray:
    raise AssertionError("preprocessed again")


def test_second_call_reads_the_entry(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same voxels to the bit, without the scan, from a file that only its owner may read."""
    cache = VolumeCache(tmp_path / "cache", SETTINGS)
    first = cache.get(scan, digest(scan))
    np.testing.assert_array_equal(first, preprocess(scan, SETTINGS))
    known = digest(scan)
    monkeypatch.setattr(module, "preprocess", never)
    scan.unlink()
    again = VolumeCache(tmp_path / "cache", SETTINGS).get(scan, known)
    np.testing.assert_array_equal(first, again)
    assert again.dtype == np.float32
    (entry,) = (tmp_path / "cache").rglob("*.npy")
    assert entry.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    np.testing.assert_array_equal(np.load(entry, allow_pickle=False), first)


MASK = ConditionSettings(kind="mask", structures=5)
SOURCE = ConditionSettings(kind="source")


@pytest.fixture
def mask(scan: Path) -> Path:
    """Four layers beside the scan."""
    image = nib.load(scan)
    layers = np.arange(image.shape[0])[:, None, None] * 5 // image.shape[0]
    path = scan.with_name("mask.nii.gz")
    labels = np.broadcast_to(layers, image.shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    return path


def test_what_lies_beside_is_cached_and_forgotten_with_its_image(
    tmp_path: Path, scan: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels stay whole numbers; another condition or mask has its own entry; one call forgets."""
    image, known = digest(scan), digest(mask)
    masked, sourced = Beside(mask, known, MASK), Beside(mask, known, SOURCE)
    cache = VolumeCache(tmp_path / "cache", SETTINGS)
    first = cache.beside(image, masked)
    np.testing.assert_array_equal(first, align(mask, SETTINGS, MASK))
    assert first.dtype == np.int16
    source = cache.beside(image, sourced)
    np.testing.assert_array_equal(source, align(mask, SETTINGS, SOURCE))
    plain = cache.get(scan, image)
    content = mask.read_bytes()
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.uint8), nib.load(scan).affine), mask)
    assert not cache.beside(image, Beside(mask, digest(mask), MASK)).any()
    with monkeypatch.context() as patch:
        patch.setattr(module, "align", never)
        np.testing.assert_array_equal(cache.beside(image, masked), first)
        np.testing.assert_array_equal(cache.beside(image, sourced), source)
    np.testing.assert_array_equal(cache.get(scan, image), plain)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4
    cache.forget(image)
    assert not list((tmp_path / "cache").rglob("*"))
    with pytest.raises(CohortChanged):  # the mask that lies there now was not approved
        cache.beside(image, masked)
    mask.write_bytes(content)
    np.testing.assert_array_equal(cache.beside(image, masked), first)


def test_an_image_is_cached_with_the_mask_that_places_it(
    tmp_path: Path, scan: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mask crops another part: it has its own entry, and neither is that of no mask."""
    image, cache = digest(scan), VolumeCache(tmp_path / "cache", SETTINGS)
    first = Beside(mask, digest(mask), MASK)
    np.testing.assert_array_equal(
        cache.get(scan, image, first), preprocess_beside(scan, mask, SETTINGS, MASK)
    )
    stored = nib.load(mask)
    labels = np.zeros(stored.shape, np.uint8)
    labels[:3, :3, :3] = 1
    path = mask.with_name("corner.nii.gz")
    nib.save(nib.Nifti1Image(labels, stored.affine), path)
    corner = Beside(path, digest(path), MASK)
    made = [cache.get(scan, image, other) for other in (None, first, corner)]
    assert len({volume.tobytes() for volume in made}) == 3
    for name in ("preprocess", "preprocess_beside"):
        monkeypatch.setattr(module, name, never)
    for other, volume in zip((None, first, corner), made, strict=True):
        np.testing.assert_array_equal(cache.get(scan, image, other), volume)
    cache.forget(image)
    path.write_bytes(mask.read_bytes())
    for changed in (corner, Beside(mask, "0" * 64, MASK)):
        with pytest.raises(CohortChanged):
            cache.get(scan, image, changed)
    scan.write_bytes(scan.read_bytes() + b"\0")
    with pytest.raises(CohortChanged):
        cache.get(scan, image, first)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, scan: Path, damage: str) -> None:
    """Never a wrong voxel, never an error: the scan is still there."""
    cache = VolumeCache(tmp_path / "cache", SETTINGS)
    first = cache.get(scan, digest(scan))
    (entry,) = (tmp_path / "cache").rglob("*.npy")
    sound = entry.read_bytes()
    flipped = bytearray(sound)
    flipped[200] ^= 1
    entry.write_bytes(
        {"flip": bytes(flipped), "cut": sound[:-40], "empty": b"", "longer": sound + b"x"}[damage]
    )
    np.testing.assert_array_equal(cache.get(scan, digest(scan)), first)
    assert entry.read_bytes() == sound


def test_settings_have_entries_of_their_own_and_forget_removes_all(
    tmp_path: Path, scan: Path
) -> None:
    """A withdrawn patient's file leaves no volume behind under any plan; others stay."""
    other = SETTINGS.model_copy(update={"percentiles": (1.0, 99.0)})
    caches = [VolumeCache(tmp_path / "cache", settings) for settings in (SETTINGS, other)]
    assert not np.array_equal(*(cache.get(scan, digest(scan)) for cache in caches))
    write_cohort(tmp_path / "more", 1, HOSPITALS[1], seed=5)
    second = min((tmp_path / "more").rglob("*.nii.gz"))
    caches[0].get(second, digest(second))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3
    caches[0].forget(digest(scan))
    caches[0].forget(digest(scan))  # nothing left is no error
    (left,) = (tmp_path / "cache").rglob("*.npy")
    assert left.parent.name == digest(second)


def test_a_changed_scan_is_refused_and_not_cached(tmp_path: Path, scan: Path) -> None:
    """The digest that was approved is the one that is read."""
    approved = digest(scan)
    scan.write_bytes(scan.read_bytes() + b"\0")
    with pytest.raises(CohortChanged):
        VolumeCache(tmp_path / "cache", SETTINGS).get(scan, approved)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_digest_that_is_a_path_is_refused(tmp_path: Path, scan: Path) -> None:
    """A manifest cannot make the cache remove or write outside its folder."""
    cache = VolumeCache(tmp_path / "cache", SETTINGS)
    for call in (lambda: cache.forget("../cohort"), lambda: cache.get(scan, "../cohort")):
        with pytest.raises(CohortChanged):
            call()
    assert scan.exists()


def test_what_cannot_be_used_or_written_leaves_nothing(tmp_path: Path, scan: Path) -> None:
    """A damaged scan and a folder that is a file: one error each, no half entry."""
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"bad")
    with pytest.raises(VolumeError):
        VolumeCache(tmp_path / "cache", SETTINGS).get(bad, digest(bad))
    assert not (tmp_path / "cache").exists()
    for folder in (bad, bad / "cache"):
        with pytest.raises(ProcessError):
            VolumeCache(folder, SETTINGS).get(scan, digest(scan))


def test_what_cannot_be_forgotten_is_an_error(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A withdrawal never reports as done what is still on the disk."""

    def deny(*_: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(module.shutil, "rmtree", deny)
    with pytest.raises(ProcessError, match="cannot be removed"):
        VolumeCache(tmp_path / "cache", SETTINGS).forget(digest(scan))
