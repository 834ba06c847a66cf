"""Records each volume's gradient of the trained parameters while autograd goes back once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from ...models.base import Batch, Step
from . import convolution, normalisation  # noqa: F401, their samplers are registered with Opacus
from .draws import Draws
from .nudge import nudged

Receive = Callable[[int, Tensor], None]
SAMPLERS = GradSampleModule.GRAD_SAMPLERS
AGREEMENT = 1e-3
"""Largest relative difference between recorded and plain gradients, in float32 and wider."""


@dataclass
class _Layer:
    """A layer with trained parameters of its own, and where it is in the present pass."""

    module: nn.Module
    numbers: dict[nn.Parameter, int]
    waiting: int = 0
    rows: dict[int, Tensor] = field(default_factory=dict)


class Recorder:
    """Gives the gradient of every volume in a batch for the price of the batch's.

    Each layer's input and the gradient of its output are handed to Opacus' sampler for that layer
    (ours for convolutions). The parameters are frozen during the forward pass, so that autograd
    does not compute the batch's gradient as well.

    Args:
        network: holds the layers.
        parameters: the trained tensors, in the order of the rows.
    """

    def __init__(self, network: nn.Module, parameters: Sequence[Tensor]) -> None:
        self._network, self._parameters = network, tuple(parameters)
        order = {id(p): n for n, p in enumerate(parameters)}
        self._layers = [
            _Layer(module, numbers)
            for module in network.modules()
            if (numbers := {p: order[id(p)] for p in _own(module) if id(p) in order})
        ]

    def unknown_layers(self) -> list[str]:
        """Return the types of trained layers that have no sampler."""
        return sorted(
            {type(x.module).__name__ for x in self._layers if type(x.module) not in SAMPLERS}
        )

    def agrees(self, step: Step, example: Batch) -> bool:
        """Say whether the recorded gradients of `example` are autograd's, volume by volume.

        It finds parameters used outside their layer, gradients of gradients, and whatever else a
        recorder of layers cannot see. Such a step goes patient by patient.
        """
        if self.unknown_layers():
            return False
        draws = Draws(torch.Generator(example.volumes.device).manual_seed(0))
        rows: dict[int, Tensor] = {}

        def receive(number: int, found: Tensor) -> None:
            if len(found) != len(example.volumes):  # slices, say: the rest would cost memory
                raise ValueError("a layer's rows are no volumes")
            rows[number] = found

        with nudged(self._network):
            with draws.put_back():
                plain = self._plain(step, example, draws)
            try:
                self.record(lambda: step.loss(example, draws.generator), receive)
            except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError):
                return False  # what a recorded layer cannot do, a plain one can
        return all(self._close(rows, volume, parts) for volume, parts in enumerate(plain))

    def record(self, losses: Callable[[], Tensor], receive: Receive) -> Tensor:
        """Run forward and back; hand (parameter's number, rows (B, *shape)) over as they come.

        Args:
            losses: the forward pass, to (B,) losses; row i is the gradient of loss i.
            receive: called once for each parameter that the losses depend on.

        Returns:
            The losses, detached.
        """
        with self._frozen(), self._hooked(receive):
            found = losses()
        if found.requires_grad:
            found.sum().backward()
        for layer in self._layers:
            _hand_over(layer, receive)
        return found.detach()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Freeze the whole network: what another step trains must not gather this one's."""
        learning = [p for p in self._network.parameters() if p.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)

    @contextmanager
    def _hooked(self, receive: Receive) -> Iterator[None]:
        """Watch the layers during the forward pass; what they leave in the graph does the rest."""
        root = torch.zeros((), device=self._parameters[0].device, requires_grad=True)
        handles = []
        for layer in self._layers:
            layer.waiting, layer.rows = 0, {}

            def hook(_: Any, inputs: Any, output: Tensor, layer: _Layer = layer) -> Tensor | None:
                return _watched(layer, list(inputs), output, root, receive)

            handles.append(layer.module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _plain(self, step: Step, example: Batch, draws: Draws) -> list[list[Tensor]]:
        """Return autograd's gradient of each volume's loss, zeros where there is none."""
        losses = step.loss(example, draws.generator)
        found = []
        for volume, loss in enumerate(losses):
            parts = torch.autograd.grad(
                loss,
                self._parameters,
                retain_graph=volume + 1 < len(losses),
                allow_unused=True,
                materialize_grads=True,
            )
            found.append(list(parts))
        return found

    def _close(self, rows: dict[int, Tensor], volume: int, parts: Sequence[Tensor]) -> bool:
        wrong, whole = 0.0, 0.0
        for number, part in enumerate(parts):
            row = rows[number][volume] if number in rows else torch.zeros_like(part)
            wrong += float((row.double() - part.double()).square().sum())
            whole += float(part.double().square().sum())
        tolerance = max(AGREEMENT, 8 * torch.finfo(self._parameters[0].dtype).eps)
        return wrong <= tolerance**2 * whole


class _Rooted(torch.autograd.Function):
    """Ties a tensor to the graph's root, so that a gradient will reach it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, root: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].new_zeros(())


def _watched(
    layer: _Layer, inputs: list[Tensor], output: Tensor, root: Tensor, receive: Receive
) -> Tensor | None:
    if not torch.is_grad_enabled():
        return None
    if output._is_view():  # writing into a view, as relu_ may, would lose the hook
        output = output.clone()
    if not output.requires_grad:
        output = cast(Tensor, _Rooted.apply(output, root))  # type: ignore[no-untyped-call]
    layer.waiting += 1

    def back(gradient: Tensor) -> None:
        with torch.no_grad():
            parts = SAMPLERS[type(layer.module)](layer.module, inputs, gradient)
            for parameter, number in layer.numbers.items():
                rows, held = parts[parameter], layer.rows.get(number)
                layer.rows[number] = rows if held is None else held + rows
        inputs.clear()
        layer.waiting -= 1
        if not layer.waiting:
            _hand_over(layer, receive)

    output.register_hook(back)
    return output


def _hand_over(layer: _Layer, receive: Receive) -> None:
    for number in list(layer.rows):
        receive(number, layer.rows.pop(number))


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))
