"""The PixelCNN's probabilities add up to one, and its draws are from them."""

import itertools

import pytest
import torch
from voxfed.models.base import Batch, Condition, HasLikelihoodBound
from voxfed.models.pixel_cnn import PixelCnn, PixelCnnSpec, log_probability, rounded
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.privacy.gradients.recorder import Recorder
from voxfed.study.errors import PlanError

SHAPE = (4, 5, 7)


def make(shape: tuple[int, int, int] = SHAPE, seed: int = 0, **settings: object) -> PixelCnn:
    torch.manual_seed(seed)
    small = {"channels": 8, "dilations": (1, 2), "mixture": 3, "shades": 16, **settings}
    family = PixelCnn(PixelCnnSpec(shape=shape, **small))
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rounding_has_both_ends() -> None:
    found = rounded(torch.tensor([-1.2, -1.0, -0.4, 0.2, 0.4, 1.0]), 3)
    assert found.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("shades", [2, 5, 64])
def test_the_steps_of_a_voxel_add_up_to_one(shades: int) -> None:
    """Also where a logistic is narrow, wide, or far outside."""
    torch.manual_seed(0)
    steps = torch.linspace(-1, 1, shades, dtype=torch.float64)
    outputs = torch.randn(40, 9, 1, 1, 1, dtype=torch.float64) * 3
    total = torch.zeros(40, dtype=torch.float64)
    for step in steps:
        volumes = step.expand(40, 1, 1, 1, 1)
        total += log_probability(outputs, volumes, shades).exp().flatten()
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


def test_a_voxels_probability_is_a_difference_of_distribution_functions() -> None:
    """Oracle: the distribution function of a logistic, subtracted."""
    torch.manual_seed(0)
    outputs = torch.randn(6, 6, 1, 1, 1, dtype=torch.float64)
    volumes = rounded(torch.rand(6, 1, 1, 1, 1, dtype=torch.float64) * 1.6 - 0.8, 16)
    weights, means, log_scales = outputs.chunk(3, dim=1)
    masses = [
        torch.sigmoid((volumes + edge - means) / log_scales.exp()) for edge in (1 / 15, -1 / 15)
    ]
    expected = (weights.softmax(1) * (masses[0] - masses[1])).sum(1).log()
    assert torch.allclose(log_probability(outputs, volumes, 16), expected, atol=1e-9)


def test_the_probabilities_of_all_volumes_add_up_to_one() -> None:
    """Oracle: every volume of 2 x 2 x 1 voxels in three shades."""
    family = make((2, 2, 1), shades=3)
    every = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=4)))
    volumes = every.reshape(-1, 1, 2, 2, 1)
    with torch.no_grad():
        likely = (-4 * family.loss(Batch(volumes), generator())).exp()
    assert torch.isclose(likely.sum(), torch.tensor(1.0), atol=1e-4)
    # and draws come as often
    drawn = family.sample(3000, generator=generator()).reshape(-1, 4)
    share = (drawn[:, None] == every).all(2).float().mean(0)
    assert torch.isclose(share.sum(), torch.tensor(1.0))
    assert (share - likely).abs().max() < 0.03


def test_the_bound_spreads_a_step_evenly() -> None:
    """Oracle: the density integrates to one over a voxel whose ends count half."""
    family = make((1, 1, 1), shades=5)
    shades = (torch.arange(8000) + 0.5) / 4000 - 1
    batch = Batch(shades.reshape(-1, 1, 1, 1, 1))
    assert isinstance(family, HasLikelihoodBound)
    density = family.likelihood_bound(batch, generator()).exp()
    ends = family.likelihood_bound(
        Batch(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1)), generator()
    )
    missing = ends.exp().sum() * 0.25
    assert torch.isclose(density.mean() * 2 + missing, torch.tensor(1.0), atol=1e-3)


def test_no_shade_of_a_later_voxel_enters() -> None:
    """A voxel's probability is the same whatever comes after it."""
    family, volumes = make(), torch.rand(1, 1, *SHAPE) * 2 - 1
    other = volumes.clone()
    other.view(-1)[70:] *= -1
    found = [family._log_probability(x).flatten() for x in (volumes, other)]
    assert torch.allclose(found[0][:70], found[1][:70], atol=1e-6)
    assert not torch.allclose(found[0][70:], found[1][70:])


def test_shapes_determinism_and_separate_volumes() -> None:
    family, pair = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    first = family.sample(2, generator=generator())
    torch.manual_seed(9)
    assert torch.equal(first, family.sample(2, generator=generator()))
    assert not torch.equal(first, family.sample(2, generator=generator(4)))
    assert first.shape == pair.shape
    assert torch.equal(first, rounded(first, 16))
    assert list(family.buffers()) == []
    (step,) = family.steps("pixels")
    assert step.reads_patients
    other = torch.stack([pair[0], -pair[1]])
    losses = [step.loss(Batch(x), generator()) for x in (pair, other)]
    assert torch.allclose(losses[0][0], losses[1][0], rtol=1e-5)
    weights = [dict(family.named_parameters())[name] for name in step.parameters]
    assert Recorder(family, weights).agrees(step, Batch(pair))


def test_a_few_steps_reduce_the_loss() -> None:
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 3, indexing="ij"))
    radii = torch.rand(8, 1, 1, 1) * 0.4 + 0.4
    volumes = ((axes.square().sum(0) < radii.square()).float() * 1.5 - 0.9).unsqueeze(1)
    family = make((8, 8, 8))
    optimiser = torch.optim.Adam(family.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = family.loss(Batch(volumes), generator()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_state_is_its_tensors() -> None:
    first, second = make(), make(seed=1)
    load_into(second, from_bytes(to_bytes(tensors_of(first))))
    assert torch.equal(*[x.sample(1, generator=generator()) for x in (first, second)])


def test_wrong_conditions_and_stages_are_refused() -> None:
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=Condition(label=torch.tensor([0])), generator=generator())
    with pytest.raises(PlanError, match="diffusion"):
        make().steps("diffusion")
