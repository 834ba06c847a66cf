"""The small encoder passes every shape from 16 voxels up, and keeps volumes apart."""

import pytest
import torch
from voxfed.models.quality.encoder import FEATURES, Encoder, OnSphere


def make() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 24, 31), (40, 16, 20)])
def test_it_passes_shapes_it_was_not_made_for(shape: tuple[int, int, int]) -> None:
    """A study's grid is seldom the one that the phantoms had."""
    volumes = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert make()(volumes).shape == (2, FEATURES)


def test_it_stays_small() -> None:
    """It travels to every site and is trained on one core."""
    assert sum(weight.numel() for weight in make().parameters()) < 300_000


def test_a_volume_keeps_its_features_beside_any_other() -> None:
    """Batch statistics would mix patients and make features depend on the order of volumes."""
    draws, encoder = torch.Generator().manual_seed(0), make()
    volumes = torch.rand(3, 1, 16, 16, 16, generator=draws) * 2 - 1
    apart = torch.cat([encoder(one[None]) for one in volumes])
    assert torch.allclose(encoder(volumes), apart, atol=1e-5)  # float32 sums in another order


def test_it_tells_where_things_are() -> None:
    """A mean over the whole grid would take a body upside down for the same body."""
    volume = -torch.ones(1, 1, 16, 16, 16)
    volume[..., 2:6] = 1.0
    encoder = make()
    assert (encoder(volume) - encoder(volume.flip(4))).abs().max() > 0.01


def test_lengths_are_left_out() -> None:
    """A strange volume counts as one, however long its features."""
    rows = torch.tensor([[3.0, 4.0], [-300.0, 400.0]])
    expected = torch.tensor([[0.6, 0.8], [-0.6, 0.8]]) * 2**0.5
    assert torch.allclose(OnSphere()(rows), expected)
