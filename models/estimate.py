"""What training takes, worked out without doing it: tensors that have shapes and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..study.plan import StudyPlan
from .base import Batch, Family, Step
from .checkpointing import forget_activations
from .registry import build, conditioning
from .trained import add_adapters, freeze_the_rest


@dataclass(frozen=True)
class Use:
    """The memory of a step, in bytes, beyond weights and optimiser.

    Attributes:
        kept: what autograd keeps of the forward pass for the way back.
        peak: the most that is held at any moment.
    """

    kept: int
    peak: int


class Sketch:
    """A plan's family on tensors without memory (torch's fake tensors, on a CPU's kernels).

    Args:
        plan: whose family, shape and trained part are sketched.
        bfloat16: whether losses and gradients are in bfloat16.
        checkpointing: whether blocks are computed twice.
    """

    def __init__(
        self, plan: StudyPlan, *, bfloat16: bool = False, checkpointing: bool = False
    ) -> None:
        self._plan, self._bfloat16, self._mode = plan, bfloat16, FakeTensorMode()
        with self._mode:
            self.family: Family = build(plan)
            if plan.trained == "adapters":
                add_adapters(self.family)
            freeze_the_rest(self.family, plan.trained)
            self.family.train()
        if checkpointing:
            forget_activations(self.family)

    def learning(self, step: Step) -> list[Tensor]:
        """Return the tensors that a step moves."""
        weights = dict(self.family.named_parameters())
        return [weights[name] for name in step.parameters if weights[name].requires_grad]

    def step(self, step: Step, volumes: int, *, rows: int = 0) -> Use:
        """Return what a step on so many volumes takes.

        Args:
            step: one of the family's.
            volumes: in one forward pass.
            rows: gradients that are held of every weight at once, 0 for the batch's alone.
        """
        with self._mode, _Meter(self.family) as meter:
            batch = self._batch(volumes) if step.reads_patients else None
            with (
                saved_tensors_hooks(meter.keep, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16),
            ):
                loss = step.loss(batch, torch.Generator()).float().mean()
            _go_back(loss, self.learning(step), rows)
        return Use(sum(meter.kept.values()), meter.peak)

    def sample(self, n: int) -> int:
        """Return about the most bytes held while `n` volumes are sampled, beyond the weights.

        A sampler passes the networks that the losses pass, with nothing kept for a way back.
        """
        found = 0
        for step in (x for stage in self.family.stages for x in self.family.steps(stage)):
            with self._mode, torch.no_grad(), _Meter(self.family) as meter:
                step.loss(self._batch(n) if step.reads_patients else None, torch.Generator())
            found = max(found, meter.peak)
        return found

    def _batch(self, n: int) -> Batch:
        takes = conditioning(self._plan)
        volumes = torch.empty((n, 1, *self._plan.volumes.shape))
        return Batch(volumes, takes.example(n, torch.Generator()))


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Return what tensors take, in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _go_back(loss: Tensor, weights: Sequence[Tensor], rows: int) -> None:
    """Take the gradient as the private step does: float64 sums, and each volume's rows if any."""
    total = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    held: list[Tensor] = []
    hooks = [
        weight.register_hook(lambda one: held.append(one.new_empty((rows, *one.shape))))
        for weight in weights
        if rows
    ]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    for row in held or found:
        if row is not None:
            row.double()
    for hook in hooks:
        hook.remove()
    [one.float() for one in total]


class _Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once, by their storages, but for weights."""

    def __init__(self, family: Family) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[int, int] = {}
        self.peak = self._now = 0
        self._weights = {_storage(x) for x in (*family.parameters(), *family.buffers())}
        self._sizes: dict[int, int] = dict.fromkeys(self._weights, 0)

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        if operator is torch.ops.aten._local_scalar_dense.default:
            return arguments[0].dtype == torch.bool  # yes, or zero: numbers are not there
        found = operator(*arguments, **(named or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return found

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd keeps; each storage counts once."""
        if _storage(tensor) not in self._weights:
            self.kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def _count(self, tensor: Tensor) -> None:
        key, storage = _storage(tensor), tensor.untyped_storage()
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
