"""Both first stages of the latent diffusion model: what trains when, what is kept apart."""

import pytest
import torch
from voxfed.models.base import Batch, Denoises, Reconstructs
from voxfed.models.latent_diffusion import LatentDiffusion, LatentDiffusionSpec
from voxfed.study.errors import PlanError

DENOISER = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 4}
CODES = {"channels": (8, 8), "groups": 4}
SHAPE = (8, 12, 16)
STAGES = ("kl", "vqgan")


def make(first_stage: str = "kl", **settings: object) -> LatentDiffusion:
    torch.manual_seed(0)
    spec = LatentDiffusionSpec(
        first_stage=first_stage,  # type: ignore[arg-type]
        shape=SHAPE,
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


def make_batch() -> Batch:
    return Batch(torch.rand((2, 1, *SHAPE), generator=generator(1)) * 2 - 1)


@pytest.mark.parametrize("first_stage", STAGES)
def test_shapes(first_stage: str) -> None:
    family, batch = make(first_stage), make_batch()
    assert isinstance(family, Denoises)
    assert isinstance(family, Reconstructs)
    for stage in family.stages:
        for step in family.steps(stage):
            assert step.reads_patients
            assert step.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    assert family.reconstruct(batch).shape == (2, 1, *SHAPE)
    drawn = family.sample(2, generator=generator())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.abs().max() <= 1


def test_no_loss_on_codes_touches_two_volumes() -> None:
    """A volume's losses, in every turn, are what they are beside any other volume."""
    family, batch = make("vqgan"), make_batch()
    other = Batch(batch.volumes.clone())
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
    step.loss(make_batch(), generator()).sum().backward()
    moved = {name for name, weight in family.named_parameters() if weight.grad is not None}
    assert moved == set(step.parameters)
    assert all(name.startswith("denoiser.") for name in moved)
    assert all(name in family.state_dict() for name in family.biases)
    with pytest.raises(PlanError, match="codes"):
        family.steps("codes")


def test_all_randomness_is_the_generators_on_codes_too() -> None:
    family, batch = make("vqgan"), make_batch()
    torch.manual_seed(1)
    first = family.loss(batch, generator()), family.sample(2, generator=generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = family.loss(batch, generator()), family.sample(2, generator=generator())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[1], family.sample(2, generator=generator(9)))
    assert torch.equal(family.reconstruct(batch), family.reconstruct(batch))


def test_the_scale_is_undone_and_is_no_statistic() -> None:
    """Scaled latents decode to the same volume; the scale is what the settings say, always."""
    one, three = make(latent_scale=1.0), make(latent_scale=3.0)
    volumes = make_batch().volumes
    decoded = [family._decode(family._encode(volumes, generator())) for family in (one, three)]
    assert torch.allclose(*decoded, atol=1e-5)
    latents = [family._encode(volumes, generator()) for family in (one, three)]
    assert torch.allclose(3 * latents[0], latents[1])


def test_latents_of_a_vqgan_are_entries_of_unit_size() -> None:
    """And a made latent becomes the entry nearest to it, so that an entry stays itself."""
    family = make("vqgan")
    volumes = make_batch().volumes
    latents = family._encode(volumes, generator())
    assert torch.equal(family._decode(0.7 * latents), family.reconstruct(Batch(volumes)))
    assert torch.allclose(latents.square().mean(1), torch.ones(2, 2, 3, 4), atol=1e-5)


def test_a_shape_that_the_first_stage_cannot_halve_is_refused() -> None:
    with pytest.raises(PlanError, match="shape: the first stage needs multiples of 8"):
        LatentDiffusionSpec.checked({"shape": [8, 8, 12]}, file="x", error=PlanError)
