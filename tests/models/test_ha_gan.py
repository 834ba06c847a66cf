"""HA-GAN paints a slab as it is within its volume, rebuilds volumes, and keeps patients apart."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, HasCritic, Reconstructs
from voxfed.models.ha_gan import HaGan, HaGanSpec
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.study.errors import PlanError

SHAPE = (16, 8, 12)
SMALL = {"channels": (16, 8), "critic_channels": (4, 8), "groups": 4, "code": 6, "slabs": 4}


def make(**settings: object) -> HaGan:
    torch.manual_seed(0)
    return HaGan(HaGanSpec(**{"shape": SHAPE, **SMALL, **settings}))


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volumes(n: int = 2) -> torch.Tensor:
    return torch.rand((n, 1, *SHAPE), generator=draws(1)) * 2 - 1


def test_every_turn_reads_and_keeps_patients_apart() -> None:
    family, first = make(), volumes()
    steps = family.steps("adversarial")
    names = [name for step in steps for name in step.parameters]
    assert sorted(names) == sorted(dict(family.named_parameters()))
    for step in steps:
        assert step.reads_patients
        losses = step.loss(Batch(first), draws())
        assert losses.shape == (2,)
        other = first.clone()
        other[1] *= -1
        second = step.loss(Batch(other), draws())
        assert losses[0].item() == pytest.approx(second[0].item(), rel=1e-4)
        assert losses[1].item() != pytest.approx(second[1].item(), rel=1e-4)
    with pytest.raises(PlanError, match="unknown stage"):
        family.steps("autoencoder")


@pytest.mark.parametrize("scale", [2, 4])
def test_a_slab_is_painted_as_within_its_volume(scale: int) -> None:
    """Voxels further from a slab's ends than the kernels reach are those of the whole volume."""
    family = make(shape=(64, 8, 8), scale=scale, slabs=2, critic_channels=(4,)).double()
    features = torch.randn(1, 8, 64 // scale, 8 // scale, 8 // scale, dtype=torch.float64)
    starts = torch.tensor([8 // scale])
    whole, slab = family.high(features), family.high(family._cut(features, starts))
    assert slab.shape[2] == 32
    torch.testing.assert_close(slab[:, :, 12:20], whole[:, :, 20:28], rtol=1e-9, atol=1e-9)
    volume = torch.randn(1, 1, 64, 8, 8, dtype=torch.float64)
    coded, cut = family.encoder(volume), family.encoder(family._cut(volume, starts, scale))
    edge, first = 12 // scale, 8 // scale
    torch.testing.assert_close(
        cut[:, :, edge:-edge], coded[:, :, first + edge : first + 32 // scale - edge]
    )


def test_slabs_start_anywhere_and_lie_within() -> None:
    """Each grid is cut at its own start, and features at the voxels that they stand for."""
    family = make()
    starts, places = family._starts(200, draws())
    assert sorted(set(starts.tolist())) == list(range(7))  # 8 low voxels deep, slabs of 2
    assert places.shape == (200, 1)
    assert -1 <= places.min() < places.max() < 1
    ramp = torch.arange(16.0).reshape(1, 1, 16, 1, 1).expand(2, 1, *SHAPE)
    cut = family._cut(ramp, torch.tensor([0, 5]), 2)
    assert cut[:, 0, :, 0, 0].tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]


def test_critics_see_low_volumes_and_told_slabs() -> None:
    """Oracle: the score of a volume by hand, from block means and its four slabs."""
    family, real = make(), volumes()
    assert isinstance(family, HasCritic)
    low = real.reshape(2, 1, 8, 2, 4, 2, 6, 2).mean((3, 5, 7))
    expected = family.low_critic(low)
    for number, place in enumerate((-1.0, -0.5, 0.0, 0.5)):
        slab = real[:, :, 4 * number : 4 * number + 4]
        expected = expected + family.slab_critic(slab, torch.full((2, 1), place)) / 4
    assert torch.allclose(family.criticise(Batch(real)), expected, atol=1e-6)


def test_the_reconstructions_are_the_papers() -> None:
    """Oracle: the loss grows by the three mean absolute errors times their weight."""
    batch = Batch(volumes())
    free, weighed = make(reconstruction=0.0), make(reconstruction=3.0)
    starts, _ = free._starts(2, draws())
    with torch.no_grad():
        slab = free._cut(batch.volumes, starts, 2)
        features = torch.cat([free.encoder(part) for part in batch.volumes.chunk(4, 2)], 2)
        again = free.anatomy(free.code_encoder(features))
        low = torch.nn.functional.avg_pool3d(batch.volumes, 2)
        pairs = [
            (free.high(free.encoder(slab)), slab),
            (free.low(again), low),
            (free.high(free._cut(again, starts)), slab),
        ]
        errors = sum((a - b).abs().mean((1, 2, 3, 4)) for a, b in pairs)
    found = weighed.generator_loss(batch, draws()) - free.generator_loss(batch, draws())
    assert torch.allclose(found, 3.0 * errors, atol=1e-5)


def test_the_game_is_the_papers() -> None:
    """Oracle: Sun et al. 2022, both critics' verdicts by hand, without the reconstructions."""
    family, batch, draw = make(reconstruction=0.0), Batch(volumes()), draws()
    starts, places = family._starts(2, draw)
    anatomy = family.anatomy(torch.randn(2, 6, generator=draw))
    low = family.low(anatomy)
    slab = family.high(torch.stack([a[:, s : s + 2] for a, s in zip(anatomy, starts, strict=True)]))
    real_low = batch.volumes.reshape(2, 1, 8, 2, 4, 2, 6, 2).mean((3, 5, 7))
    real_slab = torch.stack(
        [x[:, 2 * s : 2 * s + 4] for x, s in zip(batch.volumes, starts, strict=True)]
    )
    fakes = family.low_critic(low), family.slab_critic(slab, places)
    reals = family.low_critic(real_low), family.slab_critic(real_slab, places)
    deceived = -sum(fake.sigmoid().log() for fake in fakes)
    judged = -sum(real.sigmoid().log() for real in reals)
    judged = judged - sum((1 - fake.sigmoid()).log() for fake in fakes)
    torch.testing.assert_close(family.generator_loss(batch, draws()), deceived)
    torch.testing.assert_close(family.critics_loss(batch, draws()), judged)


def test_sampling_is_deterministic_and_the_state_round_trips() -> None:
    family, other = make(), make()
    assert list(family.buffers()) == []
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.05)
    load_into(other, from_bytes(to_bytes(tensors_of(family)), expected=tensors_of(other)))
    sample = family.sample(2, generator=draws())
    assert sample.shape == (2, 1, *SHAPE)
    assert sample.abs().max() <= 1
    assert torch.equal(sample, other.sample(2, generator=draws()))
    assert torch.equal(family.criticise(Batch(sample)), other.criticise(Batch(sample)))
    with pytest.raises(PlanError, match="no condition"):
        family.sample(1, condition=Condition(label=torch.zeros(1)), generator=draws())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": (16, 8, 10)}, "multiples of 4"),
        ({"shape": (20, 8, 12)}, "one of 8"),
        ({"critic_channels": (4, 4, 4)}, "at least 8"),
        ({"groups": 3}, "does not divide"),
    ],
)
def test_wrong_settings_name_the_remedy(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**settings)


def test_training_rebuilds_the_volumes() -> None:
    """A few turns explain most of what differs from the mean volume."""
    family = make()
    assert isinstance(family, Reconstructs)
    line = [torch.linspace(-1, 1, side) for side in SHAPE]
    squares = line[0][:, None, None] ** 2 + line[1][:, None] ** 2 + line[2] ** 2
    radii = torch.linspace(0.3, 1.2, 8).reshape(-1, 1, 1, 1, 1)
    real = (squares.sqrt() < radii).float() * 2 - 1
    weights = dict(family.named_parameters())
    turns = [
        (step, torch.optim.Adam([weights[x] for x in step.parameters], 1e-3, betas=(0.5, 0.9)))
        for step in family.steps("adversarial")
    ]
    generator = draws()
    for _ in range(60):
        for step, optimiser in turns:
            optimiser.zero_grad()
            step.loss(Batch(real), generator).mean().backward()
            optimiser.step()
    error = (family.reconstruct(Batch(real)) - real).abs().mean()
    assert error < 0.5 * (real - real.mean(0)).abs().mean()
