"""The trained part of a plan: which parameters learn, and low-rank adapters beside frozen ones."""

from __future__ import annotations

import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.nets.diffusion_model_unet import SpatialTransformer
from torch import Tensor, nn

from ..study.errors import PlanError
from ..study.plan import Trained
from .base import Family

RANK = 2
ATTENTION = (SpatialAttentionBlock, SpatialTransformer, SABlock, CrossAttentionBlock)


class Adapted(nn.Module):
    """A frozen convolution plus a low-rank one of the same stride, zero at first.

    `down` maps to `RANK` channels with the frozen kernel's size, `up` is 1 x 1 x 1: the sum is a
    convolution whose weight differs from the frozen one by a matrix of rank `RANK` (LoRA, Hu et
    al. 2022). Both are plain `nn.Conv3d`, which every per-sample gradient method knows.
    """

    def __init__(self, frozen: nn.Conv3d, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.utils.skip_init(
            nn.Conv3d,
            frozen.in_channels,
            RANK,
            frozen.kernel_size,
            stride=frozen.stride,
            padding=frozen.padding,
            dilation=frozen.dilation,
            padding_mode=frozen.padding_mode,
            bias=False,
        )
        self.up = nn.utils.skip_init(nn.Conv3d, RANK, frozen.out_channels, 1, bias=False)
        nn.init.kaiming_normal_(self.down.weight, generator=generator)
        nn.init.zeros_(self.up.weight)
        self.to(frozen.weight)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the frozen convolution of (B, C, D, H, W) plus the adapter's."""
        both: Tensor = self.frozen(volumes) + self.up(self.down(volumes))
        return both


def add_adapters(family: Family) -> None:
    """Put an adapter beside every convolution of more than `RANK` channels either way.

    Call it once, after the base weights are loaded: each convolution's own tensors then bear
    `.frozen` in their names. The function that the family computes is at first unchanged, and the
    adapters' first weights are the same everywhere.
    """
    generator = torch.Generator().manual_seed(0)
    for parent in list(family.modules()):
        if getattr(parent, "reads_weights", False):
            continue  # its own arithmetic needs the plain kernel
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv3d and min(child.in_channels, child.out_channels) > RANK:
                setattr(parent, name, Adapted(child, generator))


def trained_parameters(family: Family, part: Trained) -> list[str]:
    """Return the names of the parameters that learn, in the family's order.

    Args:
        family: with its adapters already added where the part is "adapters".
        part: "all", "attention", "normalisation-and-biases" or "adapters".

    Raises:
        PlanError: the family has nothing of that part.
    """
    names = [name for name, _ in family.named_parameters()]
    if part == "all":
        return names
    chosen: set[str] = set()
    for path, module in family.named_modules():
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if part == "adapters" and isinstance(module, Adapted):
            chosen |= {name for name in inside if not name.startswith(f"{path}.frozen.")}
        elif part == "attention" and isinstance(module, ATTENTION):
            chosen |= inside
        elif part == "normalisation-and-biases":
            whole = isinstance(module, nn.GroupNorm)
            chosen |= {name for name in inside if whole or name.endswith(".bias")}
            chosen |= set(family.biases)
    if not chosen:
        raise PlanError(f"the family has no {part} to train", got=part, expected="another part")
    return [name for name in names if name in chosen]


def stage_parameters(family: Family, stage: str) -> list[str]:
    """Return the names of the parameters that learn in a stage, in the family's order."""
    turned = {name for step in family.steps(stage) for name in step.parameters}
    learning = [name for name, weight in family.named_parameters() if weight.requires_grad]
    return [name for name in learning if name in turned]


def freeze_the_rest(family: Family, part: Trained) -> list[str]:
    """Let only the parameters of `part` learn, and return their names."""
    names = trained_parameters(family, part)
    for name, weight in family.named_parameters():
        weight.requires_grad_(name in names)
    return names
