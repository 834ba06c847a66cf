"""Each volume's own weight gradient of a convolution, in one call for the whole batch.

The batch is folded into channel groups: a convolution of B Cin channels in B times as many groups
keeps the volumes apart, so that its one weight gradient holds everybody's (Rochette et al. 2019
have the idea for Conv2d; unfolding, as Opacus does, holds k^3 copies of the activations instead).
Opacus calls the function here wherever it meets a convolution, with its own signature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn
from torch.nn import functional

Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
Kernel = Callable[["Geometry", Tensor, Tensor], Tensor]


class Geometry:
    """What a convolution does with space, whatever its weights.

    Of a transposed convolution it is the convolution that goes the other way: input and output
    change places, and the weight has the same shape.
    """

    def __init__(self, layer: Convolution) -> None:
        self.transposed = layer.transposed
        self.weight_shape = tuple(layer.weight.shape)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        # _reversed_padding_repeated_twice holds "same" and "valid" as numbers too
        pairs = layer._reversed_padding_repeated_twice
        self.edges = tuple(int(x) for x in pairs)
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        even = self.edges[::2] == self.edges[1::2] and self.padding_mode == "constant"
        self.padding = self.edges[::-2] if even else (0,) * len(self.stride)
        self.even = even

    def padded(self, x: Tensor) -> Tensor:
        """Return x with the edges that the convolution itself cannot add."""
        return x if self.even else functional.pad(x, self.edges, self.padding_mode)

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is one voxel and every voxel is met once."""
        ones = (1,) * len(self.stride)
        still = (self.stride, self.padding) == (ones, (0,) * len(self.stride)) and self.even
        return still and self.weight_shape[2:] == ones

    @property
    def key(self) -> Hashable:
        """What the choice of a way may depend on, beside the shapes."""
        return self.weight_shape, self.stride, self.padding, self.dilation, self.groups


def convolution_gradients(
    layer: Convolution, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Return the gradient of each trained parameter for each volume, (B, *shape).

    Args:
        layer: strided, dilated, grouped, depthwise, transposed or padded in any way.
        activations: the layer's input, (B, Cin, *space), as Opacus hands it over.
        backprops: the gradient of the layer's output, (B, Cout, *space).
    """
    found = {}
    if layer.weight.requires_grad:
        geometry = Geometry(layer)
        x, g = activations[0].to(backprops.dtype), backprops
        if geometry.transposed:
            x, g = g, x
        x = geometry.padded(x)
        found[cast(nn.Parameter, layer.weight)] = _weight_gradients(geometry, x, g)
    if layer.bias is not None and layer.bias.requires_grad:
        found[cast(nn.Parameter, layer.bias)] = backprops.flatten(2).sum(2)
    return found


def _weight_gradients(geometry: Geometry, x: Tensor, g: Tensor) -> Tensor:
    """Return (B, Cout, Cin / groups, *kernel) for an input x and the gradient g of the output."""
    if geometry.pointwise:
        return product(geometry, x, g)
    return _quickest(geometry, x, g)(geometry, x, g)


def folded(geometry: Geometry, x: Tensor, g: Tensor) -> Tensor:
    """Fold the batch into groups: one call of the grouped kernel."""
    n = len(x)
    x, g = (t.reshape(1, -1, *t.shape[2:]) for t in (x, g))
    parts = _kernel(geometry, x, g, volumes=n)
    return parts.reshape(n, *geometry.weight_shape)


def one_by_one(geometry: Geometry, x: Tensor, g: Tensor) -> Tensor:
    """Take volume after volume, beside a zero one: a batch of one falls on slow kernels."""
    rows = x.new_empty((len(x), *geometry.weight_shape))
    pair = x.new_zeros((2, *x.shape[1:])), g.new_zeros((2, *g.shape[1:]))
    for row, volume, gradient in zip(rows, x, g, strict=True):
        pair[0][0], pair[1][0] = volume, gradient
        row.copy_(_kernel(geometry, *pair, volumes=1))
    return rows


def product(geometry: Geometry, x: Tensor, g: Tensor) -> Tensor:
    """Multiply matrices: all that a kernel of one voxel does."""
    n, groups = len(x), geometry.groups
    x, g = (t.reshape(n, groups, t.shape[1] // groups, -1) for t in (x, g))
    return (g @ x.transpose(2, 3)).reshape(n, *geometry.weight_shape)


def _kernel(geometry: Geometry, x: Tensor, g: Tensor, *, volumes: int) -> Tensor:
    """Return the weight gradient alone; the weight's values do not enter it, only its shape."""
    channels, *rest = geometry.weight_shape
    weight = x.new_empty(1).expand(channels * volumes, *rest)
    still = [0] * len(geometry.stride)
    arguments = (geometry.stride, geometry.padding, geometry.dilation, False, still)
    groups = geometry.groups * volumes
    wanted = (False, True, False)
    backward = torch.ops.aten.convolution_backward
    return cast(Tensor, backward(g, x, weight, None, *arguments, groups, wanted)[1])


_CHOSEN: dict[Hashable, Kernel] = {}


def _quickest(geometry: Geometry, x: Tensor, g: Tensor) -> Kernel:
    """Return the way that was faster for such shapes on this device, timed when first met."""
    key = (geometry.key, x.shape[1:], x.dtype, x.device)
    if key not in _CHOSEN:
        _CHOSEN[key] = min((folded, one_by_one), key=lambda way: _seconds(way, geometry, x, g))
    return _CHOSEN[key]


def _seconds(way: Kernel, geometry: Geometry, x: Tensor, g: Tensor) -> float:
    least = math.inf
    for _ in range(2):
        _wait(x.device)
        began = time.perf_counter()
        way(geometry, x, g)
        _wait(x.device)
        least = min(least, time.perf_counter() - began)
    return least


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_LAYERS: Any = list(Convolution.__args__)
register_grad_sampler(_LAYERS)(convolution_gradients)
