"""The VAE keeps volumes apart, draws only from its generator, and its bound is the textbook's."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from voxfed.models.base import Batch, Condition, Reconstructs
from voxfed.models.vae import Gaussian, Vae, VaeSpec
from voxfed.study.errors import PlanError

SETTINGS = {"channels": (8, 16), "groups": 4, "latent_channels": 2, "code": 5}


def make(**settings: object) -> Vae:
    torch.manual_seed(0)
    family = Vae(VaeSpec(**{"shape": (8, 12, 16), "patch": 2, **SETTINGS, **settings}))
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new family starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("patch", "channels"), [(1, (8, 8, 8)), (2, (8, 8)), (4, (8,))])
def test_shapes(patch: int, channels: tuple[int, ...]) -> None:
    family = make(patch=patch, channels=channels)
    volumes = torch.rand(3, 1, 8, 12, 16) * 2 - 1
    assert isinstance(family, Reconstructs)
    assert family.reconstruct(Batch(volumes)).shape == volumes.shape
    assert family.sample(2, generator=generator()).shape == (2, 1, 8, 12, 16)
    assert family.loss(Batch(volumes), generator()).shape == (3,)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folded_cubes_unfold_to_the_same_volume(patch: int) -> None:
    """No voxel changes its place between encoder and decoder."""
    family = make(patch=patch, channels=(8,))
    kept: list[torch.Tensor] = []

    class Through(torch.nn.Module):
        def encode(self, cubes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kept.append(cubes)
            return cubes, cubes

        def decode(self, cubes: torch.Tensor) -> torch.Tensor:
            return cubes

    family.network = Through()  # type: ignore[assignment]
    torch.nn.init.zeros_(family.code_decoder.weight)
    torch.nn.init.zeros_(family.mean_volume.weight)
    torch.nn.init.zeros_(family.mean_shade.weight)
    volumes = torch.rand(2, 1, 8, 12, 16)
    assert torch.equal(family.reconstruct(Batch(volumes)), volumes)
    # a channel is one corner of every cube
    assert torch.equal(kept[0][:, 0], volumes[:, 0, ::patch, ::patch, ::patch])


def test_a_volume_does_not_touch_its_neighbours_gradient() -> None:
    """The sum of the losses of one alone is what it is within a batch: no batch statistics."""
    family = make()
    pair = torch.rand(2, 1, 8, 12, 16)
    pair.requires_grad_()
    family.loss(Batch(pair), generator())[0].backward()
    assert pair.grad is not None
    assert pair.grad[0].abs().max() > 0
    assert pair.grad[1].abs().max() == 0


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_loss_is_the_error_plus_the_kl_per_voxel(reconstruction: str) -> None:
    """Oracle: torch.distributions' KL, and the error by hand where the posterior is a point."""
    family = make(kl_weight=0.7, reconstruction=reconstruction)
    volumes = torch.rand(2, 1, 8, 12, 16)
    with torch.no_grad():
        code, grid = family._encode(volumes)
        drawn = generator()
        latents = [
            part.mean + part.deviation * torch.randn(part.mean.shape, generator=drawn)
            for part in (code, grid)
        ]
        error = family._decode(*latents) - volumes
        size = error.abs() if reconstruction == "l1" else error**2
        nats = sum(
            kl_divergence(Normal(*part), Normal(0.0, 1.0)).flatten(1).sum(1)
            for part in (code, grid)
        )
        expected = size.mean((1, 2, 3, 4)) + 0.7 * nats / (8 * 12 * 16)
    assert torch.allclose(family.loss(Batch(volumes), generator()), expected, rtol=1e-5)


def test_the_standard_normal_costs_no_nats() -> None:
    assert Gaussian(torch.zeros(1, 4), torch.ones(1, 4)).nats().item() == 0


def test_all_randomness_is_the_generators() -> None:
    """The same generator gives the same bits, whatever the global state; another does not."""
    family, volumes = make(), torch.rand(1, 1, 8, 12, 16)
    torch.manual_seed(1)
    first = family.loss(Batch(volumes), generator()), family.sample(2, generator=generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = family.loss(Batch(volumes), generator()), family.sample(2, generator=generator())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], family.loss(Batch(volumes), generator(9)))
    assert torch.equal(family.reconstruct(Batch(volumes)), family.reconstruct(Batch(volumes)))


def test_the_step_lists_only_what_learns_and_reads_patients() -> None:
    family = make()
    family.mean_volume.weight.requires_grad_(False)
    (step,) = family.steps("autoencoder")
    assert step.reads_patients
    assert set(dict(family.named_parameters())) - set(step.parameters) == {"mean_volume.weight"}
    with pytest.raises(PlanError, match="diffusion"):
        family.steps("diffusion")


def test_there_is_no_state_beside_the_parameters() -> None:
    """A buffer would move with a patient's activations, past clipping and noise."""
    assert list(make().buffers()) == []


def test_a_condition_is_refused() -> None:
    with pytest.raises(PlanError, match="no condition"):
        make().sample(1, condition=Condition(label=torch.zeros(1)), generator=generator())
