"""Drawing: the synthetic volumes of an evaluation, each told what a held-out patient is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..base import NO_CONDITION, Batch, Family
from ..conditioning import conditioning_of


@dataclass(frozen=True)
class Drawn:
    """Synthetic volumes and whence their conditions came.

    Attributes:
        volumes: float32 (n, 1, D, H, W) in [-1, 1], on the CPU.
        visits: the number of the held-out batch whose condition it was told; empty where the
            family is told nothing.
    """

    volumes: Tensor
    visits: Sequence[int]

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The volumes as numbers."""
        return self.volumes.numpy()


def draw(family: Family, held_out: Sequence[Batch], n: int, seed: int) -> Drawn:
    """Draw `n` volumes; a family that is told something is told what held-out patients are.

    Args:
        family: in evaluation mode, on the device of the batches.
        held_out: batches of one, whose conditions are taken in turn.
        n: 1 or more.
        seed: fixes the volumes.
    """
    first = held_out[0].volumes
    shape = first.shape[2:]
    takes = conditioning_of(family, (shape[0], shape[1], shape[2]))
    generator = torch.Generator(first.device).manual_seed(seed)
    visits = [] if takes.kind == "none" else [number % len(held_out) for number in range(n)]
    told = [held_out[visit].condition for visit in visits] or [NO_CONDITION] * n
    volumes = [family.sample(1, condition=x, generator=generator).cpu() for x in told]
    return Drawn(torch.cat(volumes), visits)
