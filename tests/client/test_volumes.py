"""Preprocessing keeps anatomy where it is in mm, whatever the scanner stored."""

import itertools
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from scipy.spatial.transform import Rotation
from voxfed.client.nifti import Grid, read_volume
from voxfed.client.volumes import (
    crop,
    foreground_box,
    inspect,
    preprocess,
    resample,
    to_unit_range,
)
from voxfed.study.errors import VolumeError
from voxfed.study.plan import VolumeSettings


def settings(**changes: object) -> VolumeSettings:
    return VolumeSettings(**{"shape": (16, 16, 16), "spacing": (2.0, 2.0, 2.0), **changes})


def save(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (2.0, 2.0, 2.0)) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1])), path)
    return path


def blob(shape: tuple[int, ...], spacing: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """A Gaussian of 5 mm at a known place, in mm from the middle of the grid."""
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return np.exp(-((grid - centre) ** 2).sum(-1) / (2 * 5.0**2)).astype(np.float32)


def centre_of(voxels: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The centre of mass in mm from the middle of the grid."""
    place = [
        (np.indices(voxels.shape)[axis] * voxels).sum() / voxels.sum() - (n - 1) / 2
        for axis, n in enumerate(voxels.shape)
    ]
    return np.array(place) * spacing


def test_equal_spacing_and_shape_change_nothing(tmp_path: Path) -> None:
    """The identity: a centred foreground at the plan's own grid keeps every voxel."""
    voxels = np.full((16, 16, 16), -1000, np.int16)
    voxels[2:14, 3:13, 1:15] = np.random.default_rng(0).integers(0, 900, size=(12, 10, 14))
    plan = settings(intensity="window", window=(-1000.0, 1000.0))
    result = preprocess(save(tmp_path / "scan.nii", voxels), plan)
    np.testing.assert_allclose(result[0], voxels / 1000.0, atol=1e-6)
    assert result.shape == (1, 16, 16, 16)
    assert result.dtype == np.float32


def test_all_48_orientations_give_one_volume(tmp_path: Path) -> None:
    """The same anatomy stored in any axis order and direction is the same array to the bit."""
    spacing = np.array([2.0, 2.5, 3.5])
    voxels = np.round(1000 * blob((14, 12, 10), spacing, np.array([4.0, -3.0, 2.0])))
    ras = nib.Nifti1Image(voxels.astype(np.int16), np.diag([*spacing, 1]))
    codes = [
        "".join(pair[way] for pair, way in zip(order, ways, strict=True))
        for order in itertools.permutations(("RL", "AP", "SI"))
        for ways in itertools.product((0, 1), repeat=3)
    ]
    assert len(set(codes)) == 48
    results = set()
    for code in codes:
        wanted = nib.orientations.axcodes2ornt(code)
        path = tmp_path / f"{code}.nii"
        nib.save(ras.as_reoriented(nib.orientations.ornt_transform(RAS, wanted)), path)
        assert nib.aff2axcodes(nib.load(path).affine) == tuple(code)
        results.add(preprocess(path, settings()).tobytes())
    assert len(results) == 1


RAS = nib.orientations.axcodes2ornt("RAS")
SPACINGS = [
    ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)),
    ((1.0, 1.3, 3.0), (2.0, 2.0, 2.0)),
    ((3.0, 3.0, 3.0), (1.5, 2.0, 2.5)),
    ((0.7, 2.9, 4.0), (3.0, 3.0, 3.0)),
]


@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_resampling_keeps_a_blob_at_its_place_in_mm(
    old: tuple[float, float, float], new: tuple[float, float, float]
) -> None:
    """Voxel centres: a Gaussian at a known place stays there within a tenth of a voxel."""
    place = np.array([3.3, -2.1, 1.7])
    shape = tuple(round(60 / d) for d in old)
    moved = resample(blob(shape, np.array(old), place), old, new)
    assert moved.dtype == np.float32
    assert np.abs(centre_of(moved, np.array(new)) - place).max() < 0.1 * min(new)


