"""What families offer an audit agrees with what they compute elsewhere."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from families import DENOISER, NAMES, SHAPE, TINY, batch_of, tiny, tiny_plan, told
from voxfed.models.base import (
    Batch,
    Decodes,
    Denoises,
    Embeds,
    Exposed,
    Exposes,
    Family,
    HasImportanceWeights,
    HasLikelihoodBound,
    rows_of,
)
from voxfed.models.diffusion_25d import Diffusion25d
from voxfed.models.latent_diffusion import LatentDiffusion
from voxfed.models.registry import FAMILIES, build
from voxfed.models.vae import Vae
from voxfed.models.vqvae import Vqvae

DENOISING = ("diffusion", "diffusion-2.5d", "latent-diffusion", "wavelet-diffusion")
WEIGHING = ("vae", "conditional-vae", "slice-vae", "latent-diffusion")
DECODING = ("wgan-gp", "alpha-wgan-gp", "ha-gan", "stylegan2")
CODED = ("vqvae", "vqgan", "vq-transformer")
CUBE, DRAWS = (8, 8, 8), 400
EMBEDDING = (*WEIGHING, *CODED, "alpha-wgan-gp", "ha-gan")


def stirred(family: Family) -> Family:
    """Return a family away from the zeros that a new one starts with."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draws))
    return family.eval()


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        (Exposes, DENOISING),
        (HasImportanceWeights, WEIGHING),
        (Decodes, DECODING),
        (Embeds, EMBEDDING),
    ],
)
def test_who_offers_what(protocol: type, names: tuple[str, ...]) -> None:
    """A family that lost a method would no longer be asked, and nobody would notice."""
    assert {name for name in NAMES if isinstance(tiny(name), protocol)} == set(names)


def noised_error(seen: Exposed, eps: torch.Tensor, time: float) -> torch.Tensor:
    signal, noise = seen.level(time)
    found = seen.predict(signal * seen.clean + noise * eps, time)
    return (found - eps).square().flatten(1).mean(1)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("name", ["diffusion", "diffusion-2.5d", "wavelet-diffusion"])
def test_what_is_exposed_is_what_the_denoising_error_measures(name: str, prediction: str) -> None:
    """Volumes noised by hand, from the same draws, have the error that the family tells itself."""
    settings = {**TINY[name], "denoiser": {**DENOISER, "prediction": prediction}}
    family = stirred(build(tiny_plan(name, settings=settings)))
    assert isinstance(family, Exposes)
    assert isinstance(family, Denoises)
    with torch.no_grad():
        seen, draws = family.exposed(batch := batch_of(name, 2)), generator()
        if name == "diffusion-2.5d":  # one slab's noise after the other
            parts = [torch.randn(part.shape, generator=draws) for part in seen.clean.unbind(1)]
            eps = torch.stack(parts, 1)
        else:
            eps = torch.randn(seen.clean.shape, generator=draws)
        found = noised_error(seen, eps, 0.2)
    assert torch.allclose(found, family.denoising_error(batch, 0.2, generator()), rtol=1e-4)


@pytest.mark.parametrize("first_stage", ["kl", "vqgan"])
def test_latents_are_exposed_as_they_are_noised(first_stage: str) -> None:
    """The mean of a KL autoencoder's latents, and a codebook's entries."""
    settings = {**TINY["latent-diffusion"], "first_stage": first_stage}
    settings["codes"] = TINY["vqvae"]["codes"]
    settings["critic"] = TINY["vqgan"]["critic"]
    plan = tiny_plan("latent-diffusion", settings=settings)
    family = cast(LatentDiffusion, stirred(build(plan)))
    batch = batch_of("latent-diffusion", 1)
    seen = family.exposed(batch)
    drawn = torch.stack([family._encode(batch.volumes, generator(i)) for i in range(200)])
    spread = drawn.std(0) / math.sqrt(200)
    assert bool(((drawn.mean(0) - seen.clean).abs() <= 5 * spread + 1e-5).all())
    assert torch.equal(family.embed(batch), seen.clean.flatten(1))
    assert seen.predict(seen.clean, 0.3).shape == seen.clean.shape


