"""The KL autoencoder learns blocks fast, and its loss is the bound that it says."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from voxfed.models.base import Batch
from voxfed.models.kl_autoencoder import KlAutoencoder, KlAutoencoderSpec
from voxfed.study.errors import PlanError

SETTINGS = {"channels": (8, 16), "groups": 4, "latent_channels": 3}


def make(**settings: object) -> KlAutoencoder:
    torch.manual_seed(0)
    network = KlAutoencoder(KlAutoencoderSpec(**{**SETTINGS, **settings}), (8, 12, 16))  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


@pytest.mark.parametrize(("patch", "channels"), [(1, (8, 8, 8)), (2, (8, 8)), (4, (8,))])
def test_shapes(patch: int, channels: tuple[int, ...]) -> None:
    network = make(patch=patch, channels=channels)
    volumes = torch.rand(2, 1, 8, 12, 16) * 2 - 1
    mean, deviation = network.posterior(volumes)
    assert mean.shape == deviation.shape == (2, 3, 2, 3, 4)
    assert network.decode(mean).shape == volumes.shape


def test_loss_is_the_error_plus_the_kl_per_voxel() -> None:
    """Oracle: torch.distributions' KL, and the error by hand at the same draw."""
    network, volumes = make(kl_weight=0.7), torch.rand(2, 1, 8, 12, 16)
    with torch.no_grad():
        posterior = network.posterior(volumes)
        drawn = torch.Generator().manual_seed(3)
        noise = torch.randn(posterior.mean.shape, generator=drawn)
        error = network.decode(posterior.mean + posterior.deviation * noise) - volumes
        nats = kl_divergence(Normal(*posterior), Normal(0.0, 1.0)).flatten(1).sum(1)
        expected = error.abs().mean((1, 2, 3, 4)) + 0.7 * nats / (8 * 12 * 16)
        found = network.loss(Batch(volumes), torch.Generator().manual_seed(3))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_groups_that_do_not_divide_are_refused_even_by_default() -> None:
    with pytest.raises(PlanError, match=r"groups: does not divide channels \[12\]"):
        KlAutoencoderSpec.checked({"channels": [12]}, file="x", error=PlanError)
