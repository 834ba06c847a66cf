"""Seconds, operations and memory of a sample are those that can be counted by hand."""

import pytest
import torch
from torch import nn
from voxfed.models.base import Condition
from voxfed.models.quality.cost import LEFT_OUT, cost_of_sample, flops, growth
from voxfed.models.vae import Vae, VaeSpec
from voxfed.study.errors import PlanError

CPU = torch.device("cpu")


def test_operations_of_a_convolution_are_counted_as_by_hand() -> None:
    """Each output voxel takes 27 products a channel pair, and each product an addition."""
    layer = nn.Conv3d(3, 5, 3, stride=2, padding=1, bias=False)
    volumes = torch.zeros(2, 3, 8, 10, 12)
    assert flops(lambda: (layer(volumes), None)[1]) == 2 * 27 * 3 * 5 * (2 * 4 * 5 * 6)


def test_what_is_left_out_is_not_counted() -> None:
    """The sentence beside the figure is true: normalisation, activation and draws count nothing."""
    layers = nn.Sequential(nn.GroupNorm(1, 4), nn.ReLU(), nn.AvgPool3d(2), nn.Upsample((4, 4, 4)))

    def run() -> None:
        layers(torch.randn(1, 4, 4, 4, 4))

    assert flops(run) == 0
    assert "normalisation, activations, resampling and random draws are left out" in LEFT_OUT


def test_memory_of_a_call_is_what_it_held() -> None:
    """A call that fills 64 MiB and lets go raises the peak by that, though nothing is left."""
    size = 2**26

    def run() -> None:
        torch.ones(size, dtype=torch.uint8)

    grown = growth(run, CPU)
    assert grown is not None
    # pages of 4 KiB and whatever the interpreter does meanwhile; the block itself is mapped anew
    assert size * 0.9 < grown < size * 1.5


def test_a_sample_is_measured_whole() -> None:
    """A row of the table has every figure, and the weights are in its memory."""
    torch.manual_seed(0)
    family = Vae(VaeSpec(shape=(8, 8, 8), channels=(8,), groups=4, code=3)).eval()
    drawn = []
    sample = family.sample

    def watched(n: int, *, condition: Condition, generator: torch.Generator) -> torch.Tensor:
        drawn.append(n)
        return sample(n, condition=condition, generator=generator)

    family.sample = watched  # type: ignore[method-assign]
    cost = cost_of_sample(family, repeats=2, generator=torch.Generator().manual_seed(0))
    assert drawn == [1] * 4  # memory, two timings, operations
    assert cost.device == "cpu"
    assert cost.seconds > 0
    assert cost.flops > 0
    assert cost.memory is not None
    assert cost.memory >= sum(4 * weight.numel() for weight in family.parameters())


def test_a_condition_that_the_family_takes_not_is_refused() -> None:
    """The family's own refusal reaches the caller."""
    family = Vae(VaeSpec(shape=(8, 8, 8), channels=(8,), groups=4, code=3)).eval()
    condition = Condition(label=torch.tensor([1]))
    with pytest.raises(PlanError):
        cost_of_sample(family, condition=condition, generator=torch.Generator())
