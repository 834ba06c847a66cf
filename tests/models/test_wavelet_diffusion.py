"""The wavelet diffusion model's coefficients are the volume, and it learns and draws by rule."""

import pytest
import torch
from voxfed.models.base import Batch, Condition, Denoises
from voxfed.models.conditioning import Kind
from voxfed.models.fitting import fit
from voxfed.models.wavelet_diffusion import WaveletDiffusion, WaveletDiffusionSpec, _volumes
from voxfed.study.errors import PlanError

SMALL = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 4}
KINDS: tuple[Kind, ...] = ("none", "class", "attributes", "mask", "source")
SHAPE = (8, 12, 9)


def make(
    kind: Kind = "none", shape: tuple[int, ...] = SHAPE, **denoiser: object
) -> WaveletDiffusion:
    torch.manual_seed(0)
    settings = {"denoiser": {**SMALL, **denoiser}, "shape": shape}
    family = WaveletDiffusion(
        WaveletDiffusionSpec(condition=kind, classes=3, attributes=2, **settings)
    )
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new network starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(family: WaveletDiffusion, n: int = 2) -> Batch:
    volumes = torch.rand((n, 1, *family.spec.shape), generator=generator(1)) * 2 - 1
    return Batch(volumes, family.conditioning.example(n, generator(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: Kind) -> None:
    """A side of 9 is padded to 10 and cut again."""
    family = make(kind)
    batch = make_batch(family)
    assert isinstance(family, Denoises)
    assert family.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    drawn = family.sample(2, condition=batch.condition, generator=generator())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.abs().max() <= 1


def test_what_is_denoised_is_the_volume() -> None:
    """Its coefficients, scaled and padded, give it back; the lowest of them lie in [-1, 1]."""
    family = make()
    volumes = make_batch(family).volumes
    found = family._encode(volumes)
    assert torch.allclose(_volumes(found)[..., :9], volumes, atol=1e-6)
    assert family._encode(torch.ones_like(volumes)).abs().max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_does_not_touch_its_neighbours_gradient(kind: Kind) -> None:
    family = make(kind, guidance=2.0)
    batch = make_batch(family)
    batch.volumes.requires_grad_()
    family.loss(batch, generator())[0].backward()
    assert batch.volumes.grad is not None
    assert batch.volumes.grad[0].abs().max() > 0
    assert batch.volumes.grad[1].abs().max() == 0


def test_all_randomness_is_the_generators() -> None:
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


def test_a_few_steps_reduce_the_loss() -> None:
    """On shifted balls, by the same draws of time and noise before and after."""
    family = make(shape=(8, 8, 8))
    line = torch.linspace(-1, 1, 8)
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    shifts = 0.3 * torch.randn(16, 3, 1, 1, 1, generator=generator())
    volumes = torch.tanh(4 * (0.6 - (places - shifts).norm(dim=1, keepdim=True)))
    batch = Batch(volumes.repeat(8, 1, 1, 1, 1))
    with torch.no_grad():
        before = family.loss(batch, generator()).mean()
    fit(family, "diffusion", volumes, steps=40, batch=8, learning_rate=3e-3, generator=generator())
    with torch.no_grad():
        after = family.loss(batch, generator()).mean()
    assert after < 0.8 * before


@pytest.mark.parametrize("kind", ["class", "attributes", "mask", "source"])
def test_the_condition_is_heard(kind: Kind) -> None:
    family = make(kind)
    first, second = (family.conditioning.example(1, generator(seed)) for seed in (1, 2))
    told, other = (family.sample(1, condition=c, generator=generator()) for c in (first, second))
    assert not torch.equal(told, other)


def test_the_step_reads_patients_and_there_is_no_state_beside_the_parameters() -> None:
    family = make("class")
    (step,) = family.steps("diffusion")
    assert step.reads_patients
    assert set(step.parameters) == set(dict(family.named_parameters())) == set(family.state_dict())
    assert list(family.buffers()) == []
    with pytest.raises(PlanError, match="autoencoder"):
        family.steps("autoencoder")


def test_a_wrong_condition_is_refused() -> None:
    label = Condition(label=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=label, generator=generator())
    with pytest.raises(PlanError, match="takes a condition"):
        make("mask").sample(1, generator=generator())
