"""The numbers that a loss and its gradients are computed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...models.base import Batch, Step
from ...study.errors import Refusal
from .draws import Draws
from .nudge import nudged
from .performance import Precision

NEAR = 0.5
"""Largest relative difference of an example's gradient in bfloat16 (8 bits of mantissa) to that in
float32. 0.02 is usual; where rounding gives a volume other codes, gradients of a tiny grid differ
by a third."""


def in_precision(step: Step, precision: Precision) -> Step:
    """Return the step with a loss in this precision; weights, losses and gradients stay float32.

    bfloat16 is that of `torch.autocast`, which leaves to float32 what needs it. Go back within
    `sound_kernels`.
    """
    if precision == "float32":
        return step

    def loss(batch: Batch | None, generator: torch.Generator) -> Tensor:
        with torch.autocast(generator.device.type, torch.bfloat16):
            return step.loss(batch, generator).float()

    return replace(step, loss=loss)


@contextmanager
def sound_kernels(precision: Precision, device: torch.device) -> Iterator[None]:
    """Take weight gradients of bfloat16 convolutions in float32 on a CPU.

    oneDNN's own, as of torch 2.13, read and write beyond their memory for small grids, e.g. of
    depth 2: what one patient left there would enter another's gradient.
    """
    if precision == "float32" or device.type != "cpu":
        yield
        return
    with _Float32Weights():  # type: ignore[no-untyped-call]
        yield


class _Float32Weights(TorchDispatchMode):
    """Replaces one operator while it is active."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        narrow = operator is BACKWARD and arguments[0].dtype is torch.bfloat16
        if not narrow or not arguments[-1][1]:
            return operator(*arguments, **(named or {}))
        *rest, (inputs, weights, biases) = arguments
        wide = [x.float() for x in rest[:3]]
        found = operator(*wide, *rest[3:], (False, weights, biases))
        slope = operator(*rest, (True, False, False))[0] if inputs else None
        return slope, *(None if x is None else x.to(torch.bfloat16) for x in found[1:])


BACKWARD = torch.ops.aten.convolution_backward.default


def refuse_far(
    network: nn.Module,
    step: Step,
    parameters: Sequence[Tensor],
    example: Batch,
    precision: Precision,
) -> None:
    """Raise Refusal where the gradient of `example` is not about that in float32.

    It bounds no patient, clipping does; a network that this precision breaks learns nothing.
    """
    if precision == "float32":
        return
    with nudged(network):
        exact = _gradient(step, parameters, example)
        with sound_kernels(precision, example.volumes.device):
            found = _gradient(in_precision(step, precision), parameters, example)
    error = float((found - exact).norm())
    if not error <= NEAR * float(exact.norm()):
        raise Refusal(
            f"the gradient of step {step.name} is another one in {precision}",
            got=f"a relative difference of {error / float(exact.norm()):.2g}",
            expected=f"at most {NEAR}",
            hint='set precision = "float32" under [performance] in site.toml',
        )


def _gradient(step: Step, parameters: Sequence[Tensor], example: Batch) -> Tensor:
    """Return the gradient of the mean loss as one vector, float64, on fixed draws."""
    draws = Draws(torch.Generator(example.volumes.device).manual_seed(0))
    with draws.put_back():
        torch.manual_seed(0)
        loss = step.loss(example, draws.generator).mean()
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.double().flatten() for part in found])
