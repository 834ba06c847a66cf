"""The classifier and the segmenter learn what is plain to see, from their generator alone."""

import pytest
import torch
from torch import Tensor
from voxfed.models.quality.downstream import (
    Segmenter,
    segment,
    train_classifier,
    train_segmenter,
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy volumes (n, 1, 16, 16, 16) with a bright cube each, and where it is."""
    generator = draws(seed)
    masks = torch.zeros(n, 1, 16, 16, 16, dtype=torch.int64)
    for mask in masks:
        x, y, z = torch.randint(1, 10, (3,), generator=generator).tolist()
        mask[0, x : x + 5, y : y + 5, z : z + 5] = 1
    noise = 0.3 * torch.randn(masks.shape, generator=generator)
    return (masks.float() - 0.5 + noise).clamp(-1, 1), masks


def test_the_classifier_counts_rare_classes_as_much() -> None:
    """Nine in ten are of one class: guessing that one is no way out."""
    volumes, _ = blobs(40, 0)
    labels = torch.tensor([1] * 4 + [0] * 36)
    volumes[labels == 1, ..., :4, :4] = 0.9
    network = train_classifier(volumes, labels, 2, steps=60, generator=draws())
    others, _ = blobs(20, 1)
    others[:10, ..., :4, :4] = 0.9
    found = network(others).argmax(1)
    assert found[:10].float().mean() > 0.8
    assert found[10:].float().mean() < 0.2


def test_the_segmenter_finds_the_cube() -> None:
    """Dice on new volumes is high after a short training."""
    network = train_segmenter(*blobs(16, 0), 2, steps=80, generator=draws())
    volumes, masks = blobs(8, 1)
    found = segment(network, volumes)
    assert found.shape == masks.shape
    assert found.dtype == torch.int64
    assert 2 * (found & masks).sum() / (found + masks).sum() > 0.6


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 18, 23), (16, 21, 20)])
def test_the_segmenter_passes_every_shape(shape: tuple[int, int, int]) -> None:
    """Padding comes and goes on the far side: a voxel keeps its place."""
    torch.manual_seed(0)
    segmenter = Segmenter(3).eval()
    volumes = torch.rand(1, 1, *shape, generator=draws()) * 2 - 1
    padded = -torch.ones(1, 1, *(side + -side % 4 for side in shape))
    padded[:, :, : shape[0], : shape[1], : shape[2]] = volumes
    found = segmenter(volumes)
    assert found.shape == (1, 3, *shape)
    expected = segmenter(padded)[:, :, : shape[0], : shape[1], : shape[2]]
    assert torch.allclose(found, expected)


def test_the_same_generator_gives_the_same_weights() -> None:
    """A figure can be computed again, and no other draw moves."""
    volumes, masks = blobs(4, 0)
    labels = torch.tensor([0, 1, 0, 1])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for one, two in (
        [train_classifier(volumes, labels, 2, steps=2, generator=draws()) for _ in range(2)],
        [train_segmenter(volumes, masks, 2, steps=2, generator=draws()) for _ in range(2)],
    ):
        state = two.state_dict()
        assert all(torch.equal(x, state[name]) for name, x in one.state_dict().items())
    assert torch.equal(torch.rand(1), expected)
