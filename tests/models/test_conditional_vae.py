"""The conditional VAE does as it is told, keeps volumes apart, and its bound is the textbook's."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from voxfed.models.base import Batch, Condition, HasLikelihoodBound
from voxfed.models.conditional_vae import ConditionalVae, ConditionalVaeSpec
from voxfed.models.guide import nats_from
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.models.vae import Gaussian
from voxfed.privacy.gradients.recorder import Recorder
from voxfed.study.errors import PlanError

SHAPE = (8, 12, 16)
KINDS = ("class", "attributes", "mask", "source")


def make(kind: str, **settings: object) -> ConditionalVae:
    torch.manual_seed(0)
    small = {"channels": (8, 16), "groups": 4, "latent_channels": 2, "code": 5}
    known = {"shape": SHAPE, "classes": 3, "attributes": 2, **small, **settings}
    family = ConditionalVae(ConditionalVaeSpec(condition=kind, **known))
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new family starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def told(kind: str, n: int) -> Condition:
    torch.manual_seed(1)
    if kind == "class":
        return Condition(label=torch.arange(n) % 3)
    if kind == "attributes":
        return Condition(attributes=torch.rand(n, 2) * 2 - 1)
    if kind == "mask":
        return Condition(mask=torch.randint(3, (n, 1, *SHAPE)))
    return Condition(source=torch.rand(n, 1, *SHAPE) * 2 - 1)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_determinism(kind: str) -> None:
    family, condition = make(kind), told(kind, 2)
    volumes = torch.rand(2, 1, *SHAPE) * 2 - 1
    first = family.sample(2, condition=condition, generator=generator())
    torch.manual_seed(9)
    assert torch.equal(first, family.sample(2, condition=condition, generator=generator()))
    assert not torch.equal(first, family.sample(2, condition=condition, generator=generator(4)))
    assert first.shape == volumes.shape
    assert first.abs().max() <= 1
    assert family.reconstruct(Batch(volumes, condition)).shape == volumes.shape
    assert family.loss(Batch(volumes, condition), generator()).shape == (2,)
    assert list(family.buffers()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_condition_changes_the_sample(kind: str) -> None:
    family, condition = make(kind), told(kind, 2)
    turned = Condition(
        *(None if part is None else part.flip(0) for part in vars(condition).values())
    )
    first = family.sample(2, condition=condition, generator=generator())
    assert not torch.equal(first, family.sample(2, condition=turned, generator=generator()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_patient_does_not_touch_anothers_loss(kind: str) -> None:
    """Neither by volume nor by condition; and a wide recorder gets each gradient right."""
    family, condition = make(kind), told(kind, 2)
    pair = torch.rand(2, 1, *SHAPE).requires_grad_()
    family.loss(Batch(pair, condition), generator())[0].backward()
    assert pair.grad is not None
    assert pair.grad[0].abs().max() > 0
    assert pair.grad[1].abs().max() == 0
    (step,) = family.steps("autoencoder")
    assert step.reads_patients
    weights = [dict(family.named_parameters())[name] for name in step.parameters]
    assert Recorder(family, weights).agrees(step, Batch(pair.detach(), condition))


@pytest.mark.parametrize("kind", ["class", "source"])
def test_loss_is_the_error_plus_the_kl_from_the_conditional_prior(kind: str) -> None:
    """Oracle: torch.distributions; the bound is the Laplace density's at the same draw."""
    family, condition = make(kind, kl_weight=0.7), told(kind, 2)
    volumes = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        known = family._told(condition, 2)
        mean, prior = family._guided(known)
        posterior = family._encode(volumes, mean, known)
        drawn = generator()
        latents = [
            part.mean + part.deviation * torch.randn(part.mean.shape, generator=drawn)
            for part in posterior
        ]
        centre = mean + family._decode(*latents)
        nats = sum(
            kl_divergence(Normal(*one), Normal(*other)).flatten(1).sum(1)
            for one, other in zip(posterior, prior, strict=True)
        )
        density = torch.distributions.Laplace(centre, 0.7).log_prob(volumes).flatten(1).sum(1)
    expected = (centre - volumes).abs().mean((1, 2, 3, 4)) + 0.7 * nats / volumes[0].numel()
    batch = Batch(volumes, condition)
    assert torch.allclose(family.loss(batch, generator()), expected, rtol=1e-5)
    assert isinstance(family, HasLikelihoodBound)
    bound = family.likelihood_bound(batch, generator())
    assert torch.allclose(bound, density - nats, rtol=1e-4)


def test_a_gaussian_costs_no_nats_from_itself() -> None:
    one = Gaussian(torch.rand(2, 4), torch.rand(2, 4) + 0.1)
    assert nats_from(one, one).abs().max() < 1e-6


def test_it_learns_what_a_class_looks_like() -> None:
    """A few steps tell bright spheres from dark ones, which the label alone can."""
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 3, indexing="ij"))
    ball = (axes.square().sum(0) < 0.5).float()
    shades = torch.tensor([-0.3, 0.8])
    label = torch.tensor([0, 1] * 4)
    volumes = (ball * (shades[label, None, None, None] + 1) - 1).unsqueeze(1)
    batch = Batch(volumes + 0.02 * torch.randn_like(volumes), Condition(label=label))
    family = make("class", shape=(8, 8, 8), classes=2)
    optimiser = torch.optim.Adam(family.parameters(), lr=3e-3)
    draws = generator()
    losses = []
    for _ in range(60):
        loss = family.loss(batch, draws).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    ask = Condition(label=torch.tensor([0, 1]))
    drawn = family.sample(2, condition=ask, generator=draws)[:, 0]
    found = (drawn * ball).flatten(1).sum(1) / ball.sum()
    assert found[1] - found[0] > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_its_tensors(kind: str) -> None:
    first, second = make(kind), make(kind)
    with torch.no_grad():
        for weight in second.parameters():
            weight.zero_()
    load_into(second, from_bytes(to_bytes(tensors_of(first))))
    samples = [x.sample(1, condition=told(kind, 1), generator=generator()) for x in (first, second)]
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        ("class", Condition()),
        ("class", Condition(label=torch.tensor([0, 3]))),
        ("class", Condition(label=torch.tensor([0]))),
        ("class", Condition(label=torch.tensor([0, 1]), attributes=torch.zeros(2, 1))),
        ("attributes", Condition(attributes=torch.zeros(2, 3))),
        ("mask", Condition(mask=torch.full((2, 1, *SHAPE), 3))),
        ("mask", Condition(mask=torch.full((2, 1, *SHAPE), -1))),
        ("mask", Condition(mask=torch.zeros(2, 1, 8, 8, 8, dtype=torch.int64))),
        ("source", Condition(source=torch.zeros(1, 1, *SHAPE))),
        ("source", Condition(label=torch.tensor([0, 1]))),
    ],
)
def test_a_wrong_condition_is_refused(kind: str, condition: Condition) -> None:
    with pytest.raises(PlanError):
        make(kind).sample(2, condition=condition, generator=generator())


def test_wrong_settings_and_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        ConditionalVaeSpec(shape=(8, 8, 10), channels=(8, 16))
    with pytest.raises(PlanError, match="diffusion"):
        make("class").steps("diffusion")
