"""Translation: any shape comes out, the losses are the papers', pairs stay apart, and it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxfed.models.base import Batch, Condition
from voxfed.models.cycle_gan import CycleGan, CycleGanSpec
from voxfed.models.fitting import fit
from voxfed.models.pix2pix import Pix2Pix, Pix2PixSpec
from voxfed.models.translator import Translator
from voxfed.study.errors import PlanError

SHAPE = (8, 8, 12)
SMALL = {"channels": (8, 16), "critic_channels": 8, "critic_layers": 1, "groups": 4}
FAMILIES = {"pix2pix": (Pix2Pix, Pix2PixSpec), "cycle-gan": (CycleGan, CycleGanSpec)}


def make(name: str, **settings: object) -> Pix2Pix | CycleGan:
    torch.manual_seed(0)
    family, spec = FAMILIES[name]
    return family(spec(**{"shape": SHAPE, **SMALL, **settings}))


def pairs(n: int) -> Batch:
    """Sources, and targets that are their negatives."""
    source = torch.rand((n, 1, *SHAPE), generator=draws(1)) * 2 - 1
    return Batch(-source, Condition(source=source))


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(scores: Tensor, wanted: float) -> Tensor:
    """Half the mean squared distance of each volume's patch scores to one value."""
    return (scores - wanted).square().flatten(1).mean(1) / 2


def distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs().mean((1, 2, 3, 4))


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 6, 5), (7, 16, 3)])
def test_any_shape_comes_out_in_range(shape: tuple[int, int, int]) -> None:
    """Volume by volume, and what fills up the ends is cut again."""
    translator = Translator(2, (8, 16, 16), 4)
    volumes = torch.rand(2, 2, *shape) * 2 - 1
    found = translator(volumes)
    assert found.shape == (2, 1, *shape)
    assert found.abs().max() < 1
    assert torch.allclose(translator(volumes[1:]), found[1:], atol=1e-5)  # float32
    assert list(translator.buffers()) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_reads_and_keeps_pairs_apart(name: str) -> None:
    """Neither the volume nor the source of one patient enters another's loss."""
    family, batch, other = make(name), pairs(2), pairs(2)
    other.volumes[1] = 1.0
    assert other.condition.source is not None
    other.condition.source[1] = 0.5
    for step in family.steps("adversarial"):
        assert step.reads_patients
        first, second = step.loss(batch, draws()), step.loss(other, draws())
        assert first.shape == (2,)
        assert first[0].item() == pytest.approx(second[0].item(), rel=1e-4)
        assert first[1].item() != pytest.approx(second[1].item(), rel=1e-4)
    with pytest.raises(PlanError, match="unknown stage"):
        family.steps("diffusion")


def test_the_losses_of_pix2pix_are_the_papers() -> None:
    """Oracle: scores of pairs and the mean absolute error, by hand; a mask is a plane a class."""
    family = make("pix2pix", condition="mask", classes=3, reconstruction=7.0)
    mask = torch.randint(3, (2, 1, *SHAPE))
    batch = Batch(pairs(2).volumes, Condition(mask=mask))
    with torch.no_grad():
        planes = nn.functional.one_hot(mask[:, 0], 3).movedim(-1, 1).float()
        made = family.translator(planes)
        fake, real = (family.critic(torch.cat([planes, x], 1))[-1] for x in (made, batch.volumes))
        expected = squares(fake, 1.0) + 7.0 * distance(made, batch.volumes)
        judged = squares(real, 1.0) + squares(fake, 0.0)
        assert torch.allclose(family.translator_loss(batch, draws()), expected, rtol=1e-5)
        assert torch.allclose(family.critic_loss(batch, draws()), judged, rtol=1e-5)
    assert torch.allclose(family.reconstruct(batch), made, atol=1e-5)


@pytest.mark.parametrize("identity", [0.0, 2.0])
def test_the_losses_of_cycle_gan_are_the_papers(identity: float) -> None:
    """Oracle: both ways' scores, both cycles and both identities, by hand."""
    family = make("cycle-gan", cycle=3.0, identity=identity)
    batch, there, back = pairs(2), family.there, family.back
    volumes, source = batch.volumes, batch.condition.source
    with torch.no_grad():
        made, made_source = there(source), back(volumes)
        fake, fake_source = family.critic(made)[-1], family.source_critic(made_source)[-1]
        expected = squares(fake, 1.0) + squares(fake_source, 1.0)
        cycles = distance(back(made), source) + distance(there(made_source), volumes)
        same = distance(there(volumes), volumes) + distance(back(source), source)
        expected = expected + 3.0 * cycles + identity * same
        judged = squares(family.critic(volumes)[-1], 1.0) + squares(fake, 0.0)
        judged = judged + squares(family.source_critic(source)[-1], 1.0) + squares(fake_source, 0.0)
        assert torch.allclose(family.translators_loss(batch, draws()), expected, rtol=1e-5)
        assert torch.allclose(family.critics_loss(batch, draws()), judged, rtol=1e-5)
    assert torch.allclose(family.reconstruct(batch), there(made_source), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_needs_pairs_to_train(name: str) -> None:
    """Volumes without a source are one clear error."""
    settings = {"steps": 1, "batch": 2, "learning_rate": 1e-3}
    with pytest.raises(PlanError, match="takes a condition"):
        fit(make(name), "adversarial", Batch(pairs(2).volumes), generator=draws(), **settings)


def test_pix2pix_learns_the_translation() -> None:
    """A few turns of the translator bring answers nearer to the targets."""
    family, batch = make("pix2pix"), pairs(4)
    step = next(s for s in family.steps("adversarial") if s.name == "translator")
    weights = dict(family.named_parameters())
    optimiser = torch.optim.Adam([weights[name] for name in step.parameters], lr=3e-3)

    def error() -> float:
        made = family.sample(4, condition=batch.condition, generator=draws())
        return float(distance(made, batch.volumes).mean())

    before = error()
    for _ in range(40):
        optimiser.zero_grad()
        step.loss(batch, draws()).mean().backward()
        optimiser.step()
    assert error() < 0.8 * before
