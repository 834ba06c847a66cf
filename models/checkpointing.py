"""Gradient checkpointing: blocks keep their inputs alone, and compute the rest again going back."""

from __future__ import annotations

from functools import partial

from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from .causal import Stream
from .stylegan2 import ModulatedConvolution

BLOCKS = (
    AEKLResBlock,
    Convolution,
    DiffusionUNetResnetBlock,
    ModulatedConvolution,
    SpatialAttentionBlock,
    Stream,
    TransformerBlock,
)
"""What is computed twice. None of them draws from a generator, which would draw anew."""


def forget_activations(network: nn.Module) -> None:
    """Let the outermost blocks of a network keep nothing but their inputs (Chen et al. 2016).

    Gradients are the same to the bit where the device's kernels repeat; tensors keep their names.
    What a layer draws from the global state it draws again.
    """
    for module in network.children():
        if not isinstance(module, BLOCKS):
            forget_activations(module)
        elif "forward" not in vars(module):  # once is enough
            vars(module)["forward"] = partial(checkpoint, module.forward, use_reentrant=False)
