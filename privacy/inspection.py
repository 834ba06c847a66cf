"""Refuses networks that leak past the engine, by what they do and not by what they are called."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..models.base import Batch, Family, Step
from ..models.conditioning import conditioning_of
from ..study.errors import Refusal
from .gradients.draws import Draws
from .gradients.nudge import nudged

CLOSE = 1e-6
"""Relative difference of two losses that are the same, beside what kernels may round."""

LOOSE = 1e-5
"""The same for gradients on a GPU, whose kernels add up in no fixed order."""


def inspect_family(family: Family, shape: tuple[int, int, int]) -> None:
    """Raise Refusal where a family mixes or remembers volumes, or learns outside its steps.

    Guarantee:
        On the volumes of `example`: no volume's loss changes when another volume of the batch
        changes, or after another batch was seen; no buffer and no parameter, frozen or trained,
        changes in the losses of a step or their gradients; a step that reads no patients works
        without a batch and is the same to the bit (on a GPU to 1e-5) whoever was seen before.
        Every trained parameter has one name and is named by a step.
    Assumes:
        The network does not behave otherwise on real scans.

    Args:
        family: with only its trained part requiring gradients.
        shape: voxels of the study's volumes, (D, H, W).

    Raises:
        Refusal: with the reason and the remedy.
    """
    _refuse_strays(family)
    _refuse_ties(family)
    _refuse_batch_norm(family)
    batch = example(family, shape)
    steps = [step for stage in family.stages for step in family.steps(stage)]
    reading = [step for step in steps if step.reads_patients]
    was_training = family.training
    family.train()
    try:
        with nudged(family):  # what lies behind a zero weight cannot be seen
            for step in reading:
                _check_stillness(family, step, batch)
                _check_mixing(family, step, batch)
            for step in steps:
                if not step.reads_patients:
                    _check_blindness(family, step, reading, batch)
    finally:
        family.train(was_training)


def example(family: Family, shape: tuple[int, int, int]) -> Batch:
    """Return two random volumes (2, 1, D, H, W) in [-1, 1] with what the family is told of them.

    They are nobody's, the same in every run, and on the family's device.
    """
    draw, device = torch.Generator().manual_seed(0), next(family.parameters()).device
    volumes = torch.rand((2, 1, *shape), generator=draw) * 2 - 1
    told = conditioning_of(family, shape).example(2, draw)
    return Batch(volumes.to(device), told.mapped(lambda part: part.to(device)))


def _refuse_strays(family: Family) -> None:
    """Compare the parameters that the steps name with those that there are."""
    known = {name for name, _ in family.named_parameters()}
    named: set[str] = set()
    for stage in family.stages:
        for step in family.steps(stage):
            for name in sorted(set(step.parameters) - known):
                raise Refusal(
                    f"the step {step.name} names a parameter that is not there",
                    got=name,
                    expected="names of named_parameters()",
                    hint="mend the step's parameters",
                )
            named.update(step.parameters)
    for name, parameter in family.named_parameters():
        if parameter.requires_grad and name not in named:
            raise Refusal(
                f"the trained parameter {name} belongs to no step",
                got="a parameter that learns outside the engine",
                expected="every trained parameter in a step",
                hint="name it in a step, or freeze it",
            )


def _refuse_ties(family: Family) -> None:
    """Find numbers that learn under two names, by their places in memory."""
    places = sorted(
        (p.data_ptr(), p.data_ptr() + _span(p), name, p.requires_grad)
        for name, p in family.named_parameters(remove_duplicate=False)
        if p.numel() and p.device.type != "meta"
    )
    ties = sorted(
        (name, other)
        for (_, end, name, learns), (start, _, other, other_learns) in pairwise(places)
        if start < end and (learns or other_learns)
    )
    for name, other in ties[:1]:
        raise Refusal(
            f"the parameters {name} and {other} are tied",
            got="the same numbers under several names",
            expected="one name, so that a patient's gradient is clipped as a whole",
            hint="give each layer a tensor of its own, or call one layer twice",
        )


def _span(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first number to its last."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _refuse_batch_norm(family: Family) -> None:
    for name, module in family.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise Refusal(
                f"the layer {name} normalises over the batch, which mixes patients",
                got=type(module).__name__,
                expected="GroupNorm or LayerNorm",
                hint="build the network with norm=GROUP",
            )


def _check_stillness(family: Family, step: Step, batch: Batch) -> None:
    """Run forward and backward; nothing in the family may have changed."""
    before = {name: tensor.detach().clone() for name, tensor in _tensors(family).items()}
    _turn(family, step, batch)
    for name, tensor in _tensors(family).items():
        if not torch.equal(tensor, before[name]):
            raise Refusal(
                f"the tensor {name} changes in a training step without the engine",
                got="raw activations stored in the network",
                expected="only gradients move weights",
                hint="use a layer that is trained by gradient alone",
            )


def _check_mixing(family: Family, step: Step, batch: Batch) -> None:
    """Compare each volume's loss beside two different volumes, and after two different batches."""
    first = _losses(family, step, batch).detach()
    for kept in (0, 1):
        second = _losses(family, step, _with_other(batch, 1 - kept)).detach()
        if first.shape != (2,) or not _close(first[kept], second[kept]):
            raise Refusal(
                f"the loss of step {step.name} mixes the volumes of two patients",
                got=f"losses {first.tolist()}",
                expected=f"two losses, with {second.flatten().tolist()[kept:][:1]} kept",
                hint="return one loss a volume, keep nothing of a batch, draw from the generator",
            )


