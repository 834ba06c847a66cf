"""Each volume's own gradient of GroupNorm's weights, by the kernel of the backward pass.

The batch is folded into groups, as in `convolution.py`: that kernel needs moments alone, where
Opacus multiplies the normalised activations.
"""

from __future__ import annotations

from typing import cast

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn


def group_norm_gradients(
    layer: nn.GroupNorm, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Return the gradient of each trained parameter for each volume, (B, C).

    Args:
        layer: with weight and bias.
        activations: the layer's input, (B, C, *space), as Opacus hands it over.
        backprops: the gradient of the layer's output, of the same shape.
    """
    x = activations[0].to(backprops.dtype).contiguous()
    n, channels, groups = len(x), x.shape[1], layer.num_groups
    voxels = x[0, 0].numel()
    shape = n, channels, voxels, groups
    _, mean, inverse = torch.native_group_norm(x, None, None, *shape, layer.eps)
    folded = (t.reshape(1, n * channels, -1) for t in (backprops.contiguous(), x))
    moments = mean.reshape(1, -1), inverse.reshape(1, -1), layer.weight.detach().repeat(n)
    shape = 1, n * channels, voxels, n * groups
    wanted = (False, layer.weight.requires_grad, layer.bias.requires_grad)
    backward = torch.ops.aten.native_group_norm_backward
    _, weight, bias = backward(*folded, *moments, *shape, wanted)
    found = {layer.weight: weight, layer.bias: bias}
    trained = cast(dict[nn.Parameter, Tensor], {p: t for p, t in found.items() if p.requires_grad})
    return {p: t.reshape(n, channels) for p, t in trained.items()}


register_grad_sampler(nn.GroupNorm)(group_norm_gradients)
