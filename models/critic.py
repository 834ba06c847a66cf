"""What adversarial families share: critics, the games they play, and slopes within a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from .base import Family

Game = Literal["wasserstein", "hinge", "least-squares", "logistic"]
LEAKY = ("LEAKYRELU", {"negative_slope": 0.2})


def critic_loss(game: Game, real: Tensor, fake: Tensor) -> Tensor:
    """Return what a critic minimises, one value a volume, (B,).

    Args:
        game: "wasserstein" (Arjovsky et al. 2017), "hinge" (Lim and Ye 2017), "least-squares"
            (Mao et al. 2017) or "logistic" (Goodfellow et al. 2014).
        real: scores of patients' volumes, (B,) or a patch critic's (B, 1, d, h, w).
        fake: scores of generated volumes, as many.
    """
    if game == "wasserstein":
        terms = fake - real
    elif game == "hinge":
        terms = functional.relu(1 - real) + functional.relu(1 + fake)
    elif game == "least-squares":
        terms = ((real - 1).square() + fake.square()) / 2
    else:
        terms = functional.softplus(-real) + functional.softplus(fake)
    return terms.reshape(len(terms), -1).mean(1)


def generator_loss(game: Game, fake: Tensor) -> Tensor:
    """Return what a generator minimises, one value a volume, (B,); "logistic" never saturates.

    Args:
        game: as in `critic_loss`.
        fake: scores of its volumes, (B,) or a patch critic's (B, 1, d, h, w).
    """
    if game in ("wasserstein", "hinge"):
        terms = -fake
    elif game == "least-squares":
        terms = (fake - 1).square() / 2
    else:
        terms = functional.softplus(-fake)
    return terms.reshape(len(terms), -1).mean(1)


def slopes(score: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the length of each point's own gradient of its score, (B,), ready to be a loss.

    No point's slope depends on another's, as long as its score does not.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        (found,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    lengths: Tensor = torch.linalg.vector_norm(found.flatten(1), dim=1)
    return lengths


def between(real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """Return a point on the line from each volume to its own fake, uniformly drawn."""
    share = torch.rand(len(real), generator=generator, device=generator.device).to(real)
    share = share.reshape(-1, *(1,) * (real.ndim - 1))
    return real + share * (fake - real)


def trained(family: Family, *networks: str) -> tuple[str, ...]:
    """Return the names of the parameters of some networks that are not frozen."""
    named = family.named_parameters()
    return tuple(x for x, weight in named if weight.requires_grad and x.split(".")[0] in networks)


class UnitNorm(nn.Module):
    """Divides a layer's weight so that the layer lengthens nothing (Miyato et al. 2018).

    The largest singular value of the weight is exact, from the weight alone: power iteration would
    keep a vector that moves in each forward pass, past clipping and noise. A convolution whose
    windows overlap may lengthen by the root of their number more; left out, as is usual, three
    levels are up to 22 times as steep in 3D, and critics win before generators have learned.

    Args:
        windows: of a convolution that meet in a voxel, 1 for a linear layer.
    """

    def __init__(self, windows: int = 1) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, seen as a matrix of one row an output, over its largest stretch."""
        rows = weight.flatten(1)
        squares = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        largest: Tensor = torch.linalg.eigvalsh(squares)[-1]
        return weight / (self.windows * largest).clamp_min(1e-12).sqrt()


class Critic(nn.Module):
    """Scores whole volumes: convolutions that halve the grid, then a linear layer.

    There is no normalisation, as a gradient penalty wants it. A condition is compared with the
    features by an inner product (Miyato and Koyama 2018).

    Args:
        shape: (D, H, W) of a volume, each side at least 2 to the power of the levels.
        channels: one entry a level.
        inputs: channels of a volume.
        conditions: numbers in a condition's row, 0 for none.
        spectral: whether no score changes by more than the distance of two volumes.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        *,
        inputs: int = 1,
        conditions: int = 0,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                Convolution(
                    3, wide, narrow, strides=2, kernel_size=4, padding=1, act=LEAKY, norm=None
                )
                for wide, narrow in pairwise((inputs, *channels))
            ),
            nn.Flatten(),
        )
        features = channels[-1] * math.prod(side >> len(channels) for side in shape)
        self.score = nn.Linear(features, 1)
        self.match = nn.Linear(conditions, features, bias=False) if conditions else None
        if spectral:
            for layer in list(self.modules()):
                if isinstance(layer, nn.Conv3d | nn.Linear):
                    norm = UnitNorm(_windows(layer))
                    parametrize.register_parametrization(layer, "weight", norm, unsafe=True)

    def forward(self, volumes: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the scores (B,) of volumes (B, C, D, H, W) and condition rows (B, A)."""
        features: Tensor = self.body(volumes)
        score: Tensor = self.score(features).squeeze(1)
        if self.match is None or rows is None:
            return score
        matched: Tensor = (self.match(rows) * features).sum(1)
        return score + matched / math.sqrt(features.shape[1])


def _windows(layer: nn.Conv3d | nn.Linear) -> int:
    if isinstance(layer, nn.Linear):
        return 1
    sides = zip(layer.kernel_size, layer.stride, strict=True)
    return math.prod(-(-size // step) for size, step in sides)


def patch_critic(inputs: int, channels: int, layers: int, groups: int) -> PatchDiscriminator:
    """Return MONAI's patch critic with GroupNorm; its last output is (B, 1, d, h, w) scores.

    Its kernels of 3 fit every shape.
    """
    return PatchDiscriminator(
        spatial_dims=3,
        channels=channels,
        in_channels=inputs,
        num_layers_d=layers,
        kernel_size=3,
        norm=("GROUP", {"num_groups": groups}),
    )
