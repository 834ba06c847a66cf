"""The alpha-WGAN-GP rebuilds volumes, holds codes to the prior, and reads patients in each turn."""

import pytest
import torch
from voxfed.models.alpha_wgan_gp import AlphaWganGp, AlphaWganGpSpec
from voxfed.models.base import Batch, Condition, HasCritic, Reconstructs
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.privacy.inspection import inspect_family
from voxfed.study.errors import PlanError

SHAPE = (8, 10, 9)
SMALL = {"channels": (16, 8), "critic_channels": (8, 16), "groups": 4, "code": 6}


def make(**settings: object) -> AlphaWganGp:
    torch.manual_seed(0)
    return AlphaWganGp(AlphaWganGpSpec(**{"shape": SHAPE, **SMALL, **settings}))


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def balls(n: int) -> torch.Tensor:
    """Return n bright balls of random radius on black, (n, 1, 8, 8, 8)."""
    radii = torch.linspace(1.5, 4.0, n).reshape(-1, 1, 1, 1, 1)
    line = torch.arange(8.0) - 3.5
    squares = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2
    return (squares.sqrt() < radii).float() * 2 - 1


def test_shapes_and_determinism() -> None:
    """The same generator gives the same bits, whatever the global state."""
    family = make()
    assert isinstance(family, HasCritic)
    assert isinstance(family, Reconstructs)
    volumes = torch.rand(2, 1, *SHAPE) * 2 - 1
    torch.manual_seed(1)
    first = [step.loss(Batch(volumes), generator()) for step in family.steps("adversarial")]
    sample = family.sample(2, generator=generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for step, loss in zip(family.steps("adversarial"), first, strict=True):
        assert loss.shape == (2,)
        assert torch.equal(loss, step.loss(Batch(volumes), generator()))
    assert torch.equal(sample, family.sample(2, generator=generator()))
    assert torch.equal(before, torch.get_rng_state())
    assert sample.shape == family.reconstruct(Batch(volumes)).shape == (2, 1, *SHAPE)
    assert sample.abs().max() <= 1
    assert family.criticise(Batch(volumes)).shape == (2,)


def test_the_privacy_engine_takes_it() -> None:
    """No loss mixes volumes and no tensor moves but by gradient."""
    inspect_family(make(), SHAPE)
    assert list(make().buffers()) == []


def test_every_turn_reads_patients() -> None:
    family = make(critic_turns=2)
    steps = family.steps("adversarial")
    assert [step.reads_patients for step in steps] == [True, True, True]
    assert [step.repeats for step in steps] == [1, 2, 2]
    names = [name for step in steps for name in step.parameters]
    assert sorted(names) == sorted(dict(family.named_parameters()))
    with pytest.raises(PlanError, match="unknown stage"):
        family.steps("diffusion")


def test_the_losses_are_the_papers() -> None:
    """Oracle: Kwon et al. 2019, section 2.2, by hand without the penalties."""
    family = make(penalty=0.0, reconstruction=3.0)
    volumes = torch.rand(2, 1, *SHAPE) * 2 - 1
    codes = torch.randn(2, 6, generator=generator())
    with torch.no_grad():
        found = family.encoder(volumes)
        rebuilt, drawn = family.generator(found), family.generator(codes)
        real, again, fake = (family.critic(x) for x in (volumes, rebuilt, drawn))
        prior, own = family.code_critic(codes), family.code_critic(found)
        error = (rebuilt - volumes).abs().mean((1, 2, 3, 4))
    batch = Batch(volumes)
    made = family.generator_loss(batch, generator())
    assert torch.allclose(made, -again - fake - own + 3.0 * error, atol=1e-5)
    judged = family.critic_loss(batch, generator())
    assert torch.allclose(judged, again + fake - 2 * real, atol=1e-5)
    assert torch.allclose(family.code_critic_loss(batch, generator()), own - prior, atol=1e-5)


def test_both_critics_are_penalised() -> None:
    """The penalty adds, and grows with its weight."""
    batch = Batch(torch.rand(2, 1, *SHAPE) * 2 - 1)
    for turn in ("critic_loss", "code_critic_loss"):
        free, light, heavy = (
            getattr(make(penalty=weight), turn)(batch, generator()) for weight in (0.0, 1.0, 3.0)
        )
        assert (light > free).all()
        assert torch.allclose(heavy - free, 3 * (light - free), rtol=1e-3)


def test_the_state_round_trips() -> None:
    family, other = make(), make()
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.1)
    load_into(other, from_bytes(to_bytes(tensors_of(family)), expected=tensors_of(other)))
    volumes = torch.rand(1, 1, *SHAPE)
    assert torch.equal(family.reconstruct(Batch(volumes)), other.reconstruct(Batch(volumes)))


def test_a_condition_and_wrong_settings_are_refused() -> None:
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=Condition(label=torch.zeros(1)), generator=generator())
    with pytest.raises(ValueError, match="does not divide channels"):
        make(groups=3)
    with pytest.raises(ValueError, match="sides of at least 16"):
        make(critic_channels=(4, 4, 4, 4))


def test_training_rebuilds_the_volumes() -> None:
    """A few steps explain most of what differs from the mean volume."""
    family, volumes = make(shape=(8, 8, 8), code_critic_width=16), balls(8)
    weights = dict(family.named_parameters())
    turns = [
        (step, torch.optim.Adam([weights[x] for x in step.parameters], 2e-3, betas=(0.5, 0.9)))
        for step in family.steps("adversarial")
    ]
    draws = generator()
    for _ in range(60):
        for step, optimiser in turns:
            optimiser.zero_grad()
            step.loss(Batch(volumes), draws).mean().backward()
            optimiser.step()
    error = (family.reconstruct(Batch(volumes)) - volumes).abs().mean()
    assert error < 0.7 * (volumes - volumes.mean(0)).abs().mean()
