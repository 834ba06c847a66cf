"""An image lands on the very voxels of its mask or source, whatever grid it was stored on."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation
from voxfed.client.alignment import align, check_labels, check_pair, grid_of, preprocess_beside
from voxfed.client.nifti import read_grid
from voxfed.client.volumes import preprocess
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
    made = align(path, chosen, SOURCE)
    shown = preprocess_beside(image, path, chosen, SOURCE)
    assert made.dtype == shown.dtype == np.float32
    mm = world(chosen.shape, grid_of(path, chosen, SOURCE).affine)
    exact = ramp(mm) / 1000.0
    inner = np.s_[2:-3, 2:-3, 2:-3]  # smoothing bends a ramp at the border of what was scanned
    np.testing.assert_allclose(made[0][inner], exact[inner], atol=2e-4)
    # the body's middle, off its border by what smoothing and interpolation reach
    body = (np.abs(mm - PLACE - np.array([-2.0, -4.0, 4.0])) <= 5).all(axis=-1)
    assert body.sum() >= 8
    np.testing.assert_allclose(shown[0][body], exact[body], atol=2e-4)


@pytest.mark.parametrize("spacing", [(5.0, 5.0, 5.0), (6.0, 7.0, 8.0), (3.0, 4.0, 5.0)])
def test_equal_grids_give_the_crop_of_preprocess(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """An image beside itself is itself, also cropped, padded, thinned and by its percentiles."""
    write_cohort(tmp_path, 1, HOSPITALS[0], seed=0)
    scan = min(tmp_path.rglob("*.nii.gz"))
    chosen = settings(shape=(20, 40, 24), spacing=spacing, intensity="percentiles")
    told = ConditionSettings(kind="source")
    made, exact = align(scan, chosen, told), preprocess(scan, chosen)
    np.testing.assert_array_equal(preprocess_beside(scan, scan, chosen, told), made)
    assert ((made == -1) == (exact == -1)).mean() > 0.999
    # two ways through scipy's interpolation round float32 differently
    np.testing.assert_allclose(made, exact, atol=0 if spacing == (5.0, 5.0, 5.0) else 1e-5)


def test_real_ct_and_dose_have_one_grid(real_data: Path) -> None:
    """Real pairs: a CT as source is its own crop, and the dose lies inside the body."""
    chosen = settings(shape=(24, 24, 24), spacing=(8.0, 8.0, 8.0), window=(0.0, 2000.0))
    told = ConditionSettings(kind="source", intensity="window", window=(0.0, 2000.0))
    doses = chosen.model_copy(update={"intensity": "percentiles"})
    for ct in sorted((real_data / "openkbp_ct").glob("*/*_ct.nii.gz"))[:3]:
        shown = align(ct, chosen, told)
        np.testing.assert_allclose(shown, preprocess(ct, chosen), atol=1e-5)
        dose = preprocess_beside(ct.with_name(ct.name.replace("_ct.", "_dose.")), ct, doses, told)
        high = dose > np.quantile(dose, 0.95)
        assert shown[high].mean() > shown.mean()


def test_a_turned_image_agrees_with_nibabel(tmp_path: Path, image: Path) -> None:
    """Second library: nibabel's resampling of a rough image, where nothing is thinned."""
    shape, chosen = (30, 28, 26), settings()
    affine = affine_of(shape, (2.3, 2.2, 2.4), 15.0)
    voxels = np.random.default_rng(0).uniform(-900, 900, size=shape).astype(np.float32)
    path = save(tmp_path / "x_t2.nii", voxels, affine)
    onto = (chosen.shape, grid_of(image, chosen, SOURCE).affine)
    theirs = resample_from_to(nib.load(path), onto, order=1, mode="nearest").get_fdata()
    made = preprocess_beside(path, image, chosen, SOURCE)[0]
    # 2 mm over 2.2 mm and turned: no axis is stepped over by more than a voxel
    np.testing.assert_allclose(made, theirs / 1000.0, atol=1e-4)