def test_every_slab_is_seen_with_its_true_predecessors() -> None:
    """What is said of a slab's state moves with the volume's slices before it, never with states.

    16 slices are four slabs of four; a slab sees the four slices before it.
    """
    family = cast(Diffusion25d, stirred(tiny("diffusion-2.5d")))
    volumes = batch_of("diffusion-2.5d", 2).volumes
    changed = volumes.clone()
    changed[0, ..., 1] += 0.3
    with torch.no_grad():
        seen, other = family.exposed(Batch(volumes)), family.exposed(Batch(changed))
        state = torch.randn(seen.clean.shape, generator=generator())
        first = seen.predict(state, 0.2)
        moved = (other.predict(state, 0.2) != first).flatten(2).any(2)
        state[0, 0] += 1
        noisier = (seen.predict(state, 0.2) != first).flatten(2).any(2)
    assert moved.tolist() == [[False, True, False, False], [False] * 4]
    assert noisier.tolist() == [[True, False, False, False], [False] * 4]
    assert torch.equal(seen.clean[1, 2].movedim(0, -1), volumes[1, 0, ..., 8:12])


@pytest.mark.parametrize("kind", ["class", "attributes", "mask", "source"])
@pytest.mark.parametrize("name", DENOISING)
def test_conditions_are_seen_row_by_row(name: str, kind: str) -> None:
    """A row is the same alone and beside others, whatever it is told."""
    entry, settings = FAMILIES[name], {**TINY[name], "condition": kind, "shape": SHAPE}
    family = stirred(entry.family(entry.spec.model_validate(settings)))
    assert isinstance(family, Exposes)
    conditions = family.spec.conditioning.example(3, generator())  # type: ignore[attr-defined]
    batch = Batch(batch_of(name, 3).volumes, conditions)
    with torch.no_grad():
        seen, alone = family.exposed(batch), family.exposed(rows_of(batch, slice(1, 2)))
        found = seen.predict(seen.clean, 0.2)[1:2]
        assert torch.allclose(found, alone.predict(alone.clean, 0.2), atol=1e-5)


def repeated(name: str) -> Batch:
    """One volume many times, with what the family is told of it."""
    return rows_of(batch_of(name, 1, CUBE), torch.zeros(DRAWS, dtype=torch.int64))


def agree(weights: torch.Tensor, bounds: torch.Tensor) -> None:
    """Two rows of the same draws have one mean, within five standard errors of the difference."""
    difference = weights.double() - bounds.double()
    error = difference.std() / math.sqrt(len(difference))
    assert abs(difference.mean()) < 5 * error
    assert error < 0.5  # nats


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_the_mean_weight_of_a_vae_is_minus_its_loss(reconstruction: str) -> None:
    """The evidence bound two ways: drawn, and with the KL in closed form as training has it."""
    settings = {**TINY["vae"], "kl_weight": 0.3, "reconstruction": reconstruction}
    family = cast(Vae, stirred(build(tiny_plan("vae", CUBE, settings=settings))))
    batch = repeated("vae")
    constant = math.log(2 * 0.3) if reconstruction == "l1" else math.log(math.pi * 0.3) / 2
    with torch.no_grad():
        bounds = -(8**3) * (family.loss(batch, generator(1)) / 0.3 + constant)
    agree(family.log_weight(batch, generator(1)), bounds)


def test_the_mean_weight_of_a_conditional_vae_is_its_own_bound() -> None:
    """The bound of p(x | c), whose prior is told the condition."""
    family = stirred(tiny("conditional-vae", CUBE))
    assert isinstance(family, HasImportanceWeights)
    assert isinstance(family, HasLikelihoodBound)
    batch = repeated("conditional-vae")
    agree(
        family.log_weight(batch, generator(1)),
        family.likelihood_bound(batch, generator(1)),
    )


