"""The likelihood scores on a VAE that is a linear Gaussian model, whose density is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from voxfed.models.base import Batch
from voxfed.models.vae import Vae, VaeSpec
from voxfed.privacy.audit.scores import likelihood
from voxfed.privacy.audit.scores.likelihood import SCORES
from voxfed.privacy.audit.scores.score import Context

BOUND, WEIGHTED = SCORES
VARIANCE = 0.1  # of the likelihood
SHAPE, VOXELS, CODE = (2, 2, 2), 8, 2
CONTEXT = Context(seed=7)


def linear_vae(fault: float) -> Vae:
    """A real family whose decoder is linear and whose grid says nothing.

    Volumes are mean + W z + noise with orthogonal columns of W, so that the best posterior of z is
    diagonal and linear too.

    Args:
        fault: added to the best posterior's mean, in its deviations.
    """
    spec = VaeSpec(
        shape=SHAPE,
        patch=1,
        channels=(8,),
        groups=4,
        code=CODE,
        latent_channels=1,
        kl_weight=2 * VARIANCE,
        reconstruction="l2",
    )
    family = Vae(spec)
    draws = torch.Generator().manual_seed(1)
    columns = torch.linalg.qr(torch.randn((VOXELS, CODE), generator=draws)).Q
    columns = columns * torch.tensor([0.8, 0.4])
    spread = (1 + columns.square().sum(0) / VARIANCE).rsqrt()
    with torch.no_grad():
        # to begin with, a decoder of grids says nothing, and an encoder's deviation is its bias's
        for layer in family.network.quant_conv_mu.modules():
            if isinstance(layer, nn.Conv3d):
                layer.weight.zero_()
                layer.bias.zero_()
        for layer in family.network.quant_conv_log_sigma.modules():
            if isinstance(layer, nn.Conv3d):
                layer.bias.zero_()
        family.code_decoder.weight.copy_(columns)
        family.code_mean.weight.copy_(
            math.sqrt(VOXELS) * (spread.square() / VARIANCE)[:, None] * columns.T
        )
        family.code_mean.bias.copy_(fault * spread)
        family.code_log_variance.bias.copy_(2 * spread.log())
    return family


def exact(family: Vae, volumes: Tensor) -> Tensor:
    """The log density of volumes, (B,), in nats."""
    columns = family.code_decoder.weight.detach().double()
    covariance = columns @ columns.T + VARIANCE * torch.eye(VOXELS, dtype=torch.float64)
    mean = family._mean(1).detach().double().flatten()
    return MultivariateNormal(mean, covariance).log_prob(volumes.flatten(1).double())


def volume(seed: int = 3) -> Tensor:
    return torch.rand((1, 1, *SHAPE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def nats(measure: Callable[[Batch], Tensor], seed: int = 3) -> float:
    return VOXELS * float(measure(Batch(volume(seed))))


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_with_the_best_posterior_every_draw_is_the_density(score: object) -> None:
    family = linear_vae(0.0)
    measure = score.prepare(family, CONTEXT)  # type: ignore[attr-defined]
    for seed in range(3):
        expected = float(exact(family, volume(seed)))
        assert nats(measure, seed) == pytest.approx(expected, abs=1e-3)


def test_bounds_lie_in_order_and_more_draws_come_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """ELBO <= IWAE <= log density, and IWAE reaches it (Burda et al. 2016, theorem 1).

    A posterior that is off by 1.5 deviations in both numbers loses 2.25 nats of the bound.
    """
    family, fault = linear_vae(1.5), 2.25
    density = float(exact(family, volume()))
    bounds = {}
    for draws in (16, 256, 20_000):
        monkeypatch.setattr(likelihood, "DRAWS", draws)
        bounds[draws] = tuple(nats(score.prepare(family, CONTEXT)) for score in SCORES)
    elbo, iwae = bounds[20_000]
    assert elbo == pytest.approx(density - fault, abs=0.05)
    assert iwae == pytest.approx(density, abs=0.05)
    assert all(lower <= upper for lower, upper in bounds.values())
    gaps = [abs(density - weighted) for _, weighted in bounds.values()]
    assert gaps[0] > gaps[2]
    assert gaps[0] < 1


def test_a_family_that_draws_nothing_is_asked_once() -> None:
    """Its bound is its own, a voxel."""
    asked = []

    class Pixels:
        def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
            asked.append(len(batch.volumes))
            return torch.tensor([-16.0])

    assert float(BOUND.prepare(Pixels(), CONTEXT)(Batch(volume()))) == -2  # type: ignore[arg-type]
    assert asked == [1]


def test_weights_that_exp_cannot_hold_are_averaged_all_the_same() -> None:
    """Nats of whole volumes run to hundreds of thousands: log of the mean of exp, by hand."""

    class Sure:
        def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
            weights = torch.full((len(batch.volumes),), -200_000.0)
            weights[0] = -100_000.0
            return weights

    found = nats(WEIGHTED.prepare(Sure(), CONTEXT))  # type: ignore[arg-type]
    assert found == pytest.approx(-100_000 - math.log(16), abs=1e-6)
