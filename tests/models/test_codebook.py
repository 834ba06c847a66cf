"""The codebook takes the nearest entry, moves by gradient alone, and keeps volumes apart."""

import torch
from torch.nn import functional
from voxfed.models.base import Batch, Step
from voxfed.models.codebook import Codebook
from voxfed.privacy.gradients.recorder import Recorder


def make(entries: int = 7, width: int = 3) -> Codebook:
    torch.manual_seed(0)
    return Codebook(entries, width, commitment=0.25)


def test_it_takes_the_nearest_direction() -> None:
    """Oracle: brute force over entries and positions."""
    codebook, features = make(), torch.randn(2, 3, 2, 3, 4) + 3
    found = codebook(features)
    entries = functional.normalize(codebook.embedding.weight, dim=1)
    mean = features.mean((2, 3, 4), keepdim=True)
    features = (features - mean) / features.std((2, 3, 4), keepdim=True, correction=0)
    for volume in range(2):
        for d, h, w in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))):
            direction = functional.normalize(features[volume, :, d, h, w], dim=0)
            distances = (entries - direction).square().sum(1)
            assert found.indices[volume, d, h, w] == distances.argmin()
    assert torch.allclose(found.vectors, codebook.look_up(found.indices), atol=1e-5)


def test_the_error_is_both_distances_and_each_moves_its_own_side() -> None:
    """Oracle: the squared distance by hand; the codebook's term has weight 1, commitment 1/4."""
    codebook = make()
    features = torch.randn(2, 3, 4).requires_grad_()
    found = codebook(features)
    directions = functional.normalize(functional.instance_norm(features), dim=1)
    distance = (directions - found.vectors / codebook.length).square().sum(1)
    # the distance is nought in `vectors` up to the entries, which are unit vectors too
    assert torch.allclose(found.error, 1.25 * distance.mean(1), rtol=1e-4)
    parts = torch.autograd.grad(found.error.sum(), (features, codebook.embedding.weight))
    whole = torch.autograd.grad(
        (directions - functional.normalize(codebook.embedding(found.indices), dim=2).mT)
        .square()
        .sum(1)
        .mean(1)
        .sum(),
        (features, codebook.embedding.weight),
    )
    assert torch.allclose(parts[0], 0.25 * whole[0], atol=1e-6)
    assert torch.allclose(parts[1], whole[1], atol=1e-6)


def test_the_gradient_passes_straight_through() -> None:
    """What the decoder asks of an entry, the feature's direction is asked."""
    codebook = make()
    features = torch.randn(1, 3, 5).requires_grad_()
    weight = torch.randn(1, 3, 5)
    (found,) = torch.autograd.grad((codebook(features).vectors * weight).sum(), features)
    direct = codebook.length * functional.normalize(functional.instance_norm(features), dim=1)
    (expected,) = torch.autograd.grad((direct * weight).sum(), features)
    assert torch.allclose(found, expected, atol=1e-6)


def test_each_volumes_gradient_of_the_codebook_is_recorded() -> None:
    codebook = make()

    def loss(batch: Batch, _: torch.Generator) -> torch.Tensor:
        found = codebook(batch.volumes)
        return found.error + found.vectors.flatten(1).mean(1)

    step = Step("codes", ("embedding.weight",), reads_patients=True, loss=loss)
    recorder = Recorder(codebook, [codebook.embedding.weight])
    assert recorder.agrees(step, Batch(torch.randn(3, 3, 2, 2, 2)))


def test_nothing_moves_but_by_gradient() -> None:
    """Moving averages of features would be buffers, or move the entries in a forward pass."""
    codebook = make()
    before = codebook.embedding.weight.detach().clone()
    codebook.train()
    codebook(torch.randn(2, 3, 4, 4, 4))
    assert list(codebook.buffers()) == []
    assert torch.equal(codebook.embedding.weight, before)