def test_the_mean_weight_of_a_kl_autoencoder_is_minus_its_loss() -> None:
    settings = {"autoencoder": {**TINY["latent-diffusion"]["autoencoder"], "kl_weight": 0.3}}
    plan = tiny_plan("latent-diffusion", CUBE, settings={**TINY["latent-diffusion"], **settings})
    family = cast(LatentDiffusion, stirred(build(plan)))
    scale, batch = 0.3, repeated("latent-diffusion")
    with torch.no_grad():
        losses = family.codes.loss(batch, generator(1))  # type: ignore[operator]
    bounds = -(8**3) * (losses / scale + math.log(2 * scale))
    agree(family.log_weight(batch, generator(1)), bounds)


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_a_vae_whose_kl_weighs_nothing_has_weights_too(reconstruction: str) -> None:
    """No scale of a likelihood follows from it; an audit of it must not stop at a division."""
    settings = {**TINY["vae"], "kl_weight": 0.0, "reconstruction": reconstruction}
    family = cast(Vae, stirred(build(tiny_plan("vae", CUBE, settings=settings))))
    assert bool(family.log_weight(batch_of("vae", 2, CUBE), generator()).isfinite().all())


def test_a_codebooks_weight_is_drawn_by_nobody() -> None:
    """By hand: the Laplace round the one reconstruction, and 16 entries alike at each place."""
    settings = {**TINY["latent-diffusion"], "first_stage": "vqgan"}
    settings |= {"codes": TINY["vqvae"]["codes"], "critic": TINY["vqgan"]["critic"]}
    plan = tiny_plan("latent-diffusion", settings=settings)
    family = cast(LatentDiffusion, stirred(build(plan)))
    batch = batch_of("latent-diffusion", 2)
    error = (family.reconstruct(batch) - batch.volumes).abs() / 0.1 + math.log(0.2)
    expected = -error.flatten(1).sum(1) - 2 * 3 * 4 * math.log(16)
    assert torch.allclose(family.log_weight(batch, generator()), expected)


@pytest.mark.parametrize("name", DECODING)
def test_a_sample_is_the_decoded_code(name: str) -> None:
    """With the codes of the same generator; stylegan2's noise has no strength at first."""
    family = tiny(name).eval()
    assert isinstance(family, Decodes)
    condition = told(name, 2)
    codes = family.codes(2, generator())
    assert codes.std() > 0.5
    volumes = family.decode(codes.requires_grad_(), condition)
    made = family.sample(2, condition=condition, generator=generator())
    assert torch.equal(volumes.clamp(-1, 1), made)
    (steep,) = torch.autograd.grad(volumes[0].square().sum(), codes)
    assert steep[0].abs().max() > 0
    assert steep[1].abs().max() == 0


def test_decoding_draws_no_noise() -> None:
    """A StyleGAN2 whose noise has strength decodes a code to one volume, the mean of none."""
    family = stirred(tiny("stylegan2"))
    assert isinstance(family, Decodes)
    codes = family.codes(1, generator())
    with torch.no_grad():
        assert torch.equal(family.decode(codes), family.decode(codes))
    made = family.sample(1, generator=generator())
    assert not torch.equal(family.decode(codes).clamp(-1, 1), made)


@pytest.mark.parametrize("name", EMBEDDING)
def test_an_embedding_is_a_row_a_volume(name: str) -> None:
    """A row depends on its own volume alone, and two volumes have two."""
    family = stirred(tiny(name))
    assert isinstance(family, Embeds)
    batch = batch_of(name, 3)
    rows = family.embed(batch)
    assert rows.shape[0] == 3
    assert rows.dim() == 2
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    assert torch.allclose(family.embed(rows_of(batch, slice(2, 3))), rows[2:], atol=1e-5)


@pytest.mark.parametrize("name", CODED)
def test_codes_embedded_decode_to_the_reconstruction(name: str) -> None:
    family = cast(Vqvae, stirred(tiny(name)))
    batch = batch_of(name, 2)
    vectors = family.embed(batch).reshape(2, -1, *family.codes.grid)
    with torch.no_grad():
        decoded = family.codes.decode(vectors).clamp(-1, 1)
    assert torch.allclose(decoded, family.reconstruct(batch), atol=1e-5)
