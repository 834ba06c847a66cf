"""The trained part of a plan: which parameters learn, and low-rank adapters beside frozen ones."""

from __future__ import annotations

from typing import Any, get_args

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
Adaptable = nn.Conv3d | nn.Conv2d | nn.Linear
ATTENTION = (SpatialAttentionBlock, SpatialTransformer, SABlock, CrossAttentionBlock)


class Adapted(nn.Module):
    """A frozen convolution or linear layer plus a low-rank one of the same stride, zero at first.

    `down` maps to `RANK` channels with the frozen kernel's size, `up` has a kernel of 1: the sum is
    a layer whose weight differs from the frozen one by a matrix of rank `RANK` (LoRA, Hu et al.
    2022). Both are plain layers, which every per-sample gradient method knows.
    """

    def __init__(self, frozen: Adaptable, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen
        self.down, self.up = _low_rank(frozen)
        nn.init.kaiming_normal_(self.down.weight, generator=generator)
        nn.init.zeros_(self.up.weight)
        self.to(frozen.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the frozen layer makes of x, (B, C, D, H, W), plus what the adapter does."""
        both: Tensor = self.frozen(x) + self.up(self.down(x))
        return both

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer that both amount to, for families that reach for it."""
        change = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.frozen.weight + change.view_as(self.frozen.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's bias."""
        return self.frozen.bias


def _low_rank(frozen: Adaptable) -> tuple[Adaptable, Adaptable]:
    """Return a layer of the same kind to `RANK` channels, and one from there, both unset."""
    make: Any = nn.utils.skip_init
    if isinstance(frozen, nn.Linear):
        ins, outs = frozen.in_features, frozen.out_features
        return make(nn.Linear, ins, RANK, bias=False), make(nn.Linear, RANK, outs, bias=False)
    down = make(
        type(frozen),
        frozen.in_channels,
        RANK,
        frozen.kernel_size,
        stride=frozen.stride,
        padding=frozen.padding,
        dilation=frozen.dilation,
        padding_mode=frozen.padding_mode,
        bias=False,
    )
    return down, make(type(frozen), RANK, frozen.out_channels, 1, bias=False)


def add_adapters(family: Family) -> None:
    """Put an adapter beside every convolution and linear layer wider than `RANK` either way.

    Call it once, after the base weights are loaded: each layer's own tensors then bear `.frozen`
    in their names. The function that the family computes is at first unchanged, and the
    adapters' first weights are the same everywhere.
    """
    generator = torch.Generator().manual_seed(0)
    for parent in list(family.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, Adaptable) or type(child) not in get_args(Adaptable):
                continue  # what is derived from a plain layer may do more than it says
            if min(child.weight.shape[:2]) > RANK:
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
