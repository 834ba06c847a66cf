"""The denoiser that all diffusion families share: MONAI's UNet, its loss and its sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional

from ..study.tables import Table
from .base import Exposed
from .groups import Groups
from .linear_path import LinearPath, TimedFilters
from .schedule import Prediction, Sampler, levels, split, target, walk

Width = Annotated[int, Field(ge=1, le=1024)]

TIME_SCALE = 1000  # of MONAI's time embedding, made for 1000 steps
DROPPED = 0.1  # share of conditions left out in training, where sampling is guided


class DenoiserSpec(Table):
    """The settings of a denoiser."""

    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64),
        min_length=1,
        description="channels at each level; every level but the last halves the grid",
    )
    blocks: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1, description="residual blocks at each level, 1 to 8"
    )
    groups: Groups = Field(
        default=8,
        description="GroupNorm groups and channels of an attention head, a divisor of every entry "
        "of channels",
    )
    code: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=32,
        description="length of the code between two linear layers beside the UNet, 0 for none",
    )
    prediction: Prediction = Field(
        default="v", description='"epsilon", "v", or "flow" for rectified flow'
    )
    sampler: Sampler = Field(
        default="dpm-solver++",
        description='"ddpm", "ddim", "dpm-solver++", or "euler" where prediction is "flow"',
    )
    sampling_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=50, description="calls of the network for a sample, 1 to 1000"
    )
    guidance: float = Field(
        default=1.0, ge=0, le=100, description="weight of the condition in samples; 1 adds nothing"
    )

    @field_validator("sampler")
    @classmethod
    def _fits_prediction(cls, sampler: Sampler, known: ValidationInfo) -> Sampler:
        if sampler == "euler" and known.data.get("prediction") != "flow":
            raise ValueError('"euler" needs the prediction "flow"')
        return sampler


class Denoiser(nn.Module):
    """Learns to tell noise from a grid, and makes grids from noise.

    MONAI's UNet sees, beside the noised grid, each voxel's place and the planes of an image
    condition; a condition of a few numbers is added to its time embedding. Attention stands at the
    coarsest level. Grids whose sides the levels do not halve evenly are padded at their ends.

    Args:
        spec: the settings.
        channels: of the grid.
        sides: of the grid, three, or two of slices.
        numbers: that a volume is told, 0 for none.
        planes: channels of an image condition on the grid, 0 for none.
        beside: channels of what is always seen beside the grid.
    """

    def __init__(
        self,
        spec: DenoiserSpec,
        *,
        channels: int,
        sides: tuple[int, ...],
        numbers: int,
        planes: int,
        beside: int = 0,
    ) -> None:
        super().__init__()
        self.spec, self.numbers = spec, numbers
        depth, dimensions = len(spec.channels), len(sides)
        guess = channels if spec.code else 0
        self.network = DiffusionModelUNet(
            spatial_dims=dimensions,
            in_channels=channels + planes + beside + dimensions + guess,
            out_channels=channels,
            num_res_blocks=(spec.blocks,) * depth,
            channels=spec.channels,
            attention_levels=(False,) * (depth - 1) + (True,),
            norm_num_groups=spec.groups,
            num_head_channels=spec.groups,
            num_class_embeds=1 if numbers else None,
            use_flash_attention=True,
        )
        self.linear = (
            LinearPath(spec.code, channels, channels + beside, sides, numbers) if guess else None
        )
        self.filters = TimedFilters(channels, channels + beside)
        if numbers:  # MONAI adds what this layer makes of its class labels to the time embedding
            self.network.add_module("class_embedding", nn.Linear(numbers + 1, 4 * spec.channels[0]))

    def loss(
        self,
        grids: Tensor,
        told: Tensor | None,
        generator: torch.Generator,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of the prediction at one drawn time a grid, (B,).

        Args:
            grids: (B, C, *sides), of about unit size.
            told: the condition as numbers (B, F) or planes (B, P, *sides).
            generator: draws the time, the noise and which conditions are left out.
            beside: what is always seen, (B, Q, *sides).
        """
        n = len(grids)
        time, kept = torch.rand((2, n), generator=generator, device=generator.device).to(grids)
        eps = self._noise(grids, generator)
        if told is not None and self.spec.guidance != 1:
            told = self._kept(told, kept >= DROPPED)
        said: Tensor = self(self._noised(grids, eps, time), time, told, beside)
        wanted = target(self.spec.prediction, grids, eps, _beside(time, grids))
        return (said - wanted).square().flatten(1).mean(1)

    def error(
        self,
        grids: Tensor,
        told: Tensor | None,
        time: float,
        generator: torch.Generator,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of the predicted noise at one time in (0, 1), (B,)."""
        eps = self._noise(grids, generator)
        times = grids.new_full((len(grids),), time)
        noised = self._noised(grids, eps, times)
        said = self(noised, times, told, beside)
        _, found = split(self.spec.prediction, noised, said, _beside(times, grids))
        return (found - eps).square().flatten(1).mean(1)

    def exposed(self, grids: Tensor, told: Tensor | None, beside: Tensor | None = None) -> Exposed:
        """Return grids with what is said of their noised states, all under the same condition."""
        prediction = self.spec.prediction

        def level(time: float) -> tuple[float, float]:
            alpha, sigma = levels(prediction, torch.tensor(time, dtype=torch.float64))
            return float(alpha), float(sigma)

        def predict(state: Tensor, time: float) -> Tensor:
            times = state.new_full((len(state),), time)
            said = self(state, times, told, beside)
            return split(prediction, state, said, _beside(times, state))[1]

        return Exposed(grids, level, predict)

    def sample(
        self,
        shape: tuple[int, ...],
        told: Tensor | None,
        generator: torch.Generator,
        bound: Callable[[Tensor], Tensor] = lambda grid: grid,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Return grids of `shape`, (n, C, *sides), made from the generator's noise.

        Args:
            shape: of what is made.
            told: as in `loss`, n rows.
            generator: draws the noise.
            bound: brings a predicted grid back to where grids lie.
            beside: as in `loss`, n rows.
        """
        here = next(self.parameters())
        noise = torch.randn(shape, generator=generator, device=generator.device).to(here)
        told = None if told is None else told.to(here)

        def say(state: Tensor, time: float) -> Tensor:
            return self.guided(state, state.new_full((len(state),), time), told, beside)

        return walk(
            noise,
            say,
            prediction=self.spec.prediction,
            sampler=self.spec.sampler,
            steps=self.spec.sampling_steps,
            generator=generator,
            bound=bound,
        )

    def guided(
        self, noised: Tensor, time: Tensor, told: Tensor | None, beside: Tensor | None = None
    ) -> Tensor:
        """Return what is said of noised grids (B, C, *sides), with guidance where there is any.

        The step from what is said without the condition to what is said with it is taken
        `guidance` times (Ho and Salimans 2022).
        """
        said: Tensor = self(noised, time, told, beside)
        if told is None or self.spec.guidance == 1:
            return said
        without: Tensor = self(noised, time, self._kept(told, time < 0), beside)
        return without + self.spec.guidance * (said - without)

    def forward(
        self, noised: Tensor, time: Tensor, told: Tensor | None, beside: Tensor | None = None
    ) -> Tensor:
        """Return what the network says of noised grids (B, C, *sides) at their times (B,)."""
        sides = noised.shape[2:]
        seen = noised if beside is None else torch.cat([noised, beside.to(noised)], dim=1)
        parts = [seen, _places(noised)]
        numbers = None
        if told is not None and self.numbers:
            # a last number says that there is a condition; all are zero where it is left out
            told = told if told.shape[1] > self.numbers else self._kept(told, time >= 0)
            numbers = told.to(noised)
        elif told is not None:
            parts.append(told.to(noised))
        guess = None
        if self.linear is not None:
            guess = self.linear(seen, time, numbers)
            parts.append(guess)
        multiple = 2 ** (len(self.spec.channels) - 1)
        ends = [end for side in reversed(sides) for end in (0, -side % multiple)]
        whole = functional.pad(torch.cat(parts, dim=1), ends, mode="replicate")
        said: Tensor = self.network(whole, TIME_SCALE * time, class_labels=numbers)
        for axis, side in enumerate(sides, start=2):
            said = said.narrow(axis, 0, side)
        said = said + self.filters(seen, time)
        return said if guess is None else said + self._word(guess, time)

    def _word(self, guess: Tensor, time: Tensor) -> Tensor:
        """Return the part of the word on a noised grid that a guess of the volume stands for."""
        alpha, sigma = levels(self.spec.prediction, _beside(time, guess))
        share = {"epsilon": alpha * sigma, "v": sigma, "flow": torch.ones_like(sigma)}
        return -share[self.spec.prediction] * guess

    def _kept(self, told: Tensor, kept: Tensor) -> Tensor:
        """Return conditions that are zero but for the kept; numbers get a last one that says so."""
        if self.numbers:
            told = torch.cat([told, torch.ones_like(told[:, :1])], dim=1)
        return told * _beside(kept, told).to(told)

    def _noised(self, grids: Tensor, eps: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = levels(self.spec.prediction, _beside(time, grids))
        return alpha * grids + sigma * eps

    def _noise(self, grids: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(grids.shape, generator=generator, device=generator.device).to(grids)


def _beside(rows: Tensor, grids: Tensor) -> Tensor:
    """Return (B,) as (B, 1, ...), which broadcasts against grids."""
    return rows.reshape(-1, *(1,) * (grids.dim() - 1))


def _places(grids: Tensor) -> Tensor:
    """Return each voxel's place, from -1 to 1 along each axis, (B, axes, *sides)."""
    n, _, *sides = grids.shape
    lines = [torch.linspace(-1, 1, side, dtype=grids.dtype, device=grids.device) for side in sides]
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(n, -1, *(-1 for _ in sides))
