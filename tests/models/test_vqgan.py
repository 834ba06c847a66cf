"""The VQ-GAN's two turns keep volumes apart and train only their own part."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, HasCritic, HasLikelihoodBound, Reconstructs
from voxfed.models.codes import CodesSpec
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.models.vqgan import CriticSpec, Vqgan, VqganSpec
from voxfed.privacy.gradients.recorder import Recorder
from voxfed.study.errors import PlanError

SHAPE = (8, 12, 16)


def make(seed: int = 0, weight: float = 0.5, shape: tuple[int, int, int] = SHAPE) -> Vqgan:
    torch.manual_seed(seed)
    codes = CodesSpec(channels=(8, 16), groups=4, entries=16, width=4)
    critic = CriticSpec(channels=8, groups=4, layers=1, weight=weight)
    family = Vqgan(VqganSpec(codes=codes, critic=critic, prior_channels=8, shape=shape))
    with torch.no_grad():
        for one in family.parameters():  # away from the zeros that a new family starts with
            one.add_(0.05 * torch.randn_like(one))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes_and_determinism() -> None:
    family, volumes = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    assert isinstance(family, Reconstructs)
    assert isinstance(family, HasCritic)
    assert isinstance(family, HasLikelihoodBound)
    first = family.sample(2, generator=generator())
    torch.manual_seed(9)
    assert torch.equal(first, family.sample(2, generator=generator()))
    assert not torch.equal(first, family.sample(2, generator=generator(4)))
    assert first.shape == family.reconstruct(Batch(volumes)).shape == volumes.shape
    assert family.criticise(Batch(volumes)).shape == (2,)
    assert family.likelihood_bound(Batch(volumes), generator()).shape == (2,)
    assert list(family.buffers()) == []


@pytest.mark.parametrize(("stage", "turn"), [("codes", 0), ("codes", 1), ("prior", 0)])
def test_a_patient_does_not_touch_anothers_loss(stage: str, turn: int) -> None:
    """And each turn, which reads patients, moves its own network alone."""
    family, pair = make(), torch.rand(2, 1, *SHAPE) * 2 - 1
    other = torch.stack([pair[0], -pair[1]])
    step = family.steps(stage)[turn]
    assert step.reads_patients
    losses = [step.loss(Batch(x), generator()) for x in (pair, other)]
    assert losses[0].shape == (2,)
    assert torch.allclose(losses[0][0], losses[1][0], rtol=1e-4)
    assert not torch.allclose(losses[0][1], losses[1][1], rtol=1e-4)
    weights = dict(family.named_parameters())
    own = [weights[name] for name in step.parameters]
    assert Recorder(family, own).agrees(step, Batch(pair))
    family.zero_grad()
    step.loss(Batch(pair), generator()).sum().backward()
    moved = {name for name, weight in weights.items() if weight.grad is not None}
    assert moved <= set(step.parameters)
    assert {name.split(".")[0] for name in moved} == {step.name}


def test_the_codes_are_judged_by_the_critic() -> None:
    """Oracle: without the verdict's weight the loss is the error alone; the rest is the score."""
    volumes = torch.rand(2, 1, *SHAPE) * 2 - 1
    family = make(weight=0.5)
    with torch.no_grad():
        decoded, plain = family.codes(volumes)
        score = family.critic(decoded).flatten(1).mean(1)
        found = family.steps("codes")[0].loss(Batch(volumes), generator())
        judged = family.steps("codes")[1].loss(Batch(volumes), generator())
        real, fake = (family.critic(x) for x in (volumes, decoded))
        hinge = (1 - real).clamp_min(0) + (1 + fake).clamp_min(0)
    assert torch.allclose(found, plain - 0.5 * score, rtol=1e-5)
    assert torch.allclose(judged, hinge.flatten(1).mean(1), rtol=1e-5)


def test_a_few_turns_reduce_the_losses() -> None:
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 3, indexing="ij"))
    radii = torch.rand(8, 1, 1, 1) * 0.4 + 0.4
    volumes = ((axes.square().sum(0) < radii.square()).float() * 1.5 - 0.9).unsqueeze(1)
    family = make(weight=0.02, shape=(8, 8, 8))
    weights = dict(family.named_parameters())
    turns = [
        (step, torch.optim.Adam([weights[x] for x in step.parameters], lr=3e-3))
        for step in family.steps("codes")
    ]
    before = (family.reconstruct(Batch(volumes)) - volumes).abs().mean()
    first = turns[1][0].loss(Batch(volumes), generator()).mean().item()
    for _ in range(40):
        for step, optimiser in turns:
            loss = step.loss(Batch(volumes), generator()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    after = (family.reconstruct(Batch(volumes)) - volumes).abs().mean()
    assert after < 0.5 * before
    assert loss.item() < first


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
        VqganSpec(shape=(8, 8, 10))
    with pytest.raises(ValueError, match="does not divide"):
        CriticSpec(channels=12, groups=8)
