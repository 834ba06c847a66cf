"""Refuses networks that leak past the engine, by what they do and not by what they are called."""

from __future__ import annotations

import torch
from torch import nn

from ..models.base import Batch, Family, Step
from ..study.errors import Refusal


def inspect_family(family: Family, shape: tuple[int, int, int]) -> None:
    """Raise Refusal where a family mixes volumes, or moves anything outside its trained part.

    Guarantee:
        On random volumes of `shape`: no volume's loss changes when another volume of the batch
        changes, and no buffer or frozen parameter changes in a training step.
    Assumes:
        The network does not behave otherwise on real scans.
    """
    _refuse_batch_norm(family)
    generator = torch.Generator().manual_seed(0)
    device = next(family.parameters()).device
    volumes = torch.rand((2, 1, *shape), generator=generator).to(device) * 2 - 1
    was_training = family.training
    family.train()
    try:
        for stage in family.stages:
            for step in family.steps(stage):
                if step.reads_patients:
                    _check_mixing(step, volumes)
                    _check_stillness(family, step, volumes)
    finally:
        family.train(was_training)


def _refuse_batch_norm(family: Family) -> None:
    for name, module in family.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise Refusal(
                f"the layer {name} normalises over the batch, which mixes patients",
                got=type(module).__name__,
                expected="GroupNorm or LayerNorm",
                hint="build the network with norm=GROUP",
            )


def _check_mixing(step: Step, volumes: torch.Tensor) -> None:
    """Compare each volume's loss beside two different other volumes."""
    for kept in (0, 1):
        other = volumes.clone()
        other[1 - kept] *= -1
        with torch.no_grad():
            first, second = (
                step.loss(Batch(volumes=v), torch.Generator().manual_seed(1))
                for v in (volumes, other)
            )
        if first.shape != (2,) or not torch.isclose(
            first[kept], second[kept], rtol=1e-4, atol=1e-6
        ):
            raise Refusal(
                f"the loss of step {step.name} mixes the volumes of two patients",
                got=f"losses {first.tolist()}",
                expected=f"two losses, with {second.flatten().tolist()[kept:][:1]} kept",
                hint="return one loss a volume, without batch statistics",
            )


def _check_stillness(family: Family, step: Step, volumes: torch.Tensor) -> None:
    """Run forward and backward; nothing but gradients may have changed."""
    before = {name: tensor.detach().clone() for name, tensor in _tensors(family).items()}
    step.loss(Batch(volumes=volumes), torch.Generator().manual_seed(1)).mean().backward()
    family.zero_grad(set_to_none=True)
    for name, tensor in _tensors(family).items():
        if not torch.equal(tensor, before[name]):
            raise Refusal(
                f"the tensor {name} changes in a training step without the engine",
                got="raw activations stored in the network",
                expected="only gradients move weights",
                hint="use a layer that is trained by gradient alone",
            )


def _tensors(family: Family) -> dict[str, torch.Tensor]:
    """Return parameters and buffers, also those that a state dict leaves out."""
    return dict(family.named_parameters()) | dict(family.named_buffers())
