"""A generator makes volumes of any shape, each from its own code."""

import pytest
import torch
from voxfed.models.generator import Smooth, VolumeGenerator


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 12, 5), (7, 16, 20)])
def test_any_shape_comes_out_in_range(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    generator = VolumeGenerator(shape, 5, (16, 8), 4)
    codes = torch.randn(3, 5)
    volumes = generator(codes)
    assert volumes.shape == (3, 1, *shape)
    assert volumes.abs().max() <= 1
    assert torch.allclose(generator(codes[1:2]), volumes[1:2], atol=1e-5)  # float32
    assert list(generator.buffers()) == []


def test_every_voxel_depends_on_the_code() -> None:
    """Cutting an odd side off leaves no voxel that the code cannot reach."""
    torch.manual_seed(0)
    generator = VolumeGenerator((9, 6, 5), 5, (16, 8), 4)
    first, second = generator(torch.randn(2, 5))
    assert (first != second).all()


def test_smooth_is_a_mean_of_eight_that_no_chequerboard_survives() -> None:
    """Oracle: the mean by hand inside; an alternation of period two becomes its mean."""
    volumes = torch.randn(2, 1, 4, 5, 6)
    found = Smooth()(volumes)
    assert found.shape == volumes.shape
    by_hand = volumes[:, :, 1:3, 2:4, 3:5].mean((2, 3, 4))
    assert torch.allclose(found[:, :, 2, 3, 4], by_hand, atol=1e-6)
    assert torch.allclose(found[:, :, 0, 0, 0], volumes[:, :, 0, 0, 0], atol=1e-6)
    board = torch.ones(1, 1, 6, 6, 6)
    board[..., ::2] = -1
    assert Smooth()(board)[..., 1:].abs().max() == 0
