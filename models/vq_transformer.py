"""The VQ transformer: codes of volumes, and a transformer that says how likely they are."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .codes import DECAYS, Codes, CodesSpec
from .conditioning import Conditioning
from .critic import trained
from .transformer_codes import TransformerCodes
from .vae import Width
from .vqgan import CodesCritic, CriticSpec, judged_steps

LONGEST = 4096


class VqTransformerSpec(Table):
    """The settings of a VQ transformer; with the shape they rebuild it."""

    first_stage: Literal["vqvae", "vqgan"] = Field(
        default="vqvae", description='"vqvae", or "vqgan" for a patch critic beside it'
    )
    codes: CodesSpec = Field(
        default=CodesSpec(channels=(16, 32, 64)), description="the table [settings.codes]"
    )
    critic: CriticSpec = Field(default=CriticSpec(), description="the table [settings.critic]")
    heads: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="attention heads of a block, 1 to 64"
    )
    width: Width = Field(default=128, description="of the transformer, a multiple of heads")
    depth: Annotated[int, Field(ge=1, le=64)] = Field(default=4, description="blocks, 1 to 64")
    condition: Literal["none", "class"] = Field(default="none", description='"none" or "class"')
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description="classes, where condition is class"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("width")
    @classmethod
    def _splits(cls, width: int, known: ValidationInfo) -> int:
        heads = known.data.get("heads", 1)
        if width % heads:
            raise ValueError(f"is not a multiple of the {heads} heads")
        return width

    @field_validator("shape")
    @classmethod
    def _fits(cls, shape: tuple[int, int, int], known: ValidationInfo) -> tuple[int, int, int]:
        depth, height, width = known.data.get("codes", CodesSpec()).grid(shape)
        if depth * height * width > LONGEST:
            raise ValueError(f"gives more than {LONGEST} codes; add a level to codes.channels")
        return shape

    @property
    def conditioning(self) -> Conditioning:
        """What a volume is told."""
        return Conditioning(self.condition, self.classes, 1, self.shape)


class VqTransformer(Family):
    """Codes of a VQ-VAE or VQ-GAN drawn by a causal transformer (Pinaya et al. 2022).

    A class enters as the token with which the codes begin. The codes are learned without it.
    """

    stages = ("codes", "transformer")
    biases = ("codes.mean.shade.weight",)
    spec: VqTransformerSpec

    def __init__(self, spec: VqTransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codes = Codes(spec.codes, spec.shape)
        self.critic = CodesCritic(spec.critic) if spec.first_stage == "vqgan" else None
        self.transformer = TransformerCodes(
            self.codes.grid,
            spec.codes.entries,
            spec.classes if spec.condition == "class" else 1,
            width=spec.width,
            depth=spec.depth,
            heads=spec.heads,
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turns of a stage, which all read patients.

        Raises:
            PlanError: the stage is not "codes" or "transformer".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = trained(self, stage)
        if stage == "transformer":
            return (Step(stage, names, reads_patients=True, loss=self.transformer_loss),)
        if self.critic is not None:
            return judged_steps(self, self.codes, self.critic)
        return (Step(stage, names, reads_patients=True, loss=self.codes_loss, decays=DECAYS),)

    def codes_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return each volume's error and what its codes pay, (B,); nothing is drawn."""
        loss: Tensor = self.codes(batch.volumes)[1]
        return loss

    def transformer_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what each volume's codes are worth, (B,), nats a code; nothing is drawn.

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        with torch.no_grad():
            indices = self.codes.encode(batch.volumes).indices
        return -self._worth(indices, batch.condition) / indices[0].numel()

    @torch.no_grad()
    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a lower bound on each volume's log density, (B,), in nats.

        It counts, of all codes that could give the volume, only its own.

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        density, indices = self.codes.log_density(batch.volumes)
        return density + self._worth(indices, batch.condition)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the codebook's entries of each volume as rows, (B, C d h w); nothing is drawn."""
        return self.codes.encode(batch.volumes).vectors.flatten(1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the decoded codes, (B, 1, D, H, W) in [-1, 1]; nothing is drawn."""
        return self.codes.draw(self.codes.encode(batch.volumes).indices)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Decode draws of the transformer to (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: a condition is missing, given in vain, or does not fit.
        """
        classes = self._classes(condition, n)
        return self.codes.draw(self.transformer.draw(classes, generator))

    def _worth(self, indices: Tensor, condition: Condition) -> Tensor:
        found: Tensor = self.transformer(indices, self._classes(condition, len(indices)))
        return found

    def _classes(self, condition: Condition, n: int) -> Tensor:
        """Return the class that each grid of codes begins with, int64 (n,)."""
        here = self.codes.codebook.embedding.weight.device
        self.spec.conditioning.told(condition, n)
        if condition.label is None:
            return torch.zeros(n, dtype=torch.int64, device=here)
        return condition.label.to(here)
