"""A picture shows the patient the right way round."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread
from voxfed.models.pictures import GAP, contact_sheet, contact_sheet_png, curve, planes

PNG = b"\x89PNG\r\n\x1a\n"


def spot(right: int, front: int, up: int) -> np.ndarray:
    """Return (D, H, W) = (8, 10, 12), black with one bright voxel."""
    volume = np.full((8, 10, 12), -1.0, dtype=np.float32)
    volume[right, front, up] = 1.0
    return volume


def place(volume: np.ndarray) -> tuple[int, int]:
    rows, columns = np.nonzero(planes(volume) > 0)
    assert len(rows) == 1
    return int(rows[0]), int(columns[0])


def test_right_is_on_the_left_and_front_and_top_are_up() -> None:
    """A bright voxel at the edge of each axis appears where a radiologist expects it."""
    # axial: 8 columns of right, 10 rows of front, centred in 12 rows
    assert place(spot(7, 9, 6)) == (1, 0)
    assert place(spot(0, 0, 6)) == (10, 7)
    # coronal: 8 columns of right, 12 rows of up
    assert place(spot(7, 5, 11)) == (0, 8 + GAP)
    # sagittal: 10 columns of front, 12 rows of up; the face looks to the left
    assert place(spot(4, 9, 11)) == (0, 2 * (8 + GAP))
    assert place(spot(4, 0, 0)) == (11, 2 * (8 + GAP) + 9)


def test_the_middle_voxel_is_in_all_three_planes() -> None:
    assert (planes(spot(4, 5, 6)) > 0).sum() == 3


def test_a_sheet_shows_each_volume_and_repeats_to_the_byte(tmp_path: Path) -> None:
    bright = np.ones((2, 1, 8, 8, 8), dtype=np.float32)
    contact_sheet([("white", bright), ("black", -bright[:1])], tmp_path / "sheet.png")
    image = imread(tmp_path / "sheet.png")[..., 0]
    half = image.shape[0] // 2
    assert image[:half].mean() > 0.5 > 0.1 > image[half + 20 :].mean()
    again = contact_sheet_png([("white", bright), ("black", -bright[:1])])
    assert (tmp_path / "sheet.png").read_bytes() == again


def test_a_curve_is_a_png_that_depends_on_its_values(tmp_path: Path) -> None:
    for name, last in (("a", 2.0), ("b", 3.0)):
        curve({"north": [1.0, last]}, tmp_path / name, across="round", up="epsilon", limit=8.0)
    first, second = ((tmp_path / name).read_bytes() for name in "ab")
    assert first.startswith(PNG)
    assert first != second
