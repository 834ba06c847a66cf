"""A mask or source lands on the very voxels of its image, whatever grid it was stored on."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation
from voxfed.client.alignment import align, check_labels, check_pair
from voxfed.client.nifti import read_grid
from voxfed.client.volumes import grid_of, preprocess
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import VolumeError
from voxfed.study.plan import VolumeSettings

PLACE = np.array([-11.0, 70.0, 30.0])  # mm of the middle of every image here
WINDOW = (-1000.0, 1000.0)
SOURCE = ConditionSettings(kind="source", intensity="window", window=WINDOW)
MASK = ConditionSettings(kind="mask", structures=3)


def settings(**changes: object) -> VolumeSettings:
    chosen: dict[str, Any] = {"shape": (16, 16, 16), "spacing": (2.0, 2.0, 2.0)}
    return VolumeSettings(**(chosen | {"intensity": "window", "window": WINDOW} | changes))


def affine_of(
    shape: tuple[int, ...], spacing: tuple[float, ...], turn: float = 0.0, place: np.ndarray = PLACE
) -> np.ndarray:
    """The affine that puts the middle of a grid at a place, turned by degrees about S."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", turn, degrees=True).as_matrix() * spacing
    affine[:3, 3] = place - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Each voxel's place in mm, (D, H, W, 3)."""
    return np.asarray(apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)))


def ramp(places: np.ndarray) -> np.ndarray:
    return np.asarray((places - PLACE) @ np.array([5.0, -8.0, 11.0]), np.float32)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> Path:
    """Write an image given along R, A, S in another order of axes."""
    image = nib.Nifti1Image(voxels, affine)
    wanted, ras = (nib.orientations.axcodes2ornt(code) for code in (codes, "RAS"))
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(ras, wanted)), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A body of 24 mm that shows the ramp, amid air, in 36 mm: off the middle, 2 mm voxels."""
    shape = (18, 18, 18)
    affine = affine_of(shape, (2.0, 2.0, 2.0))
    voxels = np.full(shape, -1000, np.float32)
    body = np.s_[2:14, 1:13, 5:17]
    voxels[body] = ramp(world(shape, affine))[body]
    return save(tmp_path / "x_t1.nii", voxels, affine, "LPS")


GRIDS = {
    "the same": ((18, 18, 18), (2.0, 2.0, 2.0), "LPS", 0.0),
    "flipped and permuted": ((18, 18, 18), (2.0, 2.0, 2.0), "SRA", 0.0),
    "larger": ((40, 41, 42), (2.0, 2.0, 2.0), "RAS", 0.0),
    "long voxels": ((30, 40, 20), (3.0, 2.1, 4.6), "PIR", 0.0),
    "finer": ((80, 90, 100), (0.9, 0.8, 0.8), "RPI", 0.0),
    "turned": ((50, 50, 40), (1.9, 2.3, 2.1), "LAS", 24.0),
}


@pytest.mark.parametrize(("shape", "spacing", "codes", "turn"), GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("plan", [(16, 2.0), (9, 3.0)])
def test_a_source_shows_what_its_image_shows(
    tmp_path: Path,
    image: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    turn: float,
    plan: tuple[int, float],
) -> None:
    """Closed form: a ramp in mm is the same ramp on any grid, wherever the image was cropped."""
    affine = affine_of(shape, spacing, turn)
    path = save(tmp_path / "x_t2.nii", ramp(world(shape, affine)), affine, codes)
    chosen = settings(shape=(plan[0],) * 3, spacing=(plan[1],) * 3)
    made, shown = align(image, path, chosen, SOURCE), preprocess(image, chosen)
    assert made.dtype == np.float32
    exact = ramp(world(chosen.shape, grid_of(image, chosen).affine)) / 1000.0
    inner = np.s_[2:-3, 2:-3, 2:-3]  # smoothing bends a ramp at the border of what was scanned
    np.testing.assert_allclose(made[0][inner], exact[inner], atol=2e-4)
    body = np.s_[4:-4, 4:-4, 4:-4] if plan[0] == 16 else np.s_[3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(made[0][body], shown[0][body], atol=2e-4)


@pytest.mark.parametrize("spacing", [(5.0, 5.0, 5.0), (6.0, 7.0, 8.0), (3.0, 4.0, 5.0)])
def test_equal_grids_give_the_crop_of_preprocess(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """An image beside itself is itself, also cropped, padded, thinned and by its percentiles."""
    write_cohort(tmp_path, 1, HOSPITALS[0], seed=0)
    scan = min(tmp_path.rglob("*.nii.gz"))
    chosen = settings(shape=(20, 40, 24), spacing=spacing, intensity="percentiles")
    made = align(scan, scan, chosen, ConditionSettings(kind="source"))
    exact = preprocess(scan, chosen)
    assert ((made == -1) == (exact == -1)).mean() > 0.999
    # two ways through scipy's interpolation round float32 differently
    np.testing.assert_allclose(made, exact, atol=0 if spacing == (5.0, 5.0, 5.0) else 1e-5)


def test_real_ct_and_dose_have_one_grid(real_data: Path) -> None:
    """Real pairs: CT put beside itself is its own crop, and the dose lies inside the body."""
    chosen = settings(shape=(24, 24, 24), spacing=(8.0, 8.0, 8.0), window=(0.0, 2000.0))
    told = ConditionSettings(kind="source", intensity="window", window=(0.0, 2000.0))
    for ct in sorted((real_data / "openkbp_ct").glob("*/*_ct.nii.gz"))[:3]:
        shown = preprocess(ct, chosen)
        np.testing.assert_allclose(align(ct, ct, chosen, told), shown, atol=1e-5)
        dose = align(ct, ct.with_name(ct.name.replace("_ct.", "_dose.")), chosen, SOURCE)
        high = dose > np.quantile(dose, 0.95)
        assert shown[high].mean() > shown.mean()


def test_a_turned_source_agrees_with_nibabel(tmp_path: Path, image: Path) -> None:
    """Second library: nibabel's resampling of a rough image, where nothing is thinned."""
    shape, chosen = (30, 28, 26), settings()
    affine = affine_of(shape, (2.3, 2.2, 2.4), 15.0)
    voxels = np.random.default_rng(0).uniform(-900, 900, size=shape).astype(np.float32)
    path = save(tmp_path / "x_t2.nii", voxels, affine)
    onto = (chosen.shape, grid_of(image, chosen).affine)
    theirs = resample_from_to(nib.load(path), onto, order=1, mode="nearest").get_fdata()
    made = align(image, path, chosen, SOURCE)[0]
    # 2 mm over 2.2 mm and turned: no axis is stepped over by more than a voxel
    np.testing.assert_allclose(made, theirs / 1000.0, atol=1e-4)


