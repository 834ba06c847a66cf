"""What people train on volumes: a classifier and a segmenter, both small and the same each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn import functional

from .encoder import Encoder

CHANNELS = (8, 16, 32)
MULTIPLE = 4
"""Voxels that the sides of the segmenter's grid are a multiple of."""


@dataclass(frozen=True)
class _Pace:
    """How a network is trained, by Adam.

    Attributes:
        steps: 1 or more.
        batch: volumes of a step.
        rate: of learning at the first step; it falls to zero in a line.
    """

    steps: int
    batch: int
    rate: float


def train_classifier(
    volumes: Tensor, labels: Tensor, classes: int, *, steps: int, generator: torch.Generator
) -> nn.Module:
    """Return a classifier from volumes (B, 1, D, H, W) to logits (B, classes).

    It is the encoder of encoder.py, from new weights, trained by cross entropy in which every
    class counts alike, whatever its share.

    Args:
        volumes: float32 (n, 1, D, H, W) in [-1, 1], each side 16 or more.
        labels: int64 (n,).
        classes: 2 or more.
        steps: of Adam, 8 volumes each.
        generator: on the CPU; first weights and draws follow from it.
    """
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    weights = (len(labels) / counts).float()

    def loss(logits: Tensor, drawn: Tensor) -> Tensor:
        each = functional.cross_entropy(logits, labels[drawn], reduction="none")
        return (each * weights[labels[drawn]]).sum() / weights[labels[drawn]].sum()

    return _train(lambda: Encoder(classes), volumes, loss, _Pace(steps, 8, 2e-3), generator)


def train_segmenter(
    volumes: Tensor, masks: Tensor, structures: int, *, steps: int, generator: torch.Generator
) -> nn.Module:
    """Return a segmenter from volumes (B, 1, D, H, W) to logits (B, structures, D, H, W).

    It is MONAI's UNet with GroupNorm, trained by cross entropy and Dice loss, summed, as nnU-Net
    is (Isensee et al. 2021). Any side can be passed.

    Args:
        volumes: float32 (n, 1, D, H, W) in [-1, 1].
        masks: int64 (n, 1, D, H, W).
        structures: labels with the background, 2 or more.
        steps: of Adam, 4 volumes each.
        generator: on the CPU; first weights and draws follow from it.
    """
    masks = masks[:, 0]

    def loss(logits: Tensor, drawn: Tensor) -> Tensor:
        expected = functional.one_hot(masks[drawn], structures).movedim(-1, 1).float()
        found = logits.softmax(1)
        overlap = 2 * (found * expected).sum((2, 3, 4)) + 1
        dice = overlap / ((found + expected).sum((2, 3, 4)) + 1)
        return functional.cross_entropy(logits, masks[drawn]) + 1 - dice[:, 1:].mean()

    return _train(lambda: Segmenter(structures), volumes, loss, _Pace(steps, 4, 5e-3), generator)


class Segmenter(nn.Module):
    """MONAI's UNet on volumes padded with background to a multiple of 4 voxels a side.

    Args:
        structures: labels with the background.
    """

    def __init__(self, structures: int) -> None:
        super().__init__()
        self.network = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=CHANNELS[0],
            channels=CHANNELS,
            strides=(2,) * (len(CHANNELS) - 1),
            num_res_units=1,
            act="RELU",
            norm=("GROUP", {"num_groups": 4}),
        )
        self.last = nn.Conv3d(CHANNELS[0], structures, 1)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return logits (B, structures, D, H, W) for volumes (B, 1, D, H, W)."""
        depth, height, width = volumes.shape[2:]
        more = [extra for side in (width, height, depth) for extra in (0, -side % MULTIPLE)]
        logits: Tensor = self.last(self.network(functional.pad(volumes, more, value=-1.0)))
        return logits[:, :, :depth, :height, :width]


def segment(segmenter: nn.Module, volumes: Tensor) -> Tensor:
    """Return the labels (n, 1, D, H, W), int64, of volumes (n, 1, D, H, W), one at a time."""
    with torch.no_grad():
        return torch.cat([segmenter(one[None]).argmax(1, keepdim=True) for one in volumes])


def _train(
    make: Callable[[], nn.Module],
    volumes: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    pace: _Pace,
    generator: torch.Generator,
) -> nn.Module:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network = make().to(volumes.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=pace.rate)
    for step in range(pace.steps):
        optimiser.param_groups[0]["lr"] = pace.rate * (1 - step / pace.steps)
        drawn = torch.randint(len(volumes), (pace.batch,), generator=generator).to(volumes.device)
        found = loss(network(volumes[drawn]), drawn)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
    return network.eval()
