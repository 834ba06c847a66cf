"""Gradient checkpointing: the same gradients to the bit, from less that is kept."""

from __future__ import annotations

import pytest
import torch
from families import NAMES, batch_of, tiny
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from voxfed.models.base import Family, Step
from voxfed.models.checkpointing import forget_activations

SHAPE = (16, 16, 16)
LITTLE = {"slice-vae": ("stack",), "alpha-wgan-gp": ("code critic",)}
"""Turns on codes, which keep next to nothing anyway."""
DRAWN = {"stylegan2": ("generator",)}
"""Turns whose blocks draw noise, so that only the convolutions within them can be done again."""


def moved(name: str) -> Family:
    """A family away from its first weights, many of which are zero."""
    family = tiny(name, SHAPE)
    draw = torch.Generator().manual_seed(1)
    for weight in family.parameters():
        weight.data.add_(0.05 * torch.randn(weight.shape, generator=draw))
    return family


def gradient_and_kept(family: Family, step: Step, name: str) -> tuple[list[Tensor], int]:
    """The gradient of a step, and the bytes that autograd keeps between going on and back."""
    weights = dict(family.named_parameters())
    own = {weight.data_ptr() for weight in weights.values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    batch = batch_of(name, 2, SHAPE) if step.reads_patients else None
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step.loss(batch, torch.Generator().manual_seed(3)).mean()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    kept.clear()
    found = torch.autograd.grad(
        loss, [weights[n] for n in step.parameters], allow_unused=True, materialize_grads=True
    )
    return list(found), size


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_the_same_to_the_bit(name: str) -> None:
    """Gradient penalties and frozen critics included; each step keeps four fifths at most."""
    plain, forgetful = moved(name), moved(name)
    forget_activations(forgetful)
    for stage in plain.stages:
        for one, other in zip(plain.steps(stage), forgetful.steps(stage), strict=True):
            expected, whole = gradient_and_kept(plain, one, name)
            found, kept = gradient_and_kept(forgetful, other, name)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), one.name
            if one.name not in (*LITTLE.get(name, ()), *DRAWN.get(name, ())):
                assert kept < 0.9 * whole, one.name
            assert kept <= whole


def test_twice_is_once_and_names_stay() -> None:
    """Weights travel by name, and a block that is done again is done again once."""
    plain, forgetful = moved("vae"), moved("vae")
    forget_activations(forgetful)
    first = [vars(module).get("forward") for module in forgetful.modules()]
    forget_activations(forgetful)
    assert [vars(module).get("forward") for module in forgetful.modules()] == first
    assert any(forward is not None for forward in first)
    assert list(plain.state_dict()) == list(forgetful.state_dict())
