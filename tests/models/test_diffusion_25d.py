"""The 2.5D model takes the right slices, makes volumes of them in order, and learns."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, Denoises
from voxfed.models.conditioning import Kind
from voxfed.models.diffusion_25d import Diffusion25d, Diffusion25dSpec
from voxfed.models.fitting import fit
from voxfed.study.errors import PlanError

SMALL = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 3}
KINDS: tuple[Kind, ...] = ("none", "class", "attributes", "mask", "source")
SHAPE = (6, 9, 7)


def make(kind: Kind = "none", shape: tuple[int, ...] = SHAPE, **denoiser: object) -> Diffusion25d:
    torch.manual_seed(0)
    settings = {"denoiser": {**SMALL, **denoiser}, "shape": shape, "slices": 3, "predecessors": 2}
    family = Diffusion25d(Diffusion25dSpec(condition=kind, classes=3, attributes=2, **settings))
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new network starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(family: Diffusion25d, n: int = 2) -> Batch:
    volumes = torch.rand((n, 1, *family.spec.shape), generator=generator(1)) * 2 - 1
    return Batch(volumes, family.conditioning.example(n, generator(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: Kind) -> None:
    """Seven slices are two slabs of three and a third that is cut."""
    family = make(kind)
    batch = make_batch(family)
    assert isinstance(family, Denoises)
    assert family.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    drawn = family.sample(2, condition=batch.condition, generator=generator())
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_does_not_touch_its_neighbours_gradient(kind: Kind) -> None:
    family = make(kind, guidance=2.0)
    batch = make_batch(family)
    batch.volumes.requires_grad_()
    family.loss(batch, generator())[0].backward()
    assert batch.volumes.grad is not None
    assert batch.volumes.grad[0].abs().max() > 0
    assert batch.volumes.grad[1].abs().max() == 0


def test_all_randomness_is_the_generators() -> None:
    family = make(sampler="ddpm")
    batch = make_batch(family)
    torch.manual_seed(1)
    first = family.loss(batch, generator()), family.sample(2, generator=generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = family.loss(batch, generator()), family.sample(2, generator=generator())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[1], family.sample(2, generator=generator(9)))


def test_a_few_steps_reduce_the_loss() -> None:
    """On shifted balls, by the same draws of slab, time and noise before and after."""
    family = make(shape=(8, 8, 9))
    lines = [torch.linspace(-1, 1, side) for side in (8, 8, 9)]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    shifts = 0.3 * torch.randn(16, 3, 1, 1, 1, generator=generator())
    volumes = torch.tanh(4 * (0.6 - (places - shifts).norm(dim=1, keepdim=True)))
    batch = Batch(volumes.repeat(8, 1, 1, 1, 1))
    with torch.no_grad():
        before = family.loss(batch, generator()).mean()
    fit(family, "diffusion", volumes, steps=60, batch=8, learning_rate=3e-3, generator=generator())
    with torch.no_grad():
        after = family.loss(batch, generator()).mean()
    assert after < 0.8 * before


@pytest.mark.parametrize("kind", ["class", "attributes", "mask", "source"])
def test_the_condition_is_heard(kind: Kind) -> None:
    family = make(kind)
    first, second = (family.conditioning.example(1, generator(seed)) for seed in (1, 2))
    told, other = (family.sample(1, condition=c, generator=generator()) for c in (first, second))
    assert not torch.equal(told, other)


def test_the_step_reads_patients_and_there_is_no_state_beside_the_parameters() -> None:
    family = make("class")
    (step,) = family.steps("diffusion")
    assert step.reads_patients
    assert set(step.parameters) == set(dict(family.named_parameters())) == set(family.state_dict())
    assert list(family.buffers()) == []
    with pytest.raises(PlanError, match="autoencoder"):
        family.steps("autoencoder")


def test_a_wrong_condition_is_refused() -> None:
    label = Condition(label=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=label, generator=generator())
    with pytest.raises(PlanError, match="takes a condition"):
        make("mask").sample(1, generator=generator())
