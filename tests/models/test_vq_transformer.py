"""The transformer's probabilities add up to one, its draws are from them, and it heeds a class."""

import itertools

import pytest
import torch
from voxfed.models.base import Batch, Condition, HasLikelihoodBound, Reconstructs
from voxfed.models.codes import CodesSpec
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.models.transformer_codes import TransformerCodes
from voxfed.models.vq_transformer import VqTransformer, VqTransformerSpec
from voxfed.models.vqgan import CriticSpec
from voxfed.privacy.gradients.recorder import Recorder
from voxfed.study.errors import PlanError

SHAPE = (8, 12, 16)


def make(seed: int = 0, **settings: object) -> VqTransformer:
    torch.manual_seed(seed)
    parts = {
        "codes": CodesSpec(channels=(8, 16), groups=4, entries=16, width=4),
        "critic": CriticSpec(channels=8, groups=4, layers=1),
        "width": 16,
        "heads": 2,
        "depth": 2,
        "shape": SHAPE,
        **settings,
    }
    family = VqTransformer(VqTransformerSpec(**parts))
    with torch.no_grad():
        for one in family.parameters():  # away from the zeros that a new family starts with
            one.add_(0.05 * torch.randn_like(one))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(classes: int = 1) -> TransformerCodes:
    torch.manual_seed(0)
    return TransformerCodes((1, 2, 2), 3, classes, width=8, depth=2, heads=2)


def test_the_probabilities_of_all_grids_add_up_to_one() -> None:
    """Oracle: every grid of four codes; and draws come as often as they are likely."""
    codes = tiny()
    with torch.no_grad():
        codes.network.to_logits.weight.mul_(3)
        every = torch.tensor(list(itertools.product(range(3), repeat=4)))
        likely = codes(every.reshape(-1, 1, 2, 2), torch.zeros(81, dtype=torch.int64)).exp()
    assert torch.isclose(likely.sum(), torch.tensor(1.0), atol=1e-5)
    drawn = codes.draw(torch.zeros(4000, dtype=torch.int64), generator()).flatten(1)
    share = (drawn[:, None] == every).all(2).float().mean(0)
    assert torch.isclose(share.sum(), torch.tensor(1.0))
    assert (share - likely).abs().max() < 0.03


def test_no_code_sees_itself_or_a_later_one() -> None:
    """Exact, by autograd: the logits of a code depend on earlier tokens alone."""
    codes = tiny()
    embedded: list[torch.Tensor] = []
    handle = codes.network.token_embeddings.register_forward_hook(
        lambda _module, _inputs, output: embedded.append(output)
    )
    logits = codes.network(torch.tensor([[3, 0, 1, 2]]))
    handle.remove()
    for place in range(4):
        (seen,) = torch.autograd.grad(logits[0, place].sum(), embedded[0], retain_graph=True)
        assert (seen[0].abs().sum(1) > 0).tolist() == [x <= place for x in range(4)]


@pytest.mark.parametrize("first_stage", ["vqvae", "vqgan"])
def test_shapes_and_determinism(first_stage: str) -> None:
    family, volumes = make(first_stage=first_stage), torch.rand(2, 1, *SHAPE) * 2 - 1
    assert isinstance(family, Reconstructs)
    assert isinstance(family, HasLikelihoodBound)
    first = family.sample(2, generator=generator())
    torch.manual_seed(9)
    assert torch.equal(first, family.sample(2, generator=generator()))
    assert not torch.equal(first, family.sample(2, generator=generator(4)))
    assert first.shape == family.reconstruct(Batch(volumes)).shape == volumes.shape
    assert family.likelihood_bound(Batch(volumes), generator()).shape == (2,)
    assert list(family.buffers()) == []
    turns = [step.name for stage in family.stages for step in family.steps(stage)]
    critic = ["critic"] if first_stage == "vqgan" else []
    assert turns == ["codes", *critic, "transformer"]


@pytest.mark.parametrize("stage", ["codes", "transformer"])
def test_a_patient_does_not_touch_anothers_loss(stage: str) -> None:
    family, pair = make(condition="class"), torch.rand(2, 1, *SHAPE) * 2 - 1
    label = torch.tensor([0, 1])
    batches = [
        Batch(pair, Condition(label=label)),
        Batch(torch.stack([pair[0], -pair[1]]), Condition(label=label * 0)),
    ]
    (step,) = family.steps(stage)
    assert step.reads_patients
    losses = [step.loss(batch, generator()) for batch in batches]
    assert losses[0].shape == (2,)
    assert torch.allclose(losses[0][0], losses[1][0], rtol=1e-4)
    assert not torch.allclose(losses[0][1], losses[1][1], rtol=1e-4)
    weights = dict(family.named_parameters())
    own = [weights[name] for name in step.parameters]
    assert Recorder(family, own).agrees(step, batches[0])
    family.zero_grad()
    step.loss(batches[0], generator()).sum().backward()
    moved = {name for name, weight in weights.items() if weight.grad is not None}
    assert moved == set(step.parameters)


def test_it_learns_which_codes_a_class_has() -> None:
    """A few steps on bright and dark balls: the label then tells them apart."""
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 3, indexing="ij"))
    ball = (axes.square().sum(0) < 0.5).float()
    label = torch.tensor([0, 1] * 4)
    shades = torch.tensor([0.4, 1.6])[label, None, None, None]
    volumes = (ball * shades - 0.9).unsqueeze(1) + 0.02 * torch.randn(8, 1, 8, 8, 8)
    batch = Batch(volumes, Condition(label=label))
    family = make(condition="class", shape=(8, 8, 8))
    for stage in family.stages:
        (step,) = family.steps(stage)
        own = [dict(family.named_parameters())[name] for name in step.parameters]
        optimiser = torch.optim.Adam(own, lr=5e-3)
        losses = []
        for _ in range(80):
            loss = step.loss(batch, generator()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]
    ask = Condition(label=torch.tensor([0] * 8 + [1] * 8))
    drawn = family.sample(16, condition=ask, generator=generator())[:, 0]
    shade = (drawn * ball).flatten(1).sum(1) / ball.sum()
    assert shade[8:].mean() - shade[:8].mean() > 0.5


def test_the_state_is_its_tensors() -> None:
    first, second = make(first_stage="vqgan"), make(seed=1, first_stage="vqgan")
    load_into(second, from_bytes(to_bytes(tensors_of(first))))
    assert torch.equal(*[x.sample(1, generator=generator()) for x in (first, second)])


def test_wrong_conditions_settings_and_stages_are_refused() -> None:
    for condition in (Condition(), Condition(label=torch.tensor([2]))):
        with pytest.raises(PlanError):
            make(condition="class").sample(1, condition=condition, generator=generator())
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=Condition(label=torch.tensor([0])), generator=generator())
    with pytest.raises(PlanError, match="diffusion"):
        make().steps("diffusion")
    with pytest.raises(ValueError, match="multiple of the 3 heads"):
        VqTransformerSpec(shape=(16, 16, 16), heads=3, width=16)
    with pytest.raises(ValueError, match="add a level"):
        VqTransformerSpec(shape=(128, 128, 128), codes=CodesSpec(channels=(16, 32)))
