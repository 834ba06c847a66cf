"""The contract of a model family: what the trainer, the audit and the sampler may ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..study.tables import Table


@dataclass(frozen=True)
class Batch:
    """Volumes of one patient, or of public images, with what the task has beside them.

    Attributes:
        volumes: float32 (B, C, D, H, W) in [-1, 1], RAS axes.
        label: int64 (B,) classes.
        attributes: float32 (B, A) numbers.
        mask: int64 (B, 1, D, H, W).
        source: float32 (B, C, D, H, W), another modality of the same patient.
    """

    volumes: Tensor
    label: Tensor | None = None
    attributes: Tensor | None = None
    mask: Tensor | None = None
    source: Tensor | None = None


Loss = Callable[[Batch, torch.Generator], Tensor]


@dataclass(frozen=True)
class Step:
    """One optimiser's turn.

    Attributes:
        name: what the turn is called in logs.
        parameters: names of the parameters that the turn updates; frozen ones are left out.
        reads_patients: True where the loss touches a scan, so that the step runs under the privacy
            engine; False where it is given no batch.
        loss: from a batch of B volumes to (B,) losses, one a volume. No loss mixes two volumes:
            that is what makes a patient's gradient that patient's alone. All randomness comes from
            the generator.
    """

    name: str
    parameters: tuple[str, ...]
    reads_patients: bool
    loss: Loss


class Family(nn.Module, ABC):
    """A generative model whose whole state is its named tensors, rebuilt from its `spec`.

    Attributes:
        stages: what is trained, one after the other.
        biases: names of parameters that act as biases though no layer calls them so.
        spec: the frozen settings that rebuild the networks.
    """

    stages: tuple[str, ...]
    biases: tuple[str, ...] = ()
    spec: Table

    @abstractmethod
    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turns of `stage`, in order.

        Raises:
            PlanError: the family has no such stage.
        """

    @abstractmethod
    def sample(
        self, n: int, *, condition: Tensor | None = None, generator: torch.Generator
    ) -> Tensor:
        """Draw `n` volumes, float32 (n, C, D, H, W) in [-1, 1], from public noise alone.

        Raises:
            PlanError: a condition is given to a family that takes none.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """A family that can be asked how well it knows a volume."""

    def reconstruct(self, volumes: Tensor) -> Tensor:
        """Return (B, C, D, H, W) in [-1, 1] for (B, C, D, H, W); the same input, the same bits."""
        ...
