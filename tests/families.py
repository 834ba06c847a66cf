"""Every family of the registry at a size that tests can afford."""

from __future__ import annotations

from typing import Any

import tomli_w
import torch
from voxfed.models.base import Batch, Condition, Family
from voxfed.models.conditioning import conditioning_of
from voxfed.models.registry import FAMILIES, build
from voxfed.study.plan import StudyPlan

DENOISER = {"channels": [8, 16], "groups": 4, "code": 4, "sampling_steps": 3}
CODES = {"channels": [8, 8], "groups": 4, "entries": 16, "width": 4, "patch": 2}
TINY: dict[str, dict[str, Any]] = {
    "vae": {"channels": [8, 16], "groups": 4, "latent_channels": 2, "code": 5},
    "conditional-vae": {"channels": [8, 16], "groups": 4, "latent_channels": 2, "code": 5},
    "pix2pix": {"channels": [8, 8], "critic_channels": 8, "critic_layers": 1, "groups": 4},
    "cycle-gan": {"channels": [8, 8], "critic_channels": 8, "critic_layers": 1, "groups": 4},
    "wgan-gp": {
        "channels": [8, 8],
        "critic_channels": [4, 8],
        "groups": 4,
        "code": 6,
        "critic_turns": 2,
        "generated": 2,
    },
    "alpha-wgan-gp": {
        "channels": [8, 8],
        "critic_channels": [4, 8],
        "code_critic_width": 8,
        "groups": 4,
        "code": 6,
        "critic_turns": 1,
    },
    "ha-gan": {
        "channels": [8, 8],
        "critic_channels": [4],
        "groups": 4,
        "code": 6,
        "slabs": 2,
    },
    "stylegan2": {
        "channels": [8, 8],
        "critic_channels": [4, 8],
        "code": 6,
        "style": 6,
        "mapping_layers": 2,
        "critic_turns": 1,
        "generated": 2,
    },
    "vqvae": {"codes": CODES, "prior_channels": 8},
    "vqgan": {
        "codes": CODES,
        "prior_channels": 8,
        "critic": {"channels": 8, "groups": 4, "layers": 1},
    },
    "slice-vae": {"channels": [8, 8], "groups": 4, "code": 4},
    "vq-transformer": {"codes": CODES, "heads": 2, "width": 16, "depth": 1},
    "pixel-cnn": {"channels": 8, "dilations": [1, 2]},
    "diffusion": {"denoiser": DENOISER},
    "diffusion-2.5d": {"denoiser": DENOISER},
    "latent-diffusion": {
        "autoencoder": {"channels": [8, 8], "groups": 4, "latent_channels": 2},
        "denoiser": DENOISER,
    },
    "wavelet-diffusion": {"denoiser": DENOISER},
}
TOLD: dict[str, dict[str, Any]] = {
    "conditional-vae": {"kind": "class", "column": "sex", "values": ["F", "M"]},
    "pix2pix": {"kind": "source", "suffix": "T1w"},
    "cycle-gan": {"kind": "source", "suffix": "T1w"},
}
"""What families are told that take no volume without; the others are told nothing."""
SHAPE = (8, 12, 16)


def tiny_plan(name: str, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> StudyPlan:
    """Return a plan of a family at its tiny size; tables in `changes` are merged."""
    table: dict[str, Any] = {
        "name": name.replace(".", "-"),
        "family": name,
        "settings": TINY[name],
        "rounds": 2,
        "local_steps": 2,
        "expected_patients": 3,
        "volumes": {"shape": list(shape), "spacing": [9.0, 9.0, 9.0]},
        "optimiser": {"learning_rate": 1e-3},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "clip_norm": 0.1},
    }
    if name in TOLD:
        table["condition"] = TOLD[name]
        table["volumes"]["modality"] = "FLAIR"
    for key, value in changes.items():
        table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
    return StudyPlan.from_text(tomli_w.dumps(table).encode())


def tiny(name: str, shape: tuple[int, int, int] = SHAPE) -> Family:
    """Return a family at its tiny size."""
    return build(tiny_plan(name, shape))


def balls(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> torch.Tensor:
    """Return n soft balls of random place and size on black, (n, 1, D, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, s) for s in shape], indexing="ij"))
    centre = (torch.rand((n, 3, 1, 1, 1), generator=generator) - 0.5) * 0.6
    radius = 0.4 + 0.3 * torch.rand((n, 1, 1, 1), generator=generator)
    distance = (grid - centre).square().sum(1).sqrt()
    return (2 * torch.sigmoid(8 * (radius - distance)) - 1).unsqueeze(1)


def told(name: str, n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Condition:
    """Return n conditions that a family takes; images are of noise."""
    takes = conditioning_of(tiny(name, shape), shape)
    return takes.example(n, torch.Generator().manual_seed(seed))


def batch_of(name: str, n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Batch:
    """Return n balls with what a family is told of them."""
    return Batch(balls(n, shape, seed), told(name, n, shape, seed))


NAMES = tuple(FAMILIES)