def _check_blindness(family: Family, step: Step, reading: list[Step], batch: Batch) -> None:
    """Run the step without a batch, after each of two different patients was seen."""
    found = []
    for seen in (batch, _with_other(_with_other(batch, 0), 1)):
        for one in reading:
            _turn(family, one, seen)
        try:
            found.append(_turn(family, step, None))
        except (AttributeError, TypeError) as fault:
            raise Refusal(
                f"the step {step.name} is marked as not reading patients but needs a batch",
                got=str(fault),
                expected="a loss of noise and public conditions alone",
                hint="mark it as reads_patients, or make its volumes up in the step",
            ) from fault
    for one, other in zip(*found, strict=True):
        loose = one.device.type != "cpu" and torch.allclose(one, other, rtol=LOOSE, atol=LOOSE)
        if not (loose or torch.equal(one, other)):
            raise Refusal(
                f"the step {step.name} is marked as not reading patients but knows them",
                got="another loss or gradient after another patient was seen",
                expected="the same to the bit",
                hint="mark it as reads_patients, or keep nothing of a batch in the network",
            )


def _turn(family: Family, step: Step, batch: Batch | None) -> list[Tensor]:
    """Return a step's losses and its gradients, with the same draws every time."""
    known = dict(family.named_parameters())
    trained = [known[name] for name in step.parameters if known[name].requires_grad]
    losses = _losses(family, step, batch)
    if not (losses.requires_grad and trained):
        return [losses]
    found = torch.autograd.grad(losses.mean(), trained, allow_unused=True, materialize_grads=True)
    return [losses.detach(), *found]


def _losses(family: Family, step: Step, batch: Batch | None) -> Tensor:
    """Return a step's losses, with the same draws every time, those of dropout as well.

    Autograd stays on: a gradient penalty needs it.
    """
    device = next(family.parameters()).device
    draws = Draws(torch.Generator(device).manual_seed(1))
    with draws.put_back():
        torch.manual_seed(2)
        losses: Tensor = step.loss(batch, draws.generator)
    return losses


def _with_other(batch: Batch, row: int) -> Batch:
    """Return the batch with another patient in a row: the volume and what is told of it."""
    volumes = batch.volumes.clone()
    volumes[row] = 1.0  # as unlike a random volume as can be: in mean, spread and size
    return Batch(volumes, batch.condition.mapped(lambda part: _turned(part, row)))


def _turned(part: Tensor, row: int) -> Tensor:
    """Return a condition with another row: classes and structures 0 and 1 change places."""
    turned = part.clone()
    turned[row] = 1.0 if part.is_floating_point() else (part[row] == 0).to(part.dtype)
    return turned


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=CLOSE, atol=0.0)


def _tensors(family: Family) -> dict[str, Tensor]:
    """Return parameters and buffers, also those that a state dict leaves out."""
    return dict(family.named_parameters()) | dict(family.named_buffers())