@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_a_linear_ramp_stays_linear(
    old: tuple[float, float, float], new: tuple[float, float, float]
) -> None:
    """Closed form: smoothing and linear interpolation leave a ramp as it is, off the border."""
    shape = tuple(round(60 / d) for d in old)
    ramp = sum(w * a for w, a in zip((1.0, 2.0, -3.0), grid_in_mm(shape, old), strict=True))
    moved = resample(np.asarray(ramp, np.float32), old, new)
    exact = sum(w * a for w, a in zip((1.0, 2.0, -3.0), grid_in_mm(moved.shape, new), strict=True))
    inner = tuple(slice(math.ceil(12 / d), -math.ceil(12 / d)) for d in new)
    np.testing.assert_allclose(moved[inner], exact[inner], atol=0.02)  # Gaussian cut at 4 sigma


def grid_in_mm(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[np.ndarray]:
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij"))


def oblique(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """The affine of a scan turned about all three axes, off the scanner's middle."""
    turn = Rotation.from_euler("xyz", (14.0, -21.0, 30.0), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = np.array([31.0, -17.0, 8.0]) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def blurred(voxels: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Each axis widened from a voxel to `steps` voxels, FWHM for FWHM, weight by weight."""
    for axis, step in enumerate(steps):
        sigma = math.sqrt(max(step**2 - 1, 0)) / math.sqrt(8 * math.log(2))
        reach = int(4 * sigma + 0.5)
        if reach:
            weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
            ends = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
            wide = np.pad(voxels, ends, mode="edge")
            voxels = np.apply_along_axis(np.convolve, axis, wide, weights / weights.sum(), "valid")
    return voxels


def between(voxels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The mean of the eight voxels round each place, (..., 3) in voxels, by their nearness."""
    low = np.floor(places).astype(int)
    found = np.zeros(places.shape[:-1])
    for corner in itertools.product((0, 1), repeat=3):
        nearness = np.prod(1 - np.abs(places - low - corner), axis=-1)
        held = np.clip(low + corner, 0, np.array(voxels.shape) - 1)
        found += nearness * voxels[tuple(np.moveaxis(held, -1, 0))]
    return found


@pytest.mark.parametrize("code", ["RAS", "LSP", "AIR"])
@pytest.mark.parametrize("around", [False, True])
def test_an_oblique_scan_of_long_voxels_by_hand(tmp_path: Path, code: str, *, around: bool) -> None:
    """Brute force: every voxel by its place in the scanner's mm, on its own grid and on another's.

    In plane the scan is thinned and smoothed, through plane it is interpolated.
    """
    shape, spacing = (32, 30, 14), (1.1, 1.3, 4.2)
    affine = oblique(shape, spacing)
    voxels = np.random.default_rng(4).uniform(0, 60, size=shape)
    voxels[5:29, 3:23, 4:12] += np.random.default_rng(5).uniform(300, 900, size=(24, 20, 8))
    voxels = voxels.astype(np.float32)
    stored = nib.Nifti1Image(voxels, affine).as_reoriented(
        nib.orientations.ornt_transform(RAS, nib.orientations.axcodes2ornt(code))
    )
    nib.save(stored, tmp_path / "scan.nii")
    plan = settings(intensity="window", window=(0.0, 1000.0))
    if around:  # straight in the scanner, where the scan is turned
        straight = affine_round(affine, (16.5, 12.5, 7.5), 2.0 * np.eye(3))
        grid = Grid(plan.shape, straight, oriented=True)
    else:
        grid = crop(voxels, Grid(shape, affine, oriented=True), plan)
        mm = np.array([16.5, 12.5, 7.5, 1.0])  # the middle of the bright box
        middle = (grid.affine @ [7.5, 7.5, 7.5, 1.0] - affine @ mm)[:3]
        assert np.linalg.norm(middle) <= math.sqrt(3) * 1.5
        np.testing.assert_allclose(nib.affines.voxel_sizes(grid.affine), plan.spacing, atol=1e-9)
    made = preprocess(tmp_path / "scan.nii", plan, grid if around else None)[0]
    new = np.moveaxis(np.indices(plan.shape), 0, -1)
    step = np.linalg.inv(affine) @ grid.affine
    places = nib.affines.apply_affine(step, new)
    smooth = blurred(voxels, np.linalg.norm(step[:3, :3], axis=1))
    exact = np.clip(between(smooth, places) / 500 - 1, -1, 1)
    inside = ((places >= -0.5) & (places <= np.array(shape) - 0.5)).all(axis=-1)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(made, np.where(inside, exact, -1), atol=1e-5)


def affine_round(
    affine: np.ndarray, place: tuple[float, float, float], axes: np.ndarray
) -> np.ndarray:
    """The affine of a grid of 16 along `axes`, its middle at a place in voxels of another."""
    made = np.eye(4)
    made[:3, :3] = axes
    made[:3, 3] = (affine @ [*place, 1.0])[:3] - axes @ np.full(3, 7.5)
    return made


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 2.0, 3.0)])
def test_without_a_mask_or_source_a_scan_is_cropped_by_itself(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """To the bit, the voxels of the resampled scan round its own foreground: nothing moves them."""
    voxels = np.random.default_rng(0).integers(0, 60, size=(30, 28, 26)).astype(np.float32)
    voxels[6:24, 2:18, 9:25] += 500
    volume = resample(voxels, spacing, (2.0, 2.0, 2.0))
    middle = [(low + high) // 2 for low, high in zip(*foreground_box(volume), strict=True)]
    kept = volume[tuple(slice(n - 4, n + 4) for n in middle)]
    plan = settings(shape=(8, 8, 8))
    made = preprocess(save(tmp_path / "scan.nii", voxels, spacing), plan)[0]
    np.testing.assert_array_equal(made, to_unit_range(kept, plan))


def test_of_one_value_all_is_foreground() -> None:
    """A mask without a structure, or of nothing else, has the middle of its field of view."""
    for value in (0.0, 1.0):
        volume = np.full((6, 7, 9), value, np.float32)
        assert foreground_box(volume) == ([0, 0, 0], [6, 7, 9])


def test_thinning_does_not_alias() -> None:
    """Stripes finer than the new voxels become grey, where bare interpolation keeps them."""
    stripes = np.zeros((48, 48, 48), np.float32)
    stripes[::2] = 1.0
    thinned = resample(stripes, (1.0, 1.0, 1.0), (3.0, 3.0, 3.0))
    assert thinned[2:-2].std() < 0.05 < stripes[::3].std()
    assert thinned[2:-2].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("wanted", [(2.0, 2.0, 2.5), (2.5, 2.5, 3.0)])
def test_resampling_agrees_with_monai(real_data: Path, wanted: tuple[float, float, float]) -> None:
    """Second library: MONAI's bilinear resampling of a real CT, where no axis is thinned."""
    volume = read_volume(min((real_data / "openkbp_ct").glob("*/*_ct.nii.gz")))
    ours = resample(volume.voxels, volume.grid.spacing, wanted)
    scan = MetaTensor(
        torch.from_numpy(volume.voxels)[None],
        affine=centred(volume.voxels.shape, volume.grid.spacing),
    )
    change = SpatialResample(mode="bilinear", padding_mode="border", align_corners=True)
    theirs = change(scan, dst_affine=centred(ours.shape, wanted), spatial_size=ours.shape)
    tolerance = 1e-4 * float(np.ptp(volume.voxels))  # float32 grids in grid_sample
    np.testing.assert_allclose(ours, np.asarray(theirs)[0], atol=tolerance)


def centred(shape: tuple[int, ...], spacing: tuple[float, ...]) -> torch.Tensor:
    """The affine that puts the middle of a grid at zero mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return torch.from_numpy(affine)


def test_window_maps_hu_exactly(tmp_path: Path) -> None:
    """Closed form: the window's ends are -1 and 1, its middle 0, and what lies outside is cut."""
    voxels = np.full((8, 8, 8), -160, np.int16)
    voxels[2:6, 2:6, 2:6] = np.array([-500, -160, 40, 240])[:, None, None]
    voxels[5, 5, 5] = 3000
    plan = settings(shape=(8, 8, 8), intensity="window", window=(-160.0, 240.0))
    result = preprocess(save(tmp_path / "scan.nii", voxels), plan)
    assert set(np.unique(result)) == {-1.0, 0.0, 1.0}


def test_percentiles_are_of_this_volume_alone(tmp_path: Path) -> None:
    """Scale and offset of a scanner vanish, so no statistic of the cohort is ever needed."""
    voxels = blob((16, 16, 16), np.full(3, 2.0), np.zeros(3))
    first = preprocess(save(tmp_path / "a.nii", voxels), settings())
    second = preprocess(save(tmp_path / "b.nii", voxels * 4000 - 1000), settings())
    np.testing.assert_allclose(first, second, atol=1e-4)
    low, high = np.percentile(voxels, (0.5, 99.5))
    exact = np.clip(2 * (voxels - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(first[0], exact, atol=1e-5)


@pytest.mark.parametrize("air", [-1000, 0])
def test_foreground_is_found_and_centred(tmp_path: Path, air: int) -> None:
    """A body off the middle, in CT's air or MR's zero, with a bright speck, is centred."""
    generator = np.random.default_rng(3)
    voxels = np.round(generator.normal(air, 8, size=(40, 36, 32))).astype(np.int16)
    voxels[4:16, 20:32, 8:20] = generator.integers(air + 600, air + 1200, size=(12, 12, 12))
    voxels[38, 2, 30] = air + 2000
    lower, upper = foreground_box(voxels.astype(np.float32))
    assert (lower, upper) == ([4, 20, 8], [16, 32, 20])
    result = preprocess(save(tmp_path / "scan.nii", voxels), settings())[0]
    assert np.abs(centre_of(result + 1, np.ones(3))).max() < 0.3
    assert (result[2:14, 2:14, 2:14] > -0.5).all()


def test_padding_is_background(tmp_path: Path) -> None:
    """A volume smaller than the plan's shape is framed with -1 on both sides alike."""
    voxels = np.random.default_rng(0).integers(500, 900, size=(8, 8, 8)).astype(np.int16)
    plan = settings(intensity="window", window=(0.0, 1000.0))
    result = preprocess(save(tmp_path / "scan.nii", voxels), plan)[0]
    assert (result[4:12, 4:12, 4:12] >= 0).all()
    assert (result == -1).sum() == 16**3 - 8**3


def test_a_volume_that_explodes_at_the_plans_spacing_is_refused(tmp_path: Path) -> None:
    """8 voxels of 90 mm at 0.02 mm would be 46 billion times as many."""
    voxels = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    path = save(tmp_path / "scan.nii", voxels, (90.0, 90.0, 90.0))
    with pytest.raises(VolumeError, match="too large at the plan's spacing"):
        preprocess(path, settings(spacing=(0.02, 0.02, 0.02)))


def test_a_nearly_empty_volume_is_refused(tmp_path: Path) -> None:
    """Equal percentiles would divide by zero and train on noise."""
    voxels = np.zeros((16, 16, 16), np.int16)
    voxels[8, 8, 8] = 1
    with pytest.raises(VolumeError, match="nearly all voxels"):
        preprocess(save(tmp_path / "scan.nii", voxels), settings())


def test_inspect_refuses_what_preprocess_refuses(tmp_path: Path) -> None:
    """What the check passes can be read, and what it refuses never trains."""
    good = save(tmp_path / "good.nii", np.arange(512, dtype=np.int16).reshape(8, 8, 8))
    bad = save(tmp_path / "bad.nii", np.zeros((8, 8, 8), np.int16))
    inspect(good)
    for function in (inspect, lambda path: preprocess(path, settings())):
        with pytest.raises(VolumeError, match="constant"):
            function(bad)


def test_real_ct_fills_the_range(real_data: Path) -> None:
    """Real CT at a plan's grid: in [-1, 1], tissue present, and the body in the middle."""
    plan = settings(shape=(24, 24, 24), spacing=(8.0, 8.0, 8.0))
    for path in sorted((real_data / "openkbp_ct").glob("*/*_ct.nii.gz"))[:3]:
        result = preprocess(path, plan)
        assert result.min() == -1
        assert result.max() == 1
        assert (
            np.abs(centre_of(result[0] + 1, np.ones(3))).max() < 6
        )  # shoulders weigh more than the head
