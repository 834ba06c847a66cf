"""MedicalNet, on MONAI's layers: the ResNet that Chen et al. 2019 trained on 23 sets of scans."""

from __future__ import annotations

import torch
from monai.networks.nets.resnet import ResNet, get_inplanes
from torch import nn

BLOCKS = {10: ("basic", [1, 1, 1, 1]), 50: ("bottleneck", [3, 4, 6, 3])}


def medicalnet(depth: int) -> ResNet:
    """Return the network without weights, on no device: 512 (depth 10) or 2048 features a volume.

    MONAI halves the grid in the last two groups of layers, where MedicalNet keeps it and spreads
    the kernels by 2 and by 4. Its weights load into either and mean something else, so the layers
    are set as in the paper. The mean over the grid is the feature that FID is taken on since Sun
    et al. 2022.

    Args:
        depth: 10 or 50.
    """
    block, layers = BLOCKS[depth]
    with torch.device("meta"):
        network = ResNet(
            block=block,
            layers=layers,
            block_inplanes=get_inplanes(),
            n_input_channels=1,
            conv1_t_stride=2,
            shortcut_type="B",
            feed_forward=False,
            bias_downsample=False,
        )
    for group, spread in ((network.layer3, 2), (network.layer4, 4)):
        for layer in group.modules():
            if isinstance(layer, nn.Conv3d):
                layer.stride = (1, 1, 1)
                if layer.kernel_size == (3, 3, 3):
                    layer.dilation = layer.padding = (spread,) * 3
    return network
