"""The 2.5D model takes the right slices, and makes volumes of them in order."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, Denoises
from voxfed.models.conditioning import Kind
from voxfed.models.diffusion_25d import FAULT, Diffusion25d, Diffusion25dSpec

SMALL = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 3}
SHAPE = (6, 9, 7)


def make(kind: Kind = "none") -> Diffusion25d:
    torch.manual_seed(0)
    settings = {"denoiser": SMALL, "shape": SHAPE, "slices": 3, "predecessors": 2}
    family = Diffusion25d(Diffusion25dSpec(condition=kind, classes=3, **settings))
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new network starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes() -> None:
    """Seven slices are two slabs of three and a third that is cut."""
    family = make()
    batch = Batch(torch.rand((2, 1, *SHAPE)) * 2 - 1)
    assert isinstance(family, Denoises)
    assert family.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    drawn = family.sample(2, generator=generator())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.abs().max() <= 1


def test_a_slab_is_seen_with_its_own_predecessors() -> None:
    """By hand, on volumes whose slices are numbered from 1; a missing slice is 0."""
    family = make()
    volumes = torch.arange(1.0, 8.0).expand(3, 1, *SHAPE)
    slices, slab = family._slices(volumes), torch.tensor([0, 1, 2])
    assert family._slab(slices, slab)[:, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 7, 7]]
    beside = family._beside(slices, slab)[:, :, 0, 0]
    assert beside[:, :2].tolist() == [[0, 0], [2, 3], [5, 6]]
    assert torch.allclose(beside[:, 2], torch.tensor([-2 / 3, 0, 2 / 3]))


def test_training_shows_the_true_predecessors_with_a_small_fault() -> None:
    """By hand: beside the slab lie the patient's own slices, each voxel off by the fault's size."""
    family, shown = make(), []

    def loss(grid: torch.Tensor, told: object, drawn: object, beside: torch.Tensor) -> torch.Tensor:
        shown.append((grid, beside))
        return grid.flatten(1).mean(1)

    family.denoiser.loss = loss  # type: ignore[assignment, method-assign]
    volumes = torch.arange(1.0, 8.0).expand(64, 1, *SHAPE)
    family.loss(Batch(volumes), generator())
    ((grid, beside),) = shown
    slab = (grid[:, 0, 0, 0].long() - 1) // 3
    assert sorted(set(slab.tolist())) == [0, 1, 2]
    true = torch.tensor([[0.0, 0.0], [2.0, 3.0], [5.0, 6.0]])[slab]
    fault = (beside[:, :2] - true[:, :, None, None])[slab > 0]
    assert abs(float(fault.mean())) < 0.1 * FAULT
    assert float(fault.std()) == pytest.approx(FAULT, rel=0.1)
    assert not beside[slab == 0, :2].any()


def test_an_image_condition_is_that_of_the_slab() -> None:
    family = make("mask")
    mask = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
    mask[..., 4] = 2
    told = family.conditioning.told(Condition(mask=mask), 1)
    planes = family._told(told, torch.tensor([1]))
    assert planes is not None
    assert planes.shape == (1, 9, 6, 9)
    assert planes[0, :, 0, 0].tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 0]


def test_made_slices_are_given_to_their_successors() -> None:
    """Oracle: a denoiser that makes every slab its predecessor's mean plus a tenth."""
    family = make()

    def sample(
        shape: tuple[int, ...], told: object, drawn: object, bound: object, beside: torch.Tensor
    ) -> torch.Tensor:
        return beside[:, :2].mean(1, keepdim=True).expand(shape) + 0.1

    family.denoiser.sample = sample  # type: ignore[assignment, method-assign]
    drawn = family.sample(1, generator=generator())
    expected = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3])
    assert torch.allclose(drawn, expected.expand_as(drawn))