@pytest.mark.parametrize("shift", [4.7, -8.7])
def test_outside_what_was_scanned_is_background(tmp_path: Path, image: Path, shift: float) -> None:
    """A source of a slab is -1 at every voxel whose middle lies outside it, and there alone."""
    shape = (40, 10, 40)
    affine = affine_of(shape, (2.0, 2.0, 2.0), place=PLACE + np.array([0, shift, 0]))
    path = save(tmp_path / "x_t2.nii", np.abs(ramp(world(shape, affine))), affine, "LPS")
    mask = save(tmp_path / "x_seg.nii", np.full(shape, 2, np.uint8), affine, "LPS")
    chosen = settings()
    places = world(chosen.shape, grid_of(image, chosen).affine)[..., 1]
    inside = np.abs(places - PLACE[1] - shift) <= 10
    assert 0 < inside.sum() < inside.size
    made = align(image, path, chosen, SOURCE)[0]
    assert (made[~inside] == -1).all()
    assert (made[inside] >= 0).all()
    np.testing.assert_array_equal(align(image, mask, chosen, MASK)[0], np.where(inside, 2, 0))


@pytest.mark.parametrize(("shape", "spacing", "codes", "turn"), GRIDS.values(), ids=GRIDS.keys())
def test_a_mask_keeps_its_structures_in_mm(
    tmp_path: Path,
    image: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    turn: float,
) -> None:
    """Closed form: two balls on any grid hold the same voxels, but for those at their surface."""
    affine = affine_of(shape, spacing, turn)

    def balls(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centres = PLACE + np.array([[-6.0, -4.0, 4.0], [4.0, -2.0, 4.0]])
        depth = 5.0 - np.linalg.norm(places[..., None, :] - centres, axis=-1)
        return np.where(depth.max(-1) > 0, depth.argmax(-1) + 1, 0), np.abs(depth).min(-1)

    path = save(
        tmp_path / "x_seg.nii", balls(world(shape, affine))[0].astype(np.uint8), affine, codes
    )
    made = align(image, path, settings(), MASK)
    exact, from_surface = balls(world((16, 16, 16), grid_of(image, settings()).affine))
    clear = from_surface > np.linalg.norm(spacing) / 2
    assert (made.shape, made.dtype) == ((1, 16, 16, 16), np.int16)
    assert {1, 2} <= set(exact[clear])
    np.testing.assert_array_equal(made[0][clear], exact[clear])


def test_the_largest_share_of_a_thinned_mask_wins(tmp_path: Path) -> None:
    """Layers of 2 : 1 become the thicker one, where every third voxel would pick the thinner."""
    layers = np.tile(np.array([1, 2, 1], np.uint8)[:, None, None], (12, 36, 36))
    voxels = np.random.default_rng(0).uniform(0, 900, layers.shape).astype(np.float32)
    affine = affine_of(layers.shape, (1.0, 1.0, 1.0))
    scan = save(tmp_path / "x_t1.nii", voxels, affine)
    path = save(tmp_path / "x_seg.nii", layers, affine)
    chosen = settings(shape=(12, 12, 12), spacing=(3.0, 3.0, 3.0))
    made = align(scan, path, chosen, MASK)[0]
    assert set(np.unique(layers[1::3])) == {2}
    np.testing.assert_array_equal(made, 1)


def test_an_empty_mask_is_a_mask_and_a_constant_source_is_none(tmp_path: Path, image: Path) -> None:
    """A patient without a lesion has one; a source that shows nothing has no anatomy."""
    path = save(
        tmp_path / "x_seg.nii", np.zeros((9, 9, 9), np.uint8), affine_of((9,) * 3, (4.0,) * 3)
    )
    assert not align(image, path, settings(), MASK).any()
    with pytest.raises(VolumeError, match="constant"):
        align(image, path, settings(), SOURCE)


@pytest.mark.parametrize("value", [3, -1, 0.5])
def test_other_labels_than_the_plans_are_refused(tmp_path: Path, image: Path, value: float) -> None:
    """A fourth structure would be told as another one, or stop the training in its midst."""
    labels = np.zeros((9, 9, 9), np.float32)
    labels[4, 4, 4] = value
    path = save(tmp_path / "x_seg.nii", labels, affine_of((9,) * 3, (4.0,) * 3))
    with pytest.raises(VolumeError, match="expected whole numbers from 0 to 2"):
        align(image, path, settings(), MASK)
    check_labels(np.arange(3, dtype=np.float32), 3)


def test_images_that_lie_apart_are_refused(tmp_path: Path, image: Path) -> None:
    """Another session's coordinates would train on background alone; touching ends are apart."""
    shape = (10, 10, 10)
    for far in ([37.9, 0, 0], [0, 0, -37.9]):
        near = save(tmp_path / "near.nii", np.ones(shape, np.uint8), affine_of(shape, (4.0,) * 3))
        check_pair(read_grid(image), read_grid(near))
        affine = affine_of(shape, (4.0,) * 3, place=PLACE + np.array(far) + np.sign(far) * 0.2)
        apart = save(tmp_path / "far.nii", np.ones(shape, np.uint8), affine)
        with pytest.raises(VolumeError, match="another place") as caught:
            align(image, apart, settings(), MASK)
        assert caught.value.hint
    # it overlaps the image, and not the body in it that is read
    affine = affine_of(shape, (4.0,) * 3, place=PLACE + np.array([36.0, 0, 0]))
    beside = save(tmp_path / "beside.nii", np.ones(shape, np.uint8), affine)
    with pytest.raises(VolumeError, match="beside the part"):
        align(image, beside, settings(shape=(8, 8, 8)), MASK)


def test_without_orientation_only_equal_grids_go_together(tmp_path: Path) -> None:
    """A header without sform and qform gives no place in mm, but voxel for voxel is clear."""

    def bare(name: str, shape: tuple[int, ...]) -> Path:
        made = nib.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), None)
        made.header.set_zooms((2.0, 2.0, 2.0))
        nib.save(made, tmp_path / name)
        return tmp_path / name

    first, second = bare("a.nii", (16, 16, 16)), bare("b.nii", (16, 16, 16))
    chosen = settings(intensity="percentiles")
    told = ConditionSettings(kind="source")
    np.testing.assert_array_equal(align(first, second, chosen, told), preprocess(second, chosen))
    with pytest.raises(VolumeError, match="no orientation"):
        align(first, bare("c.nii", (16, 16, 12)), chosen, told)
