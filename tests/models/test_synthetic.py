"""A generated volume always says that it is one, in the header and beside it."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxfed.models.synthetic import write_synthetic, write_told
from voxfed.study.errors import ProcessError, VolumeError

DIGEST = "0123456789abcdef" * 4
VOLUME = np.random.default_rng(0).uniform(-1, 1, size=(5, 6, 7)).astype(np.float32)
SPACING = (1.0, 2.0, 3.0)


def test_header_and_sidecar_name_the_bundle(tmp_path: Path) -> None:
    """Voxels, spacing and orientation survive; both files say synthetic and whose."""
    path = tmp_path / "new" / "sample-1.nii.gz"
    write_synthetic(path, VOLUME, SPACING, digest=DIGEST)
    image = nib.load(path)
    assert image.header["descrip"].item() == b"SYNTHETIC voxfed 0123456789abcdef"
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == SPACING
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj), VOLUME)
    sidecar = json.loads((tmp_path / "new" / "sample-1.json").read_text())
    assert sidecar["synthetic"] is True
    assert sidecar["bundle_sha256"] == DIGEST
    assert sidecar["spacing_mm"] == [1, 2, 3]


def test_what_was_told_lies_beside_it(tmp_path: Path) -> None:
    """A mask keeps its labels on the volume's own grid, so that the pair can train a segmenter."""
    mask = np.arange(5 * 6 * 7).reshape(5, 6, 7) % 3
    write_told(tmp_path / "a_mask.nii.gz", mask, SPACING)
    write_synthetic(tmp_path / "a.nii.gz", VOLUME, SPACING, digest=DIGEST, told={"mask": "a_mask"})
    pair = [nib.load(tmp_path / name) for name in ("a.nii.gz", "a_mask.nii.gz")]
    np.testing.assert_array_equal(pair[0].affine, pair[1].affine)
    np.testing.assert_array_equal(np.asarray(pair[1].dataobj), mask)
    assert json.loads((tmp_path / "a.json").read_text())["told"] == {"mask": "a_mask"}


def test_equal_volumes_give_equal_bytes(tmp_path: Path) -> None:
    """No time or name hides in the file, so a sample can be checked by its digest."""
    for name in ("a", "b"):
        write_synthetic(tmp_path / f"{name}.nii.gz", VOLUME, SPACING, digest=DIGEST)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


BAD = {
    "name": ("x.nii", VOLUME, SPACING, DIGEST),
    "channel axis": ("x.nii.gz", VOLUME[None], SPACING, DIGEST),
    "nan": ("x.nii.gz", np.where(VOLUME > 0, np.nan, VOLUME), SPACING, DIGEST),
    "spacing": ("x.nii.gz", VOLUME, (1.0, 0.0, 1.0), DIGEST),
    "digest": ("x.nii.gz", VOLUME, SPACING, "0123"),
}


@pytest.mark.parametrize(("name", "volume", "spacing", "digest"), BAD.values(), ids=BAD.keys())
def test_bad_input_writes_nothing(
    tmp_path: Path, name: str, volume: np.ndarray, spacing: tuple[float, ...], digest: str
) -> None:
    with pytest.raises(VolumeError):
        write_synthetic(tmp_path / name, volume, spacing, digest=digest)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the folder's place is one error."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProcessError):
        write_synthetic(tmp_path / "file" / "x.nii.gz", VOLUME, SPACING, digest=DIGEST)
