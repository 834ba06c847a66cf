"""Networks as the families build them, and steps on them, for the tests of gradients."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from monai.networks.nets.transformer import DecoderOnlyTransformer
from torch import Tensor, nn
from torch.nn import functional
from voxfed.models.base import Batch, Condition, Step

KINDS = ("autoencoder", "unet", "critic", "transposed", "transformer", "repeated", "only biases")


class Decoder(nn.Module):
    """Transposed, dilated and grouped convolutions, and an activation that writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=2, dilation=2, groups=1)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.up = nn.ConvTranspose3d(4, 2, 4, stride=2, padding=1, groups=2)
        self.last = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)), inplace=True)
        found: Tensor = self.last(self.up(x).movedim(1, -1))
        return found.movedim(-1, 1)


class Repeated(nn.Module):
    """One convolution met three times, beside one that is never met."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.never = nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = functional.silu(self.again(x))
        return x


class Dropping(nn.Module):
    """Dropout, which draws from the global state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(functional.dropout(self.first(x), 0.5, training=True))
        return found


def network(kind: str) -> nn.Module:
    """Return a network with first weights that are the same each time."""
    torch.manual_seed(0)
    made: nn.Module
    if kind in ("autoencoder", "only biases"):
        made = AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(4, 8),
            latent_channels=2,
            num_res_blocks=(1, 1),
            attention_levels=(False, True),
            norm_num_groups=4,
        )
    elif kind == "unet":
        made = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(4, 8),
            attention_levels=(False, True),
            num_res_blocks=1,
            norm_num_groups=4,
            num_head_channels=4,
            num_class_embeds=3,
            with_conditioning=True,
            cross_attention_dim=5,
        )
    elif kind == "critic":
        made = PatchDiscriminator(
            spatial_dims=3,
            channels=4,
            in_channels=1,
            num_layers_d=1,
            norm=("group", {"num_groups": 2}),
        )
    elif kind == "transformer":
        made = DecoderOnlyTransformer(
            num_tokens=7,
            max_seq_len=64,
            attn_layers_dim=8,
            attn_layers_depth=1,
            attn_layers_heads=2,
        )
    else:
        made = {"transposed": Decoder, "repeated": Repeated, "dropping": Dropping}[kind]()
    if kind == "only biases":
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    for parameter in made.parameters():  # away from zero, so that every gradient is there
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return made


def step_on(made: nn.Module) -> Step:
    """Return a step whose loss draws noise from the generator."""

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        x = batch.volumes
        noise = torch.randn(x.shape, generator=generator).to(x)
        found = output(made, x + 0.1 * noise, batch.condition)
        return (found + 0.3).square().flatten(1).mean(1)

    names = tuple(name for name, p in made.named_parameters() if p.requires_grad)
    return Step("step", names, reads_patients=True, loss=loss)


def output(made: nn.Module, x: Tensor, condition: Condition) -> Tensor:
    """Return what the network makes of volumes (B, 1, D, H, W)."""
    found: Any
    if isinstance(made, AutoencoderKL):
        mean, deviation = made.encode(x)
        found = made.decode(mean + 0.1 * deviation)
    elif isinstance(made, DiffusionModelUNet):
        times = torch.full((len(x),), 40)
        context = x.flatten(1)[:, :10].reshape(len(x), 2, 5)
        found = made(x, times, context=context, class_labels=condition.label)
    elif isinstance(made, PatchDiscriminator):
        found = torch.cat([part.flatten(1) for part in made(x)], dim=1)
    elif isinstance(made, DecoderOnlyTransformer):
        found = made((x.flatten(1)[:, :20] > 0).long() * 3)
    else:
        found = made(x)
    return torch.as_tensor(found)


def trained(made: nn.Module) -> list[Tensor]:
    """Return the parameters that learn."""
    return [p for p in made.parameters() if p.requires_grad]


def batch_of(n: int, shape: tuple[int, int, int] = (8, 8, 8), seed: int = 1) -> Batch:
    """Return n volumes in float32 with classes beside them."""
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.rand((n, 1, *shape), generator=generator) * 2 - 1
    return Batch(volumes, Condition(label=torch.arange(n) % 3))


def wide(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return the batch with volumes of another type."""
    return Batch(batch.volumes.to(dtype), batch.condition)
