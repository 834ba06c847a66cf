"""What a family is told of a patient is that patient's: no loss may mix it either."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family, Step
from voxfed.models.conditioning import Conditioning
from voxfed.privacy.inspection import example, inspect_family
from voxfed.study.errors import Refusal
from voxfed.study.tables import Table

SHAPE = (6, 8, 10)


class ToldSpec(Table):
    """Two classes."""

    @property
    def conditioning(self) -> Conditioning:
        return Conditioning("class", 2, 0, SHAPE)


class Told(Family):
    """A convolution whose loss is scaled by its own label, or by the mean label of the batch."""

    stages = ("only",)
    spec = ToldSpec()

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes, self.convolution = mixes, nn.Conv3d(1, 4, 3, padding=1)

    def steps(self, stage: str) -> tuple[Step, ...]:
        names = tuple(name for name, _ in self.named_parameters())
        return (Step("turn", names, reads_patients=True, loss=self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        label = batch.condition.label.float()
        scale = 1 + (label.mean() if self.mixes else label)
        return scale * self.convolution(batch.volumes).square().flatten(1).mean(1)

    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        return torch.zeros((n, 1, *SHAPE))


def test_a_loss_that_mixes_conditions_is_refused() -> None:
    """What a neighbour is told is the neighbour's: the mean label of a batch leaks it."""
    with pytest.raises(Refusal, match="mixes the volumes"):
        inspect_family(Told(mixes=True), SHAPE)


def test_a_loss_of_its_own_condition_passes() -> None:
    inspect_family(Told(mixes=False), SHAPE)


def test_the_example_is_told_what_the_family_takes() -> None:
    """Else a conditional family could not be inspected, recorded or rehearsed at all."""
    label = example(Told(mixes=False), SHAPE).condition.label
    assert label is not None
    assert label.shape == (2,)
