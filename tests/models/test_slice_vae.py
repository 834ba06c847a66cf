"""The slice VAE sees slices one by one, and its stack is the Gaussian that it claims to be."""

import pytest
import torch
from torch.distributions import Laplace, MultivariateNormal, Normal, kl_divergence
from voxfed.models.base import Batch, Condition, HasLikelihoodBound, Reconstructs
from voxfed.models.slice_vae import SliceVae, SliceVaeSpec, Stack
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.study.errors import PlanError

SHAPE = (8, 12, 7)


def make(seed: int = 0, **settings: object) -> SliceVae:
    torch.manual_seed(seed)
    small = {"shape": SHAPE, "channels": (8, 16), "groups": 4, "code": 3, **settings}
    family = SliceVae(SliceVaeSpec(**small))
    with torch.no_grad():
        for one in family.parameters():  # away from the zeros that a new family starts with
            one.add_(0.05 * torch.randn_like(one))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("axis", "shape"), [(0, (7, 8, 12)), (1, (8, 7, 12)), (2, (8, 12, 7))])
def test_shapes_and_determinism(axis: int, shape: tuple[int, int, int]) -> None:
    family, volumes = make(axis=axis, shape=shape), torch.rand(2, 1, *shape) * 2 - 1
    assert isinstance(family, Reconstructs)
    assert isinstance(family, HasLikelihoodBound)
    first = family.sample(2, generator=generator())
    torch.manual_seed(9)
    assert torch.equal(first, family.sample(2, generator=generator()))
    assert not torch.equal(first, family.sample(2, generator=generator(4)))
    assert first.shape == family.reconstruct(Batch(volumes)).shape == volumes.shape
    assert list(family.buffers()) == []


@pytest.mark.parametrize(("axis", "shape"), [(0, (7, 8, 12)), (1, (8, 7, 12)), (2, (8, 12, 7))])
def test_a_slice_is_coded_and_decoded_alone(axis: int, shape: tuple[int, int, int]) -> None:
    """Another slice of the same volume changes neither its code nor its picture."""
    family, volumes = make(axis=axis, shape=shape), torch.rand(2, 1, *shape)
    other = volumes.clone()
    other.select(2 + axis, 3).mul_(-1)
    codes = [family._encode(x).mean for x in (volumes, other)]
    same = torch.tensor([number != 3 for number in range(7)])
    assert torch.allclose(codes[0][:, same], codes[1][:, same], atol=1e-6)
    assert not torch.allclose(codes[0][:, 3], codes[1][:, 3])
    changed = [family.reconstruct(Batch(x)).movedim(2 + axis, 1) for x in (volumes, other)]
    assert torch.allclose(changed[0][:, same], changed[1][:, same], atol=1e-5)


def test_the_stack_is_a_gaussian() -> None:
    """Oracle: torch's multivariate normal, whose Cholesky factor is built by hand."""
    torch.manual_seed(0)
    stack = Stack(4, 2).double()
    with torch.no_grad():
        for weight in stack.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        codes = torch.randn(5, 4, 2).double()
        found, expected = stack.log_density(codes), torch.zeros(5).double()
        drawn = stack.draw(200_000, generator())
        for k in range(2):
            unit = torch.eye(4).double() - stack.before[k].tril(-1)
            factor = torch.linalg.inv(unit).tril() @ stack.log_deviation[:, k].exp().diag()
            normal = MultivariateNormal(stack.mean[:, k], scale_tril=factor)
            expected += normal.log_prob(codes[:, :, k])
            covariance = torch.cov(drawn[:, :, k].T)
            assert torch.allclose(covariance, normal.covariance_matrix, rtol=0.03, atol=0.03)
            assert torch.allclose(drawn[:, :, k].mean(0), normal.mean, atol=0.03)
    assert torch.allclose(found, expected)


def test_the_losses_are_the_textbooks() -> None:
    """Oracle: torch.distributions at the same draw of the codes."""
    family, volumes = make(kl_weight=0.7), torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        posterior = family._encode(volumes)
        noise = torch.randn(posterior.mean.shape, generator=generator())
        codes = posterior.mean + posterior.deviation * noise
        centre = family._decode(codes)
        nats = kl_divergence(Normal(*posterior), Normal(0.0, 1.0)).flatten(1).sum(1)
        density = Laplace(centre, 0.7).log_prob(volumes).flatten(1).sum(1)
        taken = Normal(*posterior).log_prob(codes).flatten(1).sum(1)
        stacked = family.stack.log_density(codes)
    batch = Batch(volumes)
    error = (centre - volumes).abs().mean((1, 2, 3, 4))
    expected = error + 0.7 * nats / volumes[0].numel()
    assert torch.allclose(family.slices_loss(batch, generator()), expected, rtol=1e-5)
    assert torch.allclose(family.stack_loss(batch, generator()), -stacked / (7 * 3), rtol=1e-5)
    bound = family.likelihood_bound(batch, generator())
    assert torch.allclose(bound, density + stacked - taken, rtol=1e-4)


@pytest.mark.parametrize("stage", ["slices", "stack"])
def test_a_patient_does_not_touch_anothers_loss(stage: str) -> None:
    family, pair = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    (step,) = family.steps(stage)
    assert step.reads_patients
    losses = [step.loss(Batch(x), generator()) for x in (pair, torch.stack([pair[0], -pair[1]]))]
    assert losses[0].shape == (2,)
    assert torch.allclose(losses[0][0], losses[1][0], rtol=1e-5)
    assert not torch.allclose(losses[0][1], losses[1][1], rtol=1e-5)
    weights = dict(family.named_parameters())
    losses[0].sum().backward()
    moved = {name for name, weight in weights.items() if weight.grad is not None}
    assert moved == set(step.parameters)
    assert {name.split(".")[0] for name in moved} == {stage}


def test_a_few_steps_make_volumes_of_slices() -> None:
    """Balls of one size: the drawn stacks are bright in the middle and dark at both ends."""
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 3, indexing="ij"))
    radii = torch.rand(8, 1, 1, 1) * 0.2 + 0.6
    volumes = ((axes.square().sum(0) < radii.square()).float() * 1.5 - 0.9).unsqueeze(1)
    family, draws = make(shape=(8, 8, 8)), generator()
    for stage, rate in (("slices", 5e-3), ("stack", 3e-2)):
        (step,) = family.steps(stage)
        own = [dict(family.named_parameters())[name] for name in step.parameters]
        optimiser = torch.optim.Adam(own, lr=rate)
        losses = []
        for _ in range(150):
            loss = step.loss(Batch(volumes), draws).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.75 * losses[0]
    assert (family.reconstruct(Batch(volumes)) - volumes).abs().mean() < 0.2
    drawn = family.sample(16, generator=draws).mean((0, 1, 2, 3))
    assert drawn[3:5].min() > drawn[[0, 7]].max() + 0.2


def test_the_state_is_its_tensors() -> None:
    first, second = make(), make(seed=1)
    load_into(second, from_bytes(to_bytes(tensors_of(first))))
    assert torch.equal(*[x.sample(1, generator=generator()) for x in (first, second)])


def test_wrong_conditions_settings_and_stages_are_refused() -> None:
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=Condition(label=torch.tensor([0])), generator=generator())
    with pytest.raises(PlanError, match="diffusion"):
        make().steps("diffusion")
    with pytest.raises(ValueError, match="multiples of 4"):
        make(shape=(8, 10, 7))
