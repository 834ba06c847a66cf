"""StyleGAN2 in 3D: its modulated convolution is the paper's, and its penalty is a volume's own."""

import pytest
import torch
from torch.nn import functional
from voxfed.models.base import Batch
from voxfed.models.stylegan2 import ModulatedConvolution, StyledLayer, StyleGan2, StyleGan2Spec


@pytest.mark.parametrize("demodulate", [True, False])
def test_scaling_input_and_output_is_scaling_the_weight(demodulate: bool) -> None:
    """Karras et al. 2020, equations 1 and 3, volume by volume in float64."""
    torch.manual_seed(0)
    layer = ModulatedConvolution(3, 5, 3, style=4, demodulate=demodulate).double()
    volumes = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    styles = torch.randn(2, 4, dtype=torch.float64)
    found = layer(volumes, styles)
    for volume, style, ours in zip(volumes, styles, found, strict=True):
        scale = layer.scale(style)
        weight = layer.convolution.weight * scale[None, :, None, None, None]
        if demodulate:
            size = (weight.square().sum((1, 2, 3, 4), keepdim=True) + 1e-8).sqrt()
            weight = weight / size
        exact = functional.conv3d(volume[None], weight, padding=1)[0]
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_noise_is_added_at_each_voxel_by_its_strength() -> None:
    """One noise for all channels of a volume (Karras et al. 2019), with the kink undone by hand."""
    torch.manual_seed(0)
    layer, styles = StyledLayer(3, 5, style=4).double(), torch.randn(2, 4, dtype=torch.float64)
    volumes = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)

    def raised(strength: float, seed: int) -> torch.Tensor:
        torch.nn.init.constant_(layer.strength, strength)
        found = layer(volumes, styles, torch.Generator().manual_seed(seed)) / 2**0.5
        return torch.where(found < 0, found / 0.2, found)

    first, second = (
        torch.randn(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    expected = (0.7 * (first - second).double()).expand(2, 5, 4, 5, 6)
    torch.testing.assert_close(raised(0.7, 1) - raised(0.7, 2), expected)
    torch.testing.assert_close(raised(0.0, 1), raised(0.0, 2), rtol=0, atol=0)


def test_the_penalty_is_a_volumes_own() -> None:
    """R1 (Mescheder et al. 2018): half its weight times the squared slope at each real volume."""
    torch.manual_seed(0)
    settings = {"shape": (8, 8, 8), "channels": (8, 8), "critic_channels": (4, 8)}
    with_penalty = StyleGan2(StyleGan2Spec(penalty=6.0, **settings)).double()  # type: ignore[arg-type]
    without = StyleGan2(StyleGan2Spec(penalty=0.0, **settings)).double()  # type: ignore[arg-type]
    without.load_state_dict(with_penalty.state_dict())
    real = torch.rand(2, 1, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(with_penalty.critic(real, None).sum(), real)
    losses = [
        family.critic_loss(Batch(real.detach()), torch.Generator().manual_seed(1))
        for family in (with_penalty, without)
    ]
    expected = 0.5 * 6.0 * slope.square().flatten(1).sum(1)
    torch.testing.assert_close(losses[0] - losses[1], expected, rtol=1e-6, atol=1e-9)
