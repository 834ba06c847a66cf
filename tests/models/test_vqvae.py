"""The VQ-VAE keeps volumes apart, draws only from its generator, and its prior is a density."""

import itertools

import pytest
import torch
from torch.distributions import Laplace
from voxfed.models.base import Batch, Condition, HasLikelihoodBound, Reconstructs
from voxfed.models.causal_codes import CausalCodes
from voxfed.models.codes import ERROR_SCALE, CodesSpec
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.models.vqvae import Vqvae, VqvaeSpec
from voxfed.privacy.gradients.recorder import Recorder
from voxfed.study.errors import PlanError

SHAPE = (8, 12, 16)


def make(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Vqvae:
    torch.manual_seed(seed)
    codes = CodesSpec(channels=(8, 16), groups=4, entries=16, width=4)
    family = Vqvae(VqvaeSpec(codes=codes, prior_channels=8, shape=shape))
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new family starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def balls(n: int) -> torch.Tensor:
    """Bright balls of several sizes and places in the dark."""
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 3, indexing="ij"))
    centres, radii = torch.rand(n, 3, 1, 1, 1) * 0.6 - 0.3, torch.rand(n, 1, 1, 1) * 0.4 + 0.4
    inside = (axes - centres).square().sum(1) < radii.square()
    return inside.float().unsqueeze(1) * 1.5 - 0.9


def test_shapes_and_determinism() -> None:
    family, volumes = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    assert isinstance(family, Reconstructs)
    assert isinstance(family, HasLikelihoodBound)
    first = family.sample(2, generator=generator())
    torch.manual_seed(9)
    assert torch.equal(first, family.sample(2, generator=generator()))
    assert not torch.equal(first, family.sample(2, generator=generator(4)))
    assert first.shape == family.reconstruct(Batch(volumes)).shape == volumes.shape
    assert first.abs().max() <= 1
    assert list(family.buffers()) == []


@pytest.mark.parametrize("stage", ["codes", "prior"])
def test_a_patient_does_not_touch_anothers_loss(stage: str) -> None:
    """And a wide recorder gets each volume's gradient right, the codebook's too."""
    family, pair = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    other = torch.stack([pair[0], -pair[1]])
    (step,) = family.steps(stage)
    assert step.reads_patients
    assert {name.split(".")[0] for name in step.parameters} == {stage}
    losses = [step.loss(Batch(x), generator()) for x in (pair, other)]
    assert losses[0].shape == (2,)
    assert torch.allclose(losses[0][0], losses[1][0], rtol=1e-5)
    assert not torch.allclose(losses[0][1], losses[1][1], rtol=1e-5)
    weights = [dict(family.named_parameters())[name] for name in step.parameters]
    assert Recorder(family, weights).agrees(step, Batch(pair))


def test_the_prior_is_a_probability() -> None:
    """Oracle: over every grid of three codes the probabilities add up to one."""
    torch.manual_seed(0)
    prior = CausalCodes((1, 2, 2), entries=3, channels=4)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)
    with torch.no_grad():
        assert torch.isclose(prior(every).exp().sum(), torch.tensor(1.0), atol=1e-5)


def test_draws_come_as_often_as_they_are_likely() -> None:
    """Oracle: the probability of each grid, against the share of 4000 draws."""
    torch.manual_seed(0)
    prior = CausalCodes((1, 1, 3), entries=2, channels=4)
    with torch.no_grad():
        prior.network.last.weight.mul_(4)
        every = torch.tensor(list(itertools.product(range(2), repeat=3))).reshape(-1, 1, 1, 3)
        likely = prior(every).exp()
    drawn = prior.draw(4000, generator()).flatten(1) @ torch.tensor([4, 2, 1])
    share = torch.bincount(drawn, minlength=8) / 4000
    assert (share - likely).abs().max() < 0.03


def test_the_bound_is_the_codes_probability_and_a_laplace_density() -> None:
    """Oracle: torch.distributions round the reconstruction."""
    family, volumes = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    with torch.no_grad():
        centre = family.reconstruct(Batch(volumes))
        density = Laplace(centre, ERROR_SCALE).log_prob(volumes).flatten(1).sum(1)
        expected = density + family.prior(family.codes.encode(volumes).indices)
    found = family.likelihood_bound(Batch(volumes), generator())
    assert torch.allclose(found, expected, rtol=1e-4)


def test_a_few_steps_reduce_both_losses() -> None:
    family, volumes = make((8, 8, 8)), balls(8)
    before = (family.reconstruct(Batch(volumes)) - volumes).abs().mean()
    for stage in family.stages:
        (step,) = family.steps(stage)
        weights = [dict(family.named_parameters())[name] for name in step.parameters]
        optimiser = torch.optim.Adam(weights, lr=5e-3)
        losses = []
        for _ in range(60):
            loss = step.loss(Batch(volumes), generator()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]
    assert (family.reconstruct(Batch(volumes)) - volumes).abs().mean() < 0.4 * before
    assert len(family.codes.encode(volumes).indices.unique()) > 4  # the codebook is in use


def test_the_state_is_its_tensors() -> None:
    first, second = make(), make(seed=1)
    load_into(second, from_bytes(to_bytes(tensors_of(first))))
    assert torch.equal(*[x.sample(1, generator=generator()) for x in (first, second)])


def test_wrong_conditions_settings_and_stages_are_refused() -> None:
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=Condition(label=torch.tensor([0])), generator=generator())
    with pytest.raises(PlanError, match="diffusion"):
        make().steps("diffusion")
    with pytest.raises(PlanError, match="multiples of 4"):
        VqvaeSpec.checked({"shape": [8, 8, 10]}, file="", error=PlanError)
    with pytest.raises(PlanError, match=r"codes\.entrees: unknown key"):
        VqvaeSpec.checked({"shape": [8, 8, 8], "codes": {"entrees": 3}}, file="", error=PlanError)
