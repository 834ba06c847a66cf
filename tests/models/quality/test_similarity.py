"""Likeness of volumes against windows taken one by one, closed forms and MONAI's metrics."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric, SSIMMetric
from voxfed.models.quality.similarity import (
    SIGMA,
    WEIGHTS,
    Volumes,
    mae,
    ms_ssim,
    psnr,
    scales,
    ssim,
    window,
)
from voxfed.study.errors import UsageError


def pairs(shape: tuple[int, int, int], n: int = 2) -> tuple[Volumes, Volumes]:
    """Return smooth volumes and noisy versions of them, (n, 1, D, H, W)."""
    generator = np.random.default_rng(4)
    waves = np.sin(np.indices(shape).sum(0) / 3.0 + generator.uniform(0, 6, (n, 1, 1, 1, 1)))
    noisy = np.clip(waves + generator.normal(0, 0.3, waves.shape), -1, 1)
    return waves.astype(np.float32), noisy.astype(np.float32)


def test_error_and_peak_ratio_are_closed_forms() -> None:
    """A known offset has a known error and ratio, at the range of [-1, 1]; equals a finite one."""
    volume = np.zeros((2, 1, 4, 5, 6), np.float32)
    moved = volume + np.array([0.5, 0.0], np.float32).reshape(2, 1, 1, 1, 1)
    assert mae(moved, volume).tolist() == [0.5, 0.0]
    assert psnr(moved, volume).tolist() == pytest.approx(
        [20 * np.log10(2 / 0.5), 10 * np.log10(4e10)]
    )


def test_ssim_is_that_of_windows_taken_one_by_one() -> None:
    """Each window's weighted moments, by direct sums and centred, give the mean similarity."""
    found, expected = (volumes[0, 0].astype(np.float64) for volumes in pairs((8, 9, 10)))
    reach = np.arange(7) - 3
    bell = np.exp(-(reach**2) / (2 * SIGMA**2))
    weights = bell[:, None, None] * bell[:, None] * bell
    weights /= weights.sum()
    values = []
    for corner in np.ndindex(2, 3, 4):
        place = tuple(slice(c, c + 7) for c in corner)
        x, y = found[place], expected[place]
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        vxy = (weights * (x - mx) * (y - my)).sum()
        light, dark = 0.02**2, 0.06**2
        values.append(
            (2 * mx * my + light) * (2 * vxy + dark) / ((mx**2 + my**2 + light) * (vx + vy + dark))
        )
    measured = ssim(*(volumes[:1] for volumes in pairs((8, 9, 10))))
    assert measured.tolist() == pytest.approx([np.mean(values)], rel=1e-4)  # float32 moments


def test_ssim_agrees_with_monai() -> None:
    """A second library at the published window finds the same numbers."""
    found, expected = pairs((12, 13, 14))
    theirs = SSIMMetric(3, data_range=2.0, win_size=11, kernel_sigma=1.5)
    numbers = theirs(torch.from_numpy(found), torch.from_numpy(expected))
    assert ssim(found, expected).tolist() == pytest.approx(numbers.flatten().tolist(), rel=1e-3)


@pytest.mark.parametrize(("side", "levels"), [(24, 2), (46, 3)])
def test_ms_ssim_agrees_with_monai(side: int, levels: int) -> None:
    """At as many scales as fit, with weights scaled to sum 1, a second library finds the same."""
    found, _ = pairs((side, side, side), n=1)
    noise = np.random.default_rng(6).normal(0, 1, found.shape)
    expected = np.clip(0.3 * found + noise, -1, 1).astype(np.float32)
    weights = np.array(WEIGHTS[:levels]) / sum(WEIGHTS[:levels])
    theirs = MultiScaleSSIMMetric(3, data_range=2.0, weights=weights.tolist())
    number = float(theirs(torch.from_numpy(found), torch.from_numpy(expected)))
    table = ms_ssim(np.concatenate([found, expected]))
    assert scales((side,) * 3) == levels
    assert table[0, 1] == pytest.approx(number, rel=1e-3)
    assert 0.1 < table[0, 1] < 0.8  # the case is not trivial


def test_table_of_pairs_is_symmetric_with_ones() -> None:
    """Each pair is compared once, each volume is like itself, and a copy is found as one."""
    volumes = np.concatenate([*pairs((8, 8, 8)), pairs((8, 8, 8))[0][:1]])
    table = ms_ssim(volumes)
    assert table.shape == (5, 5)
    assert (table == table.T).all()
    assert np.diag(table).tolist() == [1] * 5
    assert table[0, 4] == pytest.approx(1, abs=1e-5)
    assert table[0, 1] < 0.99
    assert ((table >= 0) & (table <= 1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("shape", "width", "levels"),
    [
        ((8, 12, 16), 7, 1),
        ((16, 16, 16), 11, 1),
        ((32, 32, 32), 11, 2),
        ((64, 64, 64), 11, 3),
        ((96, 128, 96), 11, 4),
        ((176, 176, 200), 11, 5),
        ((512, 512, 512), 11, 5),
    ],
)
def test_windows_and_scales_fit_the_smallest_side(
    shape: tuple[int, int, int], width: int, levels: int
) -> None:
    """Small volumes get fewer scales, and a smaller window last, instead of a failure."""
    assert (window(shape), scales(shape)) == (width, levels)


def test_unfit_volumes_are_refused() -> None:
    """Other shapes, channels and axes get an error of ours."""
    found, expected = pairs((8, 8, 8))
    for likeness in (mae, psnr, ssim):
        for bad in (expected[:1], expected[:, 0], np.repeat(expected, 2, axis=1)):
            with pytest.raises(UsageError):
                likeness(found, bad)
    with pytest.raises(UsageError):
        ms_ssim(found[:, 0])
