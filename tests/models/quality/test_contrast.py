"""The phantom encoder learns to tell phantoms apart, and its distances mean what they should."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d
from voxfed.models.quality.contrast import change, draw_phantoms, nt_xent, train_encoder
from voxfed.models.quality.distances import kid
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import Extractor, contrastive

SHAPE = (16, 16, 16)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def retrieved(extractor: Extractor, volumes: Tensor) -> float:
    """Return the share of volumes whose other view is nearest among all other views."""
    generator = draws(1)
    views = [extractor.features(change(volumes, SHAPE, generator)) for _ in range(2)]
    unit = [view / np.linalg.norm(view, axis=1, keepdims=True) for view in views]
    return float(((unit[0] @ unit[1].T).argmax(1) == np.arange(len(volumes))).mean())


@pytest.fixture(scope="module")
def trained() -> Extractor:
    return train_encoder(SHAPE, steps=120, generator=draws())


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return draw_phantoms(48, SHAPE, np.random.default_rng(1))


def test_the_loss_is_that_of_the_paper() -> None:
    """A loop over pairs, as equation (1) of the paper has it."""
    rows = torch.randn(6, 4, generator=draws(), dtype=torch.float64)
    total = 0.0
    for i in range(6):
        cosines = [
            float(rows[i] @ rows[k] / (rows[i].norm() * rows[k].norm())) / 0.5 for k in range(6)
        ]
        below = sum(math.exp(cosines[k]) for k in range(6) if k != i)
        total -= math.log(math.exp(cosines[(i + 3) % 6]) / below)
    assert float(nt_xent(rows, 0.5)) == pytest.approx(total / 6)


def test_a_short_training_tells_new_phantoms_apart(trained: Extractor, held_out: Tensor) -> None:
    """Two views of a held-out phantom find each other more often than without training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = contrastive(Encoder())
    before, after = retrieved(untrained, held_out), retrieved(trained, held_out)
    assert after > before + 0.1
    assert after > 5 / len(held_out)  # 1 in 48 by chance


def test_features_are_centred_and_on_a_sphere(trained: Extractor, held_out: Tensor) -> None:
    """The scale of FID and KID does not depend on how long the encoder was trained."""
    features = trained.features(held_out)
    assert np.allclose(np.linalg.norm(features, axis=1), 8.0, atol=1e-4)
    assert np.abs(features.mean(0)).max() < 0.8  # 5 standard errors at 48


def test_what_is_wrong_is_far_from_phantoms_and_phantoms_are_near(
    trained: Extractor, held_out: Tensor
) -> None:
    """The distances that rest on the features order what anybody can see."""
    near, other = trained.features(held_out[:24]), held_out[24:]
    noise = torch.randn(other.shape, generator=draws(2)).clamp(-1, 1)
    blank = 0.1 * other + 0.9 * other.mean(0)
    blurred = avg_pool3d(other, 5, stride=1, padding=2, count_include_pad=False)
    same = kid(near, trained.features(other))
    assert abs(same) < 0.5
    for wrong in (noise, blank, blurred):
        assert kid(near, trained.features(wrong)) > same + 1


def test_two_trainings_from_one_seed_are_one_file() -> None:
    """A coordinator who lost the encoder trains the same again."""
    first, second = (train_encoder(SHAPE, steps=2, generator=draws(3)) for _ in range(2))
    assert first.content == second.content
    assert first.content != train_encoder(SHAPE, steps=2, generator=draws(4)).content


def test_progress_is_told_and_other_randomness_is_left_alone() -> None:
    """A bar can be drawn, and training an encoder changes no draw of anybody else."""
    seen: list[tuple[int, int]] = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_encoder(
        SHAPE,
        steps=3,
        generator=draws(),
        progress=lambda step, steps, loss: seen.append((step, steps)),
    )
    assert torch.equal(torch.rand(1), expected)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_phantoms_fill_any_grid() -> None:
    """The field of view is the grid, whatever its sides, in the range of a study's volumes."""
    volumes = draw_phantoms(2, (16, 20, 24), np.random.default_rng(0))
    assert volumes.shape == (2, 1, 16, 20, 24)
    assert volumes.dtype == torch.float32
    assert volumes.amin((1, 2, 3, 4)).tolist() == [-1.0, -1.0]
    assert volumes.amax((1, 2, 3, 4)).tolist() == [1.0, 1.0]
    assert volumes[:, :, 0].mean() < -0.5 < volumes[:, :, 8].mean()  # air beside the body


def test_changes_mirror_left_and_right_only() -> None:
    """A body upside down or back to front is a fault that features must show."""
    bright: list[tuple[bool, ...]] = []
    for axis in range(3):
        volume = -torch.ones(64, 1, *SHAPE)
        volume.narrow(2 + axis, 11, 4).fill_(1.0)
        seen = change(volume, SHAPE, draws())
        middle = torch.arange(16.0).sub(7.5).reshape([-1 if i == axis else 1 for i in range(3)])
        side = ((seen[:, 0] + 1) * middle).sum((1, 2, 3)) > 0
        bright.append((bool(side.any()), bool((~side).any())))
    assert bright == [(True, True), (True, False), (True, False)]


def test_changes_are_of_the_size_asked_for_and_new_each_time() -> None:
    """Views of several sizes let the encoder pass grids that it was not trained at."""
    volumes, generator = draw_phantoms(2, SHAPE, np.random.default_rng(0)), draws()
    first, second = (change(volumes, (16, 18, 20), generator) for _ in range(2))
    assert first.shape == (2, 1, 16, 18, 20)
    assert not torch.equal(first, second)
    assert first.abs().max() <= 1
