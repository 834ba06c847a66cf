"""The contract of a model family: what the trainer, the audit and the sampler may ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ..study.errors import VolumeError
from ..study.tables import Table


@dataclass(frozen=True)
class Condition:
    """What a volume is asked to show, one row a volume; a field is None where the task has it not.

    Attributes:
        label: int64 (B,) classes.
        attributes: float32 (B, A) numbers, each scaled to about [-1, 1].
        mask: int64 (B, 1, D, H, W) structures, 0 for none.
        source: float32 (B, C, D, H, W) in [-1, 1], another modality of the same patient.
    """

    label: Tensor | None = None
    attributes: Tensor | None = None
    mask: Tensor | None = None
    source: Tensor | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with `change` done to each part that it has."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{n: None if part is None else change(part) for n, part in parts.items()})


NO_CONDITION = Condition()


@dataclass(frozen=True)
class Batch:
    """Volumes of patients, or of public images, with what the task has beside them.

    Attributes:
        volumes: float32 (B, C, D, H, W) in [-1, 1], RAS axes.
        condition: what the task has beside them, B rows.
    """

    volumes: Tensor
    condition: Condition = NO_CONDITION


def rows_of(batch: Batch, rows: slice | Tensor) -> Batch:
    """Return the rows of a batch that a slice or a list of numbers chooses."""
    return Batch(batch.volumes[rows], batch.condition.mapped(lambda part: part[rows]))


def joined(batches: Sequence[Batch]) -> Batch:
    """Return one batch of several, volumes and each part of their conditions."""
    conditions = joined_conditions([one.condition for one in batches])
    return Batch(torch.cat([one.volumes for one in batches]), conditions)


def joined_conditions(conditions: Sequence[Condition]) -> Condition:
    """Return the rows of several conditions, all of one kind, as one."""
    parts = {}
    for field in fields(Condition):
        values = [getattr(one, field.name) for one in conditions]
        parts[field.name] = None if not values or values[0] is None else torch.cat(values)
    return Condition(**parts)


def check_volumes(batch: Batch, shape: Sequence[int]) -> None:
    """Check that a batch holds volumes (B, 1, D, H, W) of a family's shape (D, H, W).

    Raises:
        VolumeError: it holds others; a network might take them, and learn from them wrongly.
    """
    if tuple(batch.volumes.shape[1:]) != (1, *shape):
        raise VolumeError(
            "these volumes do not fit the model",
            got=tuple(batch.volumes.shape),
            expected=f"(B, 1, {', '.join(map(str, shape))})",
            hint="resample them to the shape of the plan's [volumes] table",
        )


Loss = Callable[[Any, torch.Generator], Tensor]


@dataclass(frozen=True)
class Step:
    """One optimiser's turn.

    Attributes:
        name: what the turn is called in logs.
        parameters: names of the parameters that the turn updates; frozen ones are left out.
        reads_patients: True where the loss touches a scan, so that the step runs under the privacy
            engine; False where it is given no batch.
        loss: from a Batch of B volumes to (B,) losses, one a volume. No loss mixes two volumes:
            that is what makes a patient's gradient that patient's alone. A step that reads no
            patients is given None, and returns losses of volumes that it makes up itself. All
            randomness comes from the generator, on the generator's device.
        repeats: turns of this step in one local step, e.g. 5 of a critic; each is charged.
        decays: of Adam's two moving averages, from 0 to below 1; players of a game want the first
            small, since the other player moves what it averages.
    """

    name: str
    parameters: tuple[str, ...]
    reads_patients: bool
    loss: Loss
    repeats: int = 1
    decays: tuple[float, float] = (0.9, 0.999)


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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the volumes that it learns and draws."""
        return cast(Any, self.spec).shape  # type: ignore[no-any-return]

    @abstractmethod
    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turns of `stage`, in order.

        Raises:
            PlanError: the family has no such stage.
        """

    @abstractmethod
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Draw `n` volumes, float32 (n, C, D, H, W) in [-1, 1], from public noise alone.

        Raises:
            PlanError: a condition is missing, or given to a family that takes none.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """A family that can be asked how well it knows a volume."""

    def reconstruct(self, batch: Batch) -> Tensor:
        """Return volumes (B, C, D, H, W) in [-1, 1] as it knows them; the same batch, same bits."""
        ...


@runtime_checkable
class HasLikelihoodBound(Protocol):
    """A family that bounds how likely a volume is."""

    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a lower bound on each volume's log density, (B,), in nats."""
        ...


@runtime_checkable
class HasCritic(Protocol):
    """A family that learned to tell volumes from its own."""

    def criticise(self, batch: Batch) -> Tensor:
        """Return (B,) scores, higher where a volume looks real; no draw is made."""
        ...


@runtime_checkable
class Denoises(Protocol):
    """A family that removes noise from volumes."""

    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise at a time in (0, 1), (B,)."""
        ...


@dataclass(frozen=True)
class Exposed:
    """Volumes as a denoiser sees them, and what it says of their noised states.

    Attributes:
        clean: (B, ...), what is noised: voxels, latents or coefficients; nothing is drawn.
        level: from a time in [0, 1] to signal and noise: a state is signal clean + noise eps.
        predict: from a state shaped as `clean` and its time to the noise that it is said to hold.
    """

    clean: Tensor
    level: Callable[[float], tuple[float, float]]
    predict: Callable[[Tensor, float], Tensor]


@runtime_checkable
class Exposes(Protocol):
    """A family that shows its denoiser at work."""

    def exposed(self, batch: Batch) -> Exposed:
        """Return the volumes as the denoiser sees them, B rows."""
        ...


@runtime_checkable
class HasImportanceWeights(Protocol):
    """A family that draws latents z of a volume x and knows all densities."""

    def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return log p(x, z) - log q(z | x) at one draw of z, (B,), in nats.

        Its mean over draws is the evidence bound (Kingma and Welling 2014); the mean of its
        exponential is the density (Burda et al. 2016).
        """
        ...


@runtime_checkable
class Decodes(Protocol):
    """A family that makes each volume of a code."""

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw codes (n, ...) from their prior."""
        ...

    def decode(self, codes: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Return the volumes (n, C, D, H, W) of codes, with their gradient; nothing is drawn."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A family that knows a volume by a few numbers of its own."""

    def embed(self, batch: Batch) -> Tensor:
        """Return each volume's latent as one row, (B, F); nothing is drawn."""
        ...
