"""Training the small encoder on phantoms by contrast (SimCLR, Chen et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from ..fitting import Progress
from ..phantoms import FIELD, Scanner, make_phantom
from .encoder import LEAST_SIDE, Encoder
from .features import Extractor, contrastive

PHANTOMS = 512
BATCH = 32
STEPS = 300
LEARNING_RATE = 2e-3
TEMPERATURE = 0.2
SCALES = (2 / 3, 1.0, 4 / 3)
"""Sizes of the volumes that the encoder sees in turn, as shares of the phantoms' sides."""


def train_encoder(
    shape: Sequence[int] = (24, 24, 24),
    *,
    steps: int = STEPS,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Extractor:
    """Return an extractor that learned to tell phantoms apart; no scan is seen.

    Under a minute on one core at the defaults. Each step draws phantoms, changes each twice, and
    asks which two belong together. The features themselves are compared, without a projection
    after them, since angles between features are what the figures use; they are centred on the
    phantoms and put on a sphere, so that a figure's scale does not depend on the training.

    Args:
        shape: (D, H, W) of the phantoms, each 16 or more; other shapes can be passed later, and
            are told apart best from two thirds to four thirds of it.
        steps: of Adam, 1 or more; the learning rate falls to zero.
        generator: on the CPU; first weights, phantoms and changes follow from it.
        progress: called after each step with the step, `steps` and the loss.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    needed = min(PHANTOMS, steps * BATCH)
    volumes = draw_phantoms(needed, shape, np.random.default_rng(seed))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        encoder = Encoder()
    _standardise(encoder, volumes)  # else all features point one way, and learning stands still
    optimiser = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE)
    for step in range(1, steps + 1):
        share = math.cos(math.pi / 2 * (step - 1) / steps) ** 2
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * share
        drawn = volumes[torch.randperm(len(volumes), generator=generator)[:BATCH]]
        size = [max(round(side * SCALES[step % len(SCALES)]), LEAST_SIDE) for side in shape]
        both = [change(drawn, size, generator) for _ in range(2)]
        loss = nt_xent(encoder(torch.cat(both)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(step, steps, loss.item())
    _standardise(encoder, volumes)
    return contrastive(encoder, shape)


def draw_phantoms(n: int, shape: Sequence[int], generator: np.random.Generator) -> Tensor:
    """Return n phantoms, float32 (n, 1, D, H, W) in [-1, 1], each seen by a scanner of its own.

    Scanners differ in contrast, shading, noise and sharpness. Those tell phantoms apart too, which
    is how the encoder learns to see noise and blur, the usual faults of synthetic volumes. The
    field of view of 144 mm fills the grid. As in a study, each volume's own percentiles 0.5 and
    99.5 become -1 and 1.
    """
    depth, height, width = (FIELD / side for side in shape)
    drawn = []
    for _ in range(n):
        gamma, noise, bias, blur = generator.uniform((0.7, 0.0, 0.0, 0.0), (2.5, 0.1, 0.4, 1.0))
        scanner = Scanner("drawn", (depth, height, width), "RAS", gamma, noise, bias, 1.0)
        voxels, _ = make_phantom(generator, scanner)
        voxels = ndimage.gaussian_filter(voxels, blur)
        low, high = np.percentile(voxels, (0.5, 99.5))
        drawn.append(np.clip((voxels - low) * (2 / (high - low)) - 1, -1, 1))
    return torch.from_numpy(np.stack(drawn)[:, None].astype(np.float32))


def change(volumes: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return the volumes (B, 1, D, H, W), each seen anew, at (B, 1, *size).

    Half are mirrored left to right; a crop of 80 to 100 % of each side, up to a twelfth off the
    middle, fills the grid; brightness is scaled by 0.8 to 1.2; noise of at most 0.03 is added, not
    more, since noise in a synthetic volume is a fault to be seen.
    """
    n = len(volumes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    turn = torch.diag_embed(uniform(0.8, 1.0, 1).expand(n, 3))
    turn[:, 2, 2] *= torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)  # the last row moves D, right
    move = torch.cat([turn, uniform(-1 / 6, 1 / 6, 3, 1)], dim=2)
    grid = functional.affine_grid(move, [n, 1, *size], align_corners=False)
    moved = functional.grid_sample(volumes, grid, padding_mode="border", align_corners=False)
    scaled = (moved + 1) * uniform(0.8, 1.2, 1, 1, 1, 1) - 1
    noise = torch.randn(moved.shape, generator=generator) * uniform(0, 0.03, 1, 1, 1, 1)
    return (scaled + noise).clamp(-1, 1)


def nt_xent(projected: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the normalised temperature-scaled cross entropy (Chen et al. 2020), in nats.

    Args:
        projected: (2B, P), row i and row B + i from the same volume.
        temperature: of the cosine similarities.
    """
    unit = functional.normalize(projected, dim=1)
    alike = unit @ unit.T / temperature
    alike = alike.masked_fill(torch.eye(len(unit), dtype=torch.bool), -math.inf)
    partner = torch.arange(len(unit)).roll(len(unit) // 2)
    return functional.cross_entropy(alike, partner)


def _standardise(encoder: Encoder, volumes: Tensor) -> None:
    """Fold into the last layer what gives its outputs mean 0 and deviation 1 over the volumes."""
    with torch.no_grad():
        features = encoder(volumes)
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        encoder.last.weight /= deviation[:, None]
        encoder.last.bias.sub_(mean).div_(deviation)