@pytest.mark.parametrize("shift", [4.7, -8.7])
def test_outside_what_was_scanned_is_background(tmp_path: Path, image: Path, shift: float) -> None:
    """A slab is -1 at every voxel whose middle lies outside it, and there alone; so is a mask."""
    shape, chosen = (40, 10, 40), settings()
    affine = affine_of(shape, (2.0, 2.0, 2.0), place=PLACE + np.array([0, shift, 0]))
    path = save(tmp_path / "x_t2.nii", np.abs(ramp(world(shape, affine))), affine, "LPS")
    mask = save(tmp_path / "x_seg.nii", np.full(shape, 2, np.uint8), affine, "LPS")
    for beside, told in ((image, SOURCE), (mask, MASK)):
        mm = world(chosen.shape, grid_of(beside, chosen, told).affine)[..., 1]
        inside = np.abs(mm - PLACE[1] - shift) <= 10
        assert 0 < inside.sum() < inside.size
        made = preprocess_beside(path, beside, chosen, told)[0]
        assert (made[~inside] == -1).all()
        assert (made[inside] >= 0).all()
    np.testing.assert_array_equal(align(mask, chosen, MASK)[0], np.where(inside, 2, 0))


PAIRS = {
    "other spacing": ((30, 26, 22), (1.6, 2.4, 3.0), "RAS", np.zeros(3)),
    "other origin": ((24, 24, 24), (2.0, 2.0, 2.0), "RAS", np.array([7.0, -3.0, 5.0])),
    "an axis flipped": ((24, 24, 24), (2.0, 2.0, 2.0), "RPS", np.zeros(3)),
    "all of it": ((20, 40, 30), (2.9, 1.5, 2.1), "SLP", np.array([3.3, 2.2, -4.1])),
}


