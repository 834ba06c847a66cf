"""The WGAN-GP's critic alone reads patients, and its penalty is the paper's."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, HasCritic
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.models.wgan_gp import WganGp, WganGpSpec
from voxfed.privacy.inspection import inspect_family
from voxfed.study.errors import PlanError

SHAPE = (8, 10, 9)
SMALL = {"channels": (16, 8), "critic_channels": (8, 16), "groups": 4, "code": 6, "generated": 3}
LOSSES = ["wasserstein", "hinge", "least-squares"]
LABEL = Condition(label=torch.tensor([0, 2]))
ATTRIBUTES = Condition(attributes=torch.tensor([[0.5, -1.0], [0.0, 1.0]]))


def make(**settings: object) -> WganGp:
    torch.manual_seed(0)
    return WganGp(WganGpSpec(**{"shape": SHAPE, **SMALL, **settings}))


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def balls(n: int) -> torch.Tensor:
    """Return n bright balls of random radius on black, (n, 1, 8, 8, 8)."""
    radii = torch.linspace(1.5, 4.0, n).reshape(-1, 1, 1, 1, 1)
    line = torch.arange(8.0) - 3.5
    squares = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2
    return (squares.sqrt() < radii).float() * 2 - 1


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_and_determinism(loss: str) -> None:
    """The same generator gives the same bits, whatever the global state."""
    family = make(loss=loss)
    assert isinstance(family, HasCritic)
    batch = Batch(torch.rand(2, 1, *SHAPE) * 2 - 1)
    critic, made = family.steps("adversarial")
    torch.manual_seed(1)
    first = critic.loss(batch, generator()), made.loss(None, generator())
    sample = family.sample(2, generator=generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first[0], critic.loss(batch, generator()))
    assert torch.equal(first[1], made.loss(None, generator()))
    assert torch.equal(sample, family.sample(2, generator=generator()))
    assert torch.equal(before, torch.get_rng_state())
    assert (first[0].shape, first[1].shape) == ((2,), (3,))
    assert sample.shape == (2, 1, *SHAPE)
    assert sample.abs().max() <= 1
    assert family.criticise(batch).shape == (2,)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_privacy_engine_takes_it(loss: str) -> None:
    """No loss mixes volumes and no tensor moves but by gradient."""
    family = make(loss=loss)
    inspect_family(family, SHAPE)
    assert list(family.buffers()) == []


def test_only_the_critic_reads_patients() -> None:
    family = make(critic_turns=3)
    critic, made = family.steps("adversarial")
    assert (critic.reads_patients, critic.repeats) == (True, 3)
    assert (made.reads_patients, made.repeats) == (False, 1)
    assert {*critic.parameters, *made.parameters} == set(dict(family.named_parameters()))
    assert not set(critic.parameters) & set(made.parameters)
    with pytest.raises(PlanError, match="unknown stage"):
        family.steps("autoencoder")


def test_the_critics_loss_is_the_papers() -> None:
    """Oracle: equation 3 of Gulrajani et al. 2017, by hand, one volume at a time."""
    family = make(penalty=7.0)
    volumes = torch.rand(2, 1, *SHAPE) * 2 - 1
    draws = generator()
    fakes = family.generator(torch.randn(2, 6, generator=draws)).detach()
    shares = torch.rand(2, generator=draws)
    expected = []
    for real, fake, share in zip(volumes, fakes, shares, strict=True):
        point = (real + share * (fake - real))[None].requires_grad_()
        (slope,) = torch.autograd.grad(family.critic(point)[0], point)
        gap = family.critic(fake[None]) - family.critic(real[None])
        expected.append(gap + 7.0 * (slope.norm() - 1) ** 2)
    found = family.critic_loss(Batch(volumes), generator())
    assert torch.allclose(found, torch.cat(expected), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "condition"),
    [
        ({"condition": "class", "classes": 3}, LABEL),
        ({"condition": "attributes", "attributes": 2}, ATTRIBUTES),
    ],
)
def test_a_condition_reaches_generator_and_critic(
    settings: dict[str, object], condition: Condition
) -> None:
    family = make(**settings)
    volumes = torch.rand(1, 1, *SHAPE).expand(2, -1, -1, -1, -1)
    scores = family.criticise(Batch(volumes, condition))
    assert scores[0] != scores[1]
    first = family.sample(2, condition=condition, generator=generator())
    swapped = Condition(**{name: x.flip(0) for name, x in vars(condition).items() if x is not None})
    assert not torch.allclose(first, family.sample(2, condition=swapped, generator=generator()))
    assert family.generator_loss(None, generator()).shape == (3,)
    assert family.critic_loss(Batch(volumes, condition), generator()).shape == (2,)
    with pytest.raises(PlanError):
        family.sample(2, generator=generator())
    with pytest.raises(PlanError):
        make().sample(2, condition=condition, generator=generator())


def test_the_state_round_trips() -> None:
    family, other = make(loss="hinge"), make(loss="hinge")
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.1)
    load_into(other, from_bytes(to_bytes(tensors_of(family)), expected=tensors_of(other)))
    batch = Batch(torch.rand(1, 1, *SHAPE))
    assert torch.equal(family.criticise(batch), other.criticise(batch))
    first, second = (x.sample(1, generator=generator()) for x in (family, other))
    assert torch.equal(first, second)


def test_wrong_settings_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="does not divide channels"):
        make(groups=3)
    with pytest.raises(ValueError, match="sides of at least 16"):
        make(critic_channels=(4, 4, 4, 4))


@pytest.mark.parametrize("loss", LOSSES)
def test_training_brings_samples_near_the_volumes(loss: str) -> None:
    """A few steps bring the distance to the nearest real volume well below the first one."""
    family, volumes = make(shape=(8, 8, 8), loss=loss, critic_turns=2), balls(8)

    def distance() -> float:
        made = family.sample(8, generator=generator())
        return float(torch.cdist(made.flatten(1), volumes.flatten(1)).min(1).values.mean())

    weights = dict(family.named_parameters())
    turns = [
        (step, torch.optim.Adam([weights[x] for x in step.parameters], 2e-3, betas=(0.5, 0.9)))
        for step in family.steps("adversarial")
    ]
    before, draws = distance(), generator()
    for _ in range(80):
        for step, optimiser in turns:
            for _ in range(step.repeats):
                batch = Batch(volumes) if step.reads_patients else None
                optimiser.zero_grad()
                step.loss(batch, draws).mean().backward()
                optimiser.step()
    assert distance() < 0.75 * before
