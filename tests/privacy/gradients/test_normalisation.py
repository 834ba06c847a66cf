"""GroupNorm: each volume's gradient is autograd's for that volume alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxfed.privacy.gradients.normalisation import group_norm_gradients

SPACES = [((5, 6, 7), 1), ((5, 6, 7), 3), ((5, 6, 7), 6), ((3,), 3), ((), 1), ((), 3)]
EXACT = [(torch.float64, 1e-9), (torch.float32, 1e-4)]
ROUGH = [(torch.bfloat16, 0.05)]  # 8 bits of mantissa


@pytest.mark.parametrize(
    ("space", "groups", "dtype", "tolerance"),
    [(*space, *kind) for space in SPACES for kind in EXACT]
    + [(*space, *kind) for space in SPACES[:3] for kind in ROUGH],
)
def test_it_agrees_with_one_volume_at_a_time(
    space: tuple[int, ...], groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    """The oracle is autograd in float64."""
    torch.manual_seed(0)
    channels = 6
    layer = nn.GroupNorm(groups, channels).to(dtype)
    x: Tensor = (torch.randn((3, channels, *space)) * 2 + 1).to(dtype)
    g = torch.randn_like(x)
    found = group_norm_gradients(layer, [x], g)
    wide = nn.GroupNorm(groups, channels).double()
    for i in range(3):
        parts = torch.autograd.grad(
            wide(x[i : i + 1].double()), list(wide.parameters()), g[i : i + 1].double()
        )
        for parameter, part in zip(layer.parameters(), parts, strict=True):
            error = float((found[parameter][i].double() - part).norm())
            assert error <= tolerance * float(part.norm())


def test_strided_activations_are_taken_as_they_are() -> None:
    """A permuted tensor is not read in the order of its memory."""
    layer = nn.GroupNorm(2, 4).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).permute(0, 3, 1, 2)
    g = torch.randn(2, 5, 4, 3, dtype=torch.float64).permute(0, 2, 3, 1)
    # PyTorch 2.13's own backward pass crashes on such tensors, so the oracle gets plain copies
    plain = x.contiguous(), g.contiguous()
    (whole, _) = torch.autograd.grad(layer(plain[0]), list(layer.parameters()), plain[1])
    torch.testing.assert_close(group_norm_gradients(layer, [x], g)[layer.weight].sum(0), whole)


def test_only_what_is_trained_is_computed() -> None:
    layer = nn.GroupNorm(2, 4)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 4, 3)
    found = group_norm_gradients(layer, [x], x)
    assert list(found) == [layer.bias]
    torch.testing.assert_close(found[layer.bias], x.sum(2))
