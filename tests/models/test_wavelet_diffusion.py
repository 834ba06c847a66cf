"""The wavelet diffusion model's coefficients are the volume, at odd sides too."""

import torch
from voxfed.models.base import Batch, Denoises
from voxfed.models.wavelet_diffusion import WaveletDiffusion, WaveletDiffusionSpec, _volumes

SMALL = {"channels": (8, 16), "groups": 4, "code": 4, "sampling_steps": 4}
SHAPE = (8, 12, 9)


def make() -> WaveletDiffusion:
    torch.manual_seed(0)
    family = WaveletDiffusion(WaveletDiffusionSpec(shape=SHAPE, denoiser=SMALL))
    with torch.no_grad():
        for weight in family.parameters():  # away from the zeros that a new network starts with
            weight.add_(0.05 * torch.randn_like(weight))
    return family


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volumes() -> torch.Tensor:
    return torch.rand((2, 1, *SHAPE), generator=generator(1)) * 2 - 1


def test_shapes() -> None:
    """A side of 9 is padded to 10 and cut again."""
    family, batch = make(), Batch(volumes())
    assert isinstance(family, Denoises)
    assert family.loss(batch, generator()).shape == (2,)
    assert family.denoising_error(batch, 0.5, generator()).shape == (2,)
    drawn = family.sample(2, generator=generator())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.abs().max() <= 1


def test_what_is_denoised_is_the_volume() -> None:
    """Its coefficients, scaled and padded, give it back; the lowest of them lie in [-1, 1]."""
    family = make()
    found = family._encode(volumes())
    assert torch.allclose(_volumes(found)[..., :9], volumes(), atol=1e-6)
    assert family._encode(torch.ones(1, 1, *SHAPE)).abs().max() < 1
