"""Folding moves every voxel to one place and back."""

import pytest
import torch
from voxfed.models.cubes import fold, unfold


@pytest.mark.parametrize("side", [1, 2, 3])
def test_folded_cubes_unfold_to_the_same_volume(side: int) -> None:
    volumes = torch.rand(2, 3, 6, 12, 18)
    assert torch.equal(unfold(fold(volumes, side), side), volumes)


def test_a_channel_is_one_corner_of_every_cube() -> None:
    """Oracle: strided slices."""
    volumes = torch.rand(2, 1, 4, 6, 8)
    folded = fold(volumes, 2)
    assert folded.shape == (2, 8, 2, 3, 4)
    assert torch.equal(folded[:, 0], volumes[:, 0, ::2, ::2, ::2])
    assert torch.equal(folded[:, 5], volumes[:, 0, 1::2, ::2, 1::2])
