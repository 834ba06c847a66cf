"""The voxel diffusion model keeps volumes apart, learns, is guided, and draws as it is told."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, Denoises
from voxfed.models.conditioning import Kind
from voxfed.models.diffusion import Diffusion, DiffusionSpec
from voxfed.models.fitting import fit
from voxfed.study.errors import PlanError

SMALL = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 4}
SHAPE = (8, 12, 10)


def make(kind: Kind = "none", shape: tuple[int, ...] = SHAPE, **denoiser: object) -> Diffusion:
    torch.manual_seed(0)
    settings = {"denoiser": {**SMALL, **denoiser}, "shape": shape, "patch": 2}
    spec = DiffusionSpec(condition=kind, classes=3, attributes=2, **settings)
    family = Diffusion(spec)
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new network starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(family: Diffusion, n: int = 2) -> Batch:
    volumes = torch.rand((n, 1, *family.spec.shape), generator=generator(1)) * 2 - 1
    return Batch(volumes, family.conditioning.example(n, generator(2)))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_shapes(prediction: str) -> None:
    family = make(prediction=prediction)
    batch = make_batch(family)
    assert isinstance(family, Denoises)
    assert family.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    drawn = family.sample(2, generator=generator())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.dtype == torch.float32
    assert drawn.abs().max() <= 1
    assert not drawn.requires_grad


@pytest.mark.parametrize(("shape", "patch"), [((7, 5, 9), 1), ((2, 6, 10), 2), ((1, 3, 1), 1)])
def test_odd_grids_are_padded_and_cut_again(shape: tuple[int, ...], patch: int) -> None:
    spec = DiffusionSpec(shape=shape, patch=patch, denoiser=SMALL)  # type: ignore[arg-type]
    assert Diffusion(spec).sample(1, generator=generator()).shape == (1, 1, *shape)
    with pytest.raises(ValueError, match="multiples of 4"):
        DiffusionSpec(shape=(8, 8, 6), patch=4)


def test_all_randomness_of_ddpm_is_the_generators() -> None:
    """It draws in every step: the same bits, whatever the global state; another does not."""
    family = make(sampler="ddpm")
    batch = make_batch(family)
    torch.manual_seed(1)
    first = family.loss(batch, generator()), family.sample(2, generator=generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = family.loss(batch, generator()), family.sample(2, generator=generator())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[1], family.sample(2, generator=generator(9)))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_a_few_steps_reduce_the_loss(prediction: str) -> None:
    """On shifted balls, by the same draws of time and noise before and after."""
    family = make(shape=(8, 8, 8), prediction=prediction)
    line = torch.linspace(-1, 1, 8)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    shifts = 0.3 * torch.randn(16, 3, 1, 1, 1, generator=generator())
    volumes = torch.tanh(4 * (0.6 - (places - shifts).norm(dim=1, keepdim=True)))
    batch = Batch(volumes.repeat(8, 1, 1, 1, 1))
    with torch.no_grad():
        before = family.loss(batch, generator()).mean()
    fit(
        family,
        "diffusion",
        Batch(volumes),
        steps=40,
        batch=8,
        learning_rate=3e-3,
        generator=generator(),
    )
    with torch.no_grad():
        after = family.loss(batch, generator()).mean()
    assert after < 0.8 * before


def test_guidance_takes_the_step_from_without_to_with() -> None:
    """Oracle: at the first call the word is w with + (1 - w) without, both asked by hand."""
    family = make("class", guidance=3.0)
    denoiser = family.denoiser
    grids, time = torch.randn(2, 8, 4, 6, 5), torch.full((2,), 0.7)
    told = family.conditioning.told(Condition(label=torch.tensor([0, 2])), 2)
    assert told is not None
    absent = torch.zeros(2, 4)
    with_it = denoiser(grids, time, torch.cat([told, torch.ones(2, 1)], dim=1))
    assert torch.equal(denoiser(grids, time, told), with_it)
    without = denoiser(grids, time, absent)
    found = denoiser.guided(grids, time, told)
    assert torch.allclose(found, 3 * with_it - 2 * without, atol=1e-5)


def test_a_tenth_of_the_conditions_is_left_out_where_samples_are_guided() -> None:
    seen: list[torch.Tensor] = []
    batch = Batch(torch.zeros(500, 1, 2, 2, 2), Condition(attributes=torch.ones(500, 2)))
    small = make("attributes", (2, 2, 2), guidance=2.0, code=0)
    small.denoiser.network.class_embedding.register_forward_hook(
        lambda _, rows, __: seen.append(rows[0])
    )
    small.loss(batch, generator())
    (rows,) = seen
    assert set(rows.sum(1).tolist()) == {0.0, 3.0}
    assert 25 <= (rows.sum(1) == 0).sum() <= 80


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_the_error_is_that_of_the_noise(prediction: str) -> None:
    """Oracle: a network that says nothing, at pure noise of unit size, in closed form."""
    family = make(prediction=prediction, code=0)
    silent = family.denoiser.network.out, family.denoiser.filters
    for weight in (weight for part in silent for weight in part.parameters()):
        torch.nn.init.zeros_(weight)
    batch = Batch(torch.zeros(4, 1, *SHAPE))
    found = family.denoising_error(batch, 0.5, generator()).mean().item()
    # the noised zero volume is sigma eps; what is missing of eps is its share
    expected = {"epsilon": 1.0, "flow": 0.25, "v": 0.2512}[prediction]
    assert found == pytest.approx(expected, rel=0.1)


def test_the_step_lists_only_what_learns_and_reads_patients() -> None:
    family = make()
    family.denoiser.network.conv_in.conv.bias.requires_grad_(False)
    (step,) = family.steps("diffusion")
    assert step.reads_patients
    left_out = set(dict(family.named_parameters())) - set(step.parameters)
    assert left_out == {"denoiser.network.conv_in.conv.bias"}
    with pytest.raises(PlanError, match="autoencoder"):
        family.steps("autoencoder")


def test_settings_that_do_not_go_together_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r'denoiser\.sampler: "euler" needs'):
        DiffusionSpec.checked(
            {"shape": [8, 8, 8], "denoiser": {"sampler": "euler"}}, file="x", error=PlanError
        )
    with pytest.raises(PlanError, match=r"denoiser\.groups: does not divide"):
        DiffusionSpec.checked(
            {"shape": [8, 8, 8], "denoiser": {"channels": [12]}}, file="x", error=PlanError
        )
