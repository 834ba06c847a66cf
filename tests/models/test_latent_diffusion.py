"""Both first stages of the latent diffusion model: what trains when, what is kept apart."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, Denoises, Reconstructs
from voxfed.models.conditioning import Kind
from voxfed.models.fitting import fit
from voxfed.models.latent_diffusion import LatentDiffusion, LatentDiffusionSpec
from voxfed.study.errors import PlanError

DENOISER = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 4}
CODES = {"channels": (8, 8), "groups": 4}
KINDS: tuple[Kind, ...] = ("none", "class", "attributes", "mask", "source")
SHAPE = (8, 12, 16)
STAGES = ("kl", "vqgan")


def make(
    first_stage: str = "kl",
    kind: Kind = "none",
    shape: tuple[int, ...] = SHAPE,
    **settings: object,
) -> LatentDiffusion:
    torch.manual_seed(0)
    spec = LatentDiffusionSpec(
        first_stage=first_stage,  # type: ignore[arg-type]
        condition=kind,
        classes=3,
        attributes=2,
        shape=shape,  # type: ignore[arg-type]
        **{
            "autoencoder": {**CODES, "latent_channels": 3},
            "codes": {**CODES, "entries": 16, "width": 4},
            "critic": {"channels": 8, "layers": 1, "groups": 4},
            "denoiser": DENOISER,
            **settings,
        },  # type: ignore[arg-type]
    )
    family = LatentDiffusion(spec)
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new network starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(family: LatentDiffusion, n: int = 2) -> Batch:
    volumes = torch.rand((n, 1, *family.spec.shape), generator=generator(1)) * 2 - 1
    return Batch(volumes, family.conditioning.example(n, generator(2)))


def balls() -> torch.Tensor:
    line = torch.linspace(-1, 1, 8)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    shifts = 0.3 * torch.randn(16, 3, 1, 1, 1, generator=generator())
    return torch.tanh(4 * (0.6 - (places - shifts).norm(dim=1, keepdim=True)))


@pytest.mark.parametrize("first_stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes(first_stage: str, kind: Kind) -> None:
    family = make(first_stage, kind)
    batch = make_batch(family)
    assert isinstance(family, Denoises)
    assert isinstance(family, Reconstructs)
    for stage in family.stages:
        for step in family.steps(stage):
            assert step.reads_patients
            assert step.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    assert family.reconstruct(batch.volumes).shape == (2, 1, *SHAPE)
    drawn = family.sample(2, condition=batch.condition, generator=generator())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize("first_stage", STAGES)
def test_no_loss_touches_two_volumes(first_stage: str) -> None:
    """A volume's losses, in every turn, are what they are beside any other volume."""
    family = make(first_stage, "mask")
    batch = make_batch(family)
    other = Batch(batch.volumes.clone(), batch.condition)
    other.volumes[1] *= -1
    for stage in family.stages:
        for step in family.steps(stage):
            with torch.no_grad():
                first, second = (step.loss(b, generator()) for b in (batch, other))
            assert torch.isclose(first[0], second[0], rtol=1e-5)
            assert not torch.isclose(first[1], second[1], rtol=1e-5)


@pytest.mark.parametrize("first_stage", STAGES)
def test_a_stage_moves_only_its_own_parameters(first_stage: str) -> None:
    """The denoiser's loss reaches no weight of the first stage, and the names agree."""
    family = make(first_stage)
    turns = [step for stage in family.stages for step in family.steps(stage)]
    listed = [name for step in turns for name in step.parameters]
    assert sorted(listed) == sorted(family.state_dict())
    (step,) = family.steps("diffusion")
    step.loss(make_batch(family), generator()).sum().backward()
    moved = {name for name, weight in family.named_parameters() if weight.grad is not None}
    assert moved == set(step.parameters)
    assert all(name.startswith("denoiser.") for name in moved)
    assert list(family.buffers()) == []
    assert all(name in family.state_dict() for name in family.biases)
    with pytest.raises(PlanError, match="codes"):
        family.steps("codes")


@pytest.mark.parametrize("first_stage", STAGES)
def test_all_randomness_is_the_generators(first_stage: str) -> None:
    family = make(first_stage)
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
    assert torch.equal(family.reconstruct(batch.volumes), family.reconstruct(batch.volumes))


def test_a_few_steps_of_each_stage_reduce_its_loss() -> None:
    """On shifted balls, by the same draws before and after."""
    family, volumes = make(shape=(8, 8, 8)), balls()
    batch = Batch(volumes.repeat(4, 1, 1, 1, 1))
    for stage, share in (("autoencoder", 0.6), ("diffusion", 0.9)):
        (step,) = family.steps(stage)
        with torch.no_grad():
            before = step.loss(batch, generator()).mean()
        fit(family, stage, volumes, steps=60, batch=8, learning_rate=3e-3, generator=generator())
        with torch.no_grad():
            after = step.loss(batch, generator()).mean()
        assert after < share * before


def test_the_scale_is_undone_and_is_no_statistic() -> None:
    """Scaled latents decode to the same volume; the scale is what the settings say, always."""
    one, three = make(latent_scale=1.0), make(latent_scale=3.0)
    volumes = make_batch(one).volumes
    decoded = [family._decode(family._encode(volumes, generator())) for family in (one, three)]
    assert torch.allclose(*decoded, atol=1e-5)
    latents = [family._encode(volumes, generator()) for family in (one, three)]
    assert torch.allclose(3 * latents[0], latents[1])


def test_latents_of_a_vqgan_are_entries_of_unit_size() -> None:
    """And a made latent becomes the entry nearest to it, so that an entry stays itself."""
    family = make("vqgan")
    volumes = make_batch(family).volumes
    latents = family._encode(volumes, generator())
    assert torch.equal(family._decode(0.7 * latents), family.reconstruct(volumes))
    assert torch.allclose(latents.square().mean(1), torch.ones(2, 2, 3, 4), atol=1e-5)


@pytest.mark.parametrize("kind", ["class", "attributes", "mask", "source"])
def test_the_condition_is_heard(kind: Kind) -> None:
    family = make(kind=kind)
    first, second = (family.conditioning.example(1, generator(seed)) for seed in (1, 2))
    told, other = (family.sample(1, condition=c, generator=generator()) for c in (first, second))
    assert not torch.equal(told, other)


def test_wrong_conditions_and_shapes_are_refused() -> None:
    label = Condition(label=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=label, generator=generator())
    with pytest.raises(PlanError, match="takes a condition"):
        make(kind="source").sample(1, generator=generator())
    with pytest.raises(PlanError, match="shape: the first stage needs multiples of 8"):
        LatentDiffusionSpec.checked({"shape": [8, 8, 12]}, file="x", error=PlanError)
