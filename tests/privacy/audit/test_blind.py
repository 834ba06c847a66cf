"""The blind baseline: it tells groups that differ, and no others."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from voxfed.privacy.audit.blind import (
    GRID,
    blind_baseline,
    coarse_grid,
    look,
    principal_components,
)
from voxfed.privacy.audit.statistics import BinnedScores, auc
from voxfed.study.errors import UsageError, VolumeError


def patients(n: int, seed: int = 0, side: int = 12) -> list[list[Tensor]]:
    """Return n patients with one volume each: a soft ball of random place, size and brightness."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side)] * 3, indexing="ij"))
    found = []
    for _ in range(n):
        centre = (torch.rand((3, 1, 1, 1), generator=generator) - 0.5) * 0.5
        radius, light = (torch.rand(2, generator=generator) * 0.3 + 0.5).tolist()
        ball = torch.sigmoid(8 * (radius - (grid - centre).square().sum(0).sqrt())) * light
        noise = 0.03 * torch.randn(ball.shape, generator=generator)
        found.append([(2 * ball - 1 + noise)[None, None]])
    return found


def half(n: int) -> np.ndarray:
    return np.arange(2 * n) < n


def brighter(volume: Tensor) -> Tensor:
    """Return the volume with 5 % of the range added."""
    return volume + 0.1


def noisier(volume: Tensor) -> Tensor:
    """Return the volume as a scanner with a little more noise sees it."""
    generator = torch.Generator().manual_seed(int(1e6 * float(volume.sum().abs())))
    return volume + 0.03 * torch.randn(volume.shape, generator=generator)


def moved(volume: Tensor) -> Tensor:
    """Return the volume moved by two voxels: another way to lie in the scanner."""
    return torch.roll(volume, 2, dims=-1)


@pytest.mark.parametrize("change", [brighter, noisier, moved])
def test_groups_that_differ_are_told_apart(change: Callable[[Tensor], Tensor]) -> None:
    """Non-members of another scanner or another year make the audit invalid, by either test."""
    group = patients(120)
    shifted = [*group[:60], *([change(one) for one in many] for many in group[60:])]
    found = blind_baseline(shifted, half(60), 0, permutations=199)
    assert found.p_value == pytest.approx(1 / 200)
    bins = np.unique(found.scores, return_inverse=True)[1]
    trained, held = (np.bincount(bins[part], minlength=120) for part in (half(60), ~half(60)))
    scores = BinnedScores(tuple(map(float, trained)), tuple(map(float, held)), fitted=True)
    assert auc(scores).low > 0.5


def test_groups_that_are_alike_are_not_told_apart() -> None:
    """Of 40 fair splits of the same patients, not more than chance allows have p <= 10 %."""
    group, generator = patients(30, side=8), np.random.default_rng(0)
    values = np.array(
        [
            blind_baseline(group, generator.permutation(half(15)), seed, permutations=9).p_value
            for seed in range(40)
        ]
    )
    assert (values <= 0.1).mean() <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 40)
    assert values.mean() == pytest.approx(0.55, abs=4 * 0.29 / math.sqrt(40))


def test_a_patient_is_the_mean_of_their_volumes() -> None:
    """The number of a patient's scans gives them no more weight, and their order none."""
    group = patients(20)
    doubled = [[*many, *many] for many in group]
    plain, twice = (blind_baseline(g, half(10), 0, permutations=9) for g in (group, doubled))
    assert twice.scores == pytest.approx(plain.scores, abs=1e-7)
    pairs = [[a[0], b[0]] for a, b in zip(patients(20), patients(20, seed=1), strict=True)]
    first = blind_baseline(pairs, half(10), 0, permutations=9)
    turned = blind_baseline([many[::-1] for many in pairs], half(10), 0, permutations=9)
    assert turned.scores == pytest.approx(first.scores, abs=1e-7)


def test_a_volume_s_look_is_what_its_words_say() -> None:
    """A box of known place and brightness on air, counted by hand."""
    volume = torch.full((1, 1, 8, 8, 10), -1.0)
    volume[..., 2:4, 1:8, 5:10] = 0.5
    found = look(volume)
    share = 2 * 7 * 5 / 640
    mean, spread = -1 + 1.5 * share, 1.5 * math.sqrt(share * (1 - share))
    assert len(found) == 22
    assert found[:2] == pytest.approx([mean, spread])
    skewness = (1 - 2 * share) / math.sqrt(share * (1 - share))
    assert found[2] == pytest.approx(skewness)
    assert found[3] == pytest.approx((1 - 6 * share * (1 - share)) / (share * (1 - share)))
    assert found[4:9] == pytest.approx([-1, -1, -1, -1, 0.5])
    assert found[9:12] == pytest.approx([0, 0, 0])
    assert found[12] == pytest.approx(share)
    assert found[13:] == pytest.approx([2 / 8, 4 / 8, 3 / 8, 1 / 8, 1, 4.5 / 8, 0.5, 1, 0.75])


def test_noise_is_seen_in_the_steps_between_neighbours() -> None:
    """White noise of deviation s has a median step of 0.6745 sqrt(2) s along each axis."""
    noise = 0.1 * torch.randn((1, 1, 24, 24, 24), generator=torch.Generator().manual_seed(0))
    assert look(noise)[9:12] == pytest.approx([0.6745 * math.sqrt(2) * 0.1] * 3, rel=0.03)


def test_the_grid_is_the_mean_of_its_cells() -> None:
    """Sides that are multiples of the grid, cell by cell; channels stand one after the other."""
    volume = torch.randn((1, 2, 8, 4, 12), generator=torch.Generator().manual_seed(0))
    cells = coarse_grid(volume).reshape(2, GRID, GRID, GRID)
    assert cells[1, 3, 0, 2] == pytest.approx(float(volume[0, 1, 6:8, 0:1, 6:9].mean()), rel=1e-6)
    assert len(coarse_grid(volume[..., :3])) == 2 * GRID**3
    assert len(look(volume)) == 2 * 22


def test_components_keep_what_varies_most() -> None:
    """Points on a line in space are one component, up to its sign, and the rest is zero."""
    place = np.random.default_rng(0).normal(size=30)
    found = principal_components(np.outer(place, [3.0, 0.0, 4.0]) + 7, 2)
    assert np.abs(found[:, 0]) == pytest.approx(np.abs(5 * (place - place.mean())))
    assert found[:, 1] == pytest.approx(np.zeros(30), abs=1e-9)


def test_a_patient_without_a_volume_is_refused() -> None:
    """A gap in the cohort or a broken voxel is named, not averaged away."""
    with pytest.raises(VolumeError, match="no volume"):
        blind_baseline([*patients(19), []], half(10), 0)
    broken = patients(20)
    broken[3][0][..., 0] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        blind_baseline(broken, half(10), 0)


def test_air_alone_has_a_look() -> None:
    """An empty scan is no reason to fail."""
    assert np.isfinite(look(torch.full((1, 1, 8, 8, 8), -1.0))).all()