@pytest.mark.parametrize("kind", ["mask", "source"])
@pytest.mark.parametrize(("shape", "spacing", "codes", "shift"), PAIRS.values(), ids=PAIRS.keys())
def test_a_landmark_lands_on_one_voxel(
    tmp_path: Path,
    kind: str,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    shift: np.ndarray,
) -> None:
    """Closed form: a ball at one place in mm has one middle in both, within half a voxel.

    Both are cropped round what the mask or source shows, far off the middle of the image.
    """
    ball, far = PLACE + np.array([9.0, -7.0, 6.0]), PLACE + np.array([-12.0, 11.0, -9.0])

    def shown(places: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return np.clip(6.0 - np.linalg.norm(places - centre, axis=-1), 0, 1)

    body = (24, 24, 24), affine_of((24, 24, 24), (2.0, 2.0, 2.0))
    seen = 600 * (shown(world(*body), ball) + shown(world(*body), far))
    image = save(tmp_path / "x_ct.nii", seen.astype(np.float32), body[1])
    grid = shape, affine_of(shape, spacing, place=PLACE + shift)
    alone = (shown(world(*grid), ball) > 0.5) if kind == "mask" else shown(world(*grid), ball)
    beside = save(tmp_path / "x_b.nii", alone.astype(np.float32), grid[1], codes)
    told = MASK if kind == "mask" else ConditionSettings(kind="source")
    chosen = settings(shape=(12, 12, 12), window=(0.0, 600.0))
    where = grid_of(beside, chosen, told)
    one, other = align(beside, chosen, told), preprocess_beside(image, beside, chosen, told)
    low = float(one.min())
    assert np.abs(middle(one[0] - low) - middle(other[0] + 1)).max() < 0.5
    exact = np.linalg.solve(where.affine, [*ball, 1.0])[:3]
    assert np.abs(middle(other[0] + 1) - exact).max() < 0.5
    # half a voxel of the crop, and half of what the ball's border can be off in the file
    assert np.abs(exact - 5.5).max() <= 0.5 + max(spacing) / 4


def middle(voxels: np.ndarray) -> np.ndarray:
    """The centre of mass, in voxels."""
    return np.array([(places * voxels).sum() for places in np.indices(voxels.shape)]) / voxels.sum()


@pytest.mark.parametrize(("shape", "spacing", "codes", "turn"), GRIDS.values(), ids=GRIDS.keys())
def test_a_mask_keeps_its_structures_in_mm(
    tmp_path: Path,
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
    made = align(path, settings(), MASK)
    exact, from_surface = balls(world((16, 16, 16), grid_of(path, settings(), MASK).affine))
    clear = from_surface > np.linalg.norm(spacing) / 2
    assert (made.shape, made.dtype) == ((1, 16, 16, 16), np.int16)
    assert {1, 2} <= set(exact[clear])
    np.testing.assert_array_equal(made[0][clear], exact[clear])


def test_the_largest_share_of_a_thinned_mask_wins(tmp_path: Path) -> None:
    """Layers of 2 : 1 become the thicker one, where every third voxel would pick the thinner."""
    layers = np.tile(np.array([1, 2, 1], np.uint8)[:, None, None], (12, 36, 36))
    path = save(tmp_path / "x_seg.nii", layers, affine_of(layers.shape, (1.0, 1.0, 1.0)))
    chosen = settings(shape=(12, 12, 12), spacing=(3.0, 3.0, 3.0))
    made = align(path, chosen, MASK)[0]
    assert set(np.unique(layers[1::3])) == {2}
    np.testing.assert_array_equal(made, 1)


@pytest.mark.parametrize("label", [0, 2])
def test_a_mask_of_one_label_has_the_middle_of_its_field(
    tmp_path: Path, image: Path, label: int
) -> None:
    """A patient without a lesion has a mask too; a source that shows nothing has no anatomy."""
    middle = PLACE + np.array([4.0, -2.0, 1.0])
    affine = affine_of((9, 9, 9), (4.0, 4.0, 4.0), 20.0, middle)
    path = save(tmp_path / "x_seg.nii", np.full((9, 9, 9), label, np.uint8), affine)
    made = align(path, settings(), MASK)
    assert (made == label).all() if label == 0 else (made == label).any()
    ends = world((16, 16, 16), grid_of(path, settings(), MASK).affine)[[0, -1], [0, -1], [0, -1]]
    np.testing.assert_allclose(ends.mean(axis=0), middle, atol=1.0)  # half a voxel
    assert (preprocess_beside(image, path, settings(), MASK) > -1).any()
    with pytest.raises(VolumeError, match="constant"):
        align(path, settings(), SOURCE)


def test_a_mask_is_cropped_round_its_structures_alike(tmp_path: Path) -> None:
    """The number of a structure is a name: another numbering moves no voxel."""
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:6, 3:9, 10:16] = 1
    labels[6:9, 3:9, 10:16] = 11
    affine, chosen = affine_of(labels.shape, (2.0,) * 3), settings(shape=(8, 8, 8))
    told = ConditionSettings(kind="mask", structures=12)
    path = save(tmp_path / "a_seg.nii", labels, affine)
    np.testing.assert_array_equal(align(path, chosen, told)[0], labels[1:9, 2:10, 9:17])
    swapped = save(tmp_path / "b_seg.nii", np.array([0, 11, *[0] * 9, 1], np.uint8)[labels], affine)
    first, second = (grid_of(one, chosen, told).affine for one in (path, swapped))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("value", [3, -1, 0.5])
def test_other_labels_than_the_plans_are_refused(tmp_path: Path, value: float) -> None:
    """A fourth structure would be told as another one, or stop the training in its midst."""
    labels = np.zeros((9, 9, 9), np.float32)
    labels[4, 4, 4] = value
    path = save(tmp_path / "x_seg.nii", labels, affine_of((9,) * 3, (4.0,) * 3))
    with pytest.raises(VolumeError, match="expected whole numbers from 0 to 2"):
        align(path, settings(), MASK)
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
            preprocess_beside(image, apart, settings(), MASK)
        assert caught.value.hint
    # its field overlaps the image, and its structure does not
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[17:, 17:, 17:] = 1
    beside = save(tmp_path / "beside.nii", labels, affine_of(labels.shape, (4.0,) * 3))
    with pytest.raises(VolumeError, match="shows nothing of the part"):
        preprocess_beside(image, beside, settings(shape=(8, 8, 8)), MASK)


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
    made = preprocess_beside(first, second, chosen, told)
    np.testing.assert_array_equal(made, preprocess(second, chosen))
    np.testing.assert_array_equal(made, align(second, chosen, told))
    with pytest.raises(VolumeError, match="no orientation"):
        preprocess_beside(first, bare("c.nii", (16, 16, 12)), chosen, told)
