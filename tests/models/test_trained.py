"""What is frozen stays as it was to the bit, and adapters change nothing until they learn."""

import copy

import pytest
import torch
from families import NAMES, tiny, told
from torch import Tensor, nn
from voxfed.models.base import Batch
from voxfed.models.diffusion import Diffusion, DiffusionSpec
from voxfed.models.trained import (
    Adaptable,
    Adapted,
    add_adapters,
    freeze_the_rest,
    trained_parameters,
)
from voxfed.models.vae import Vae, VaeSpec
from voxfed.study.errors import PlanError
from voxfed.study.plan import Trained


def make() -> Vae:
    torch.manual_seed(0)
    family = Vae(VaeSpec(shape=(8, 8, 8), patch=2, channels=(8, 16), groups=4, code=3))
    for weight in family.parameters():
        nn.init.normal_(weight, std=0.1)
    return family


@pytest.mark.parametrize("part", ["all", "normalisation-and-biases", "adapters"])
def test_a_step_moves_the_part_and_nothing_else(part: Trained) -> None:
    family = make()
    if part == "adapters":
        add_adapters(family)
    names = freeze_the_rest(family, part)
    before = {name: weight.detach().clone() for name, weight in family.named_parameters()}
    (step,) = family.steps("autoencoder")
    assert list(step.parameters) == names
    weights = dict(family.named_parameters())
    optimiser = torch.optim.Adam([weights[name] for name in names], lr=0.01)
    draws = torch.Generator().manual_seed(0)
    for _ in range(2):  # an adapter's first half moves only once the second is no longer zero
        optimiser.zero_grad()
        step.loss(Batch(torch.rand(2, 1, 8, 8, 8)), draws).sum().backward()
        optimiser.step()
    moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
    assert moved == set(names)
    assert moved < set(weights) or part == "all"


def test_adapters_change_nothing_at_first() -> None:
    family, volumes = make(), torch.rand(2, 1, 8, 8, 8)
    before = family.reconstruct(Batch(volumes))
    add_adapters(family)
    assert torch.equal(family.reconstruct(Batch(volumes)), before)


def test_adapters_are_the_same_everywhere() -> None:
    """Two sites that insert them independently must aggregate like with like."""
    first, second = make(), make()
    add_adapters(first)
    torch.manual_seed(99)
    add_adapters(second)
    state = second.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in first.state_dict().items())


@pytest.mark.parametrize(
    ("frozen", "shape"),
    [
        (nn.Conv3d(6, 5, 3, stride=2, padding=1), (6, 7, 7, 7)),
        (nn.Conv2d(6, 5, 3, padding=1), (6, 7, 7)),
        (nn.Linear(6, 5), (4, 6)),
    ],
)
def test_an_adapter_is_a_low_rank_change_of_the_frozen_weight(
    frozen: Adaptable, shape: tuple[int, ...]
) -> None:
    """Oracle: one layer whose weight is the frozen one plus up x down, as `weight` says too."""
    adapted = Adapted(frozen, torch.Generator().manual_seed(0))
    nn.init.normal_(adapted.up.weight)
    whole = copy.deepcopy(frozen)
    change = torch.einsum("or,rc...->oc...", adapted.up.weight.flatten(1), adapted.down.weight)
    whole.weight = nn.Parameter(frozen.weight + change)
    x = torch.rand(2, *shape)
    # float32 sums of 162 terms in another order
    assert torch.allclose(adapted(x), whole(x), atol=1e-5)
    assert torch.allclose(adapted.weight, whole.weight, atol=1e-6)
    assert adapted.bias is frozen.bias


@pytest.mark.parametrize("name", NAMES)
def test_every_family_can_be_adapted(name: str) -> None:
    """Adapters must not break what reaches for a layer's weight, and must be heard when drawing."""
    family = tiny(name).eval()

    def sample() -> Tensor:
        with torch.no_grad():
            draws = torch.Generator().manual_seed(0)
            return family.sample(2, condition=told(name, 2), generator=draws)

    with torch.no_grad():  # away from layers of zeros, which would hide a change
        for weight in family.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    before = sample()
    add_adapters(family)
    assert torch.equal(sample(), before)
    for module in family.modules():
        if isinstance(module, Adapted):
            nn.init.normal_(module.up.weight)
    assert not torch.equal(sample(), before)
    assert freeze_the_rest(family, "adapters")


def test_biases_take_in_those_that_the_family_names() -> None:
    names = trained_parameters(make(), "normalisation-and-biases")
    assert "mean_shade.weight" in names
    assert "mean_volume.weight" not in names


def test_attention_is_all_of_its_blocks_and_no_convolution() -> None:
    """Oracle: by the layers' own names, in MONAI's UNet with attention at its last level."""
    denoiser = {"channels": (8, 16), "groups": 4, "sampling_steps": 2}
    family = Diffusion(DiffusionSpec(shape=(8, 8, 8), denoiser=denoiser))
    names = freeze_the_rest(family, "attention")
    expected = [name for name, _ in family.named_parameters() if "attention" in name]
    assert names == expected
    assert any(name.endswith("to_q.weight") for name in names)
    assert any(".norm." in name for name in names)
    (step,) = family.steps("diffusion")
    assert list(step.parameters) == names
    volumes = torch.rand(2, 1, 8, 8, 8)
    step.loss(Batch(volumes), torch.Generator().manual_seed(0)).sum().backward()
    assert {n for n, w in family.named_parameters() if w.grad is not None} == set(names)


def test_a_family_without_the_part_is_refused() -> None:
    with pytest.raises(PlanError, match="no attention to train"):
        freeze_the_rest(make(), "attention")
