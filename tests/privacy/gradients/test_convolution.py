"""Convolutions of every kind: each volume's gradient is autograd's for that volume alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from voxfed.privacy.gradients import convolution
from voxfed.privacy.gradients.convolution import (
    Geometry,
    convolution_gradients,
    folded,
    one_by_one,
    product,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "3x3x3": (
        nn.Conv3d,
        {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": 1},
        (5, 6, 7),
    ),
    "strided": (
        nn.Conv3d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "stride": 2},
        (7, 8, 9),
    ),
    "strides that differ": (
        nn.Conv3d,
        {
            "in_channels": 2,
            "out_channels": 3,
            "kernel_size": (3, 1, 2),
            "stride": (2, 1, 3),
            "padding": (1, 0, 1),
        },
        (6, 5, 9),
    ),
    "dilated": (
        nn.Conv3d,
        {
            "in_channels": 2,
            "out_channels": 3,
            "kernel_size": 3,
            "dilation": (2, 1, 3),
            "padding": 2,
        },
        (8, 6, 7),
    ),
    "grouped": (
        nn.Conv3d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "padding": 1},
        (5, 5, 5),
    ),
    "depthwise": (
        nn.Conv3d,
        {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "groups": 4, "stride": 2},
        (6, 6, 6),
    ),
    "1x1x1": (nn.Conv3d, {"in_channels": 3, "out_channels": 4, "kernel_size": 1}, (4, 5, 6)),
    "1x1x1 grouped": (
        nn.Conv3d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 1, "groups": 2},
        (4, 5, 6),
    ),
    "1x1x1 strided": (
        nn.Conv3d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 1, "stride": 2},
        (5, 5, 6),
    ),
    "1x1x1 padded": (
        nn.Conv3d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 1, "padding": 1},
        (3, 4, 5),
    ),
    "no bias": (
        nn.Conv3d,
        {"in_channels": 1, "out_channels": 2, "kernel_size": 3, "bias": False},
        (5, 5, 5),
    ),
    "same": (
        nn.Conv3d,
        {"in_channels": 2, "out_channels": 2, "kernel_size": (2, 3, 4), "padding": "same"},
        (5, 6, 7),
    ),
    "valid": (
        nn.Conv3d,
        {"in_channels": 2, "out_channels": 2, "kernel_size": 2, "padding": "valid"},
        (5, 6, 7),
    ),
    "replicated edges": (
        nn.Conv3d,
        {
            "in_channels": 2,
            "out_channels": 2,
            "kernel_size": 3,
            "padding": 1,
            "padding_mode": "replicate",
        },
        (5, 6, 7),
    ),
    "circular edges": (
        nn.Conv3d,
        {
            "in_channels": 2,
            "out_channels": 2,
            "kernel_size": 3,
            "padding": (2, 0, 1),
            "padding_mode": "circular",
        },
        (5, 6, 7),
    ),
    "transposed": (
        nn.ConvTranspose3d,
        {
            "in_channels": 3,
            "out_channels": 2,
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "output_padding": 1,
        },
        (3, 4, 5),
    ),
    "transposed, grouped": (
        nn.ConvTranspose3d,
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (2, 3, 4),
            "stride": (2, 1, 3),
            "groups": 2,
            "dilation": (1, 2, 1),
        },
        (3, 4, 3),
    ),
    "transposed 1x1x1": (
        nn.ConvTranspose3d,
        {"in_channels": 3, "out_channels": 2, "kernel_size": 1},
        (3, 4, 5),
    ),
    "plane": (
        nn.Conv2d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1},
        (7, 6),
    ),
    "plane, transposed": (
        nn.ConvTranspose2d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 2, "stride": 2},
        (3, 4),
    ),
    "line": (
        nn.Conv1d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "dilation": 2},
        (12,),
    ),
    "line, transposed": (
        nn.ConvTranspose1d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "stride": 3},
        (4,),
    ),
}


def layer_and_input(name: str, dtype: torch.dtype, n: int) -> tuple[Any, Tensor]:
    kind, arguments, space = LAYERS[name]
    torch.manual_seed(0)
    layer: Any = kind(**arguments).to(dtype)
    channels = arguments["in_channels"]
    return layer, torch.randn((n, channels, *space), dtype=torch.float64).to(dtype)


def alone(layer: Any, x: Tensor, g: Tensor) -> list[list[Tensor]]:
    """The oracle: autograd, one volume at a time."""
    return [
        list(torch.autograd.grad(layer(x[i : i + 1]), list(layer.parameters()), g[i : i + 1]))
        for i in range(len(x))
    ]


def check(layer: Any, x: Tensor, tolerance: float, wide: bool = False) -> None:
    g = torch.randn_like(layer(x))
    found = convolution_gradients(layer, [x], g)
    if wide:
        layer, x, g = layer.double(), x.double(), g.double()
    for number, parts in enumerate(alone(layer, x, g)):
        for parameter, part in zip(layer.parameters(), parts, strict=True):
            row = found[parameter][number].double()
            assert row.shape == part.shape
            assert float((row - part).norm()) <= tolerance * float(part.norm())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_float64_agrees_to_one_in_a_billion(name: str, n: int) -> None:
    """The issue's exactness, layer by layer."""
    check(*layer_and_input(name, torch.float64, n), 1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_agrees_to_one_in_a_hundred_thousand(name: str) -> None:
    """Sums of some hundred products in float32."""
    check(*layer_and_input(name, torch.float32, 3), 1e-5, wide=True)


@pytest.mark.parametrize("name", ["3x3x3", "strided", "1x1x1", "transposed", "grouped"])
def test_bfloat16_agrees_to_two_percent(name: str) -> None:
    """bf16 has 8 bits: products of its own values, summed wider, rounded once or twice."""
    check(*layer_and_input(name, torch.bfloat16, 3), 0.02, wide=True)


@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is quicker depends on the machine; what comes out does not."""
    layer, x = layer_and_input(name, torch.float64, 3)
    g = torch.randn_like(layer(x))
    geometry = Geometry(layer)
    a, b = (g, x) if geometry.transposed else (x, g)
    a = geometry.padded(a)
    ways = [folded, one_by_one, *([product] if geometry.pointwise else [])]
    first, *others = (way(geometry, a, b) for way in ways)
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-10, atol=1e-10)


def test_the_quicker_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice follows the clock, is made once for a shape, and is kept."""
    layer, x = layer_and_input("3x3x3", torch.float32, 2)
    g = torch.randn_like(layer(x))
    monkeypatch.setattr(convolution, "_CHOSEN", {})
    asked = []

    def seconds(way: object, *_: object) -> float:
        asked.append(way)
        return 1.0 if way is folded else 0.5

    monkeypatch.setattr(convolution, "_seconds", seconds)
    for _ in range(2):
        convolution_gradients(layer, [x], g)
    assert asked == [folded, one_by_one]
    assert list(convolution._CHOSEN.values()) == [one_by_one]


def test_only_what_is_trained_is_computed() -> None:
    layer, x = layer_and_input("3x3x3", torch.float32, 2)
    g = torch.randn_like(layer(x))
    layer.weight.requires_grad_(False)
    assert list(convolution_gradients(layer, [x], g)) == [layer.bias]
