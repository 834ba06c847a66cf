"""Critics score volumes one by one, their slopes are exact, and spectral norms do not move."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv3d
from voxfed.models.critic import (
    Critic,
    UnitNorm,
    between,
    critic_loss,
    generator_loss,
    patch_critic,
    slopes,
)

REAL, FAKE = torch.tensor([0.5, -2.0]), torch.tensor([-0.25, 3.0])


def test_the_losses_are_the_papers() -> None:
    """Oracle: each game by hand on two pairs of scores."""
    assert torch.allclose(critic_loss("wasserstein", REAL, FAKE), torch.tensor([-0.75, 5.0]))
    assert torch.allclose(critic_loss("hinge", REAL, FAKE), torch.tensor([0.5 + 0.75, 3.0 + 4.0]))
    squares = torch.tensor([(0.25 + 0.0625) / 2, (9.0 + 9.0) / 2])
    assert torch.allclose(critic_loss("least-squares", REAL, FAKE), squares)
    assert torch.allclose(generator_loss("wasserstein", FAKE), -FAKE)
    assert torch.allclose(generator_loss("hinge", FAKE), -FAKE)
    assert torch.allclose(generator_loss("least-squares", FAKE), (FAKE - 1) ** 2 / 2)


def test_the_logistic_game_is_cross_entropy() -> None:
    """Oracle: torch's binary cross entropy of logits."""
    ones, zeros = torch.ones(2), torch.zeros(2)
    expected = [
        binary_cross_entropy_with_logits(scores, truth, reduction="none")
        for scores, truth in ((REAL, ones), (FAKE, zeros), (FAKE, ones))
    ]
    assert torch.allclose(critic_loss("logistic", REAL, FAKE), expected[0] + expected[1])
    assert torch.allclose(generator_loss("logistic", FAKE), expected[2])


def test_patch_scores_are_averaged_within_a_volume() -> None:
    real, fake = torch.randn(2, 1, 3, 2, 2), torch.randn(2, 1, 3, 2, 2)
    expected = (fake - real).mean((1, 2, 3, 4))
    assert torch.allclose(critic_loss("wasserstein", real, fake), expected)
    assert generator_loss("hinge", fake).shape == (2,)


def test_slopes_are_each_points_own() -> None:
    """Oracle: |x|^2 / 2 has slope |x|, and a linear score the length of its weight."""
    points = torch.randn(3, 1, 2, 3, 4)
    lengths = points.flatten(1).norm(dim=1)
    assert torch.allclose(slopes(lambda x: x.flatten(1).square().sum(1) / 2, points), lengths)
    linear = nn.Linear(24, 1)
    found = slopes(lambda x: linear(x.flatten(1)).squeeze(1), points)
    assert torch.allclose(found, linear.weight.norm().expand(3))
    with torch.no_grad():  # an inspection measures losses so
        assert torch.allclose(slopes(lambda x: linear(x.flatten(1)).squeeze(1), points), found)


def test_slopes_can_be_trained() -> None:
    """Oracle: the gradient of |w| with respect to w is w / |w|."""
    linear = nn.Linear(8, 1)
    slopes(lambda x: linear(x.flatten(1)).squeeze(1), torch.randn(1, 1, 2, 2, 2)).sum().backward()
    assert linear.weight.grad is not None
    assert torch.allclose(linear.weight.grad, linear.weight / linear.weight.norm(), atol=1e-6)


def test_a_point_between_lies_on_its_own_line() -> None:
    real, fake = torch.zeros(4, 1, 2, 2, 2), torch.arange(1.0, 5).reshape(4, 1, 1, 1, 1)
    points = between(real, fake.expand_as(real), torch.Generator().manual_seed(0))
    share = points / fake
    assert torch.allclose(share, share[:, :, :1, :1, :1].expand_as(share))
    assert len(share.unique()) == 4
    assert 0 <= share.min() < share.max() <= 1


@pytest.mark.parametrize("layer", [nn.Conv3d(4, 6, 3), nn.Conv3d(1, 32, 2), nn.Linear(5, 1)])
def test_unit_norm_divides_by_the_largest_singular_value(layer: nn.Module) -> None:
    """Oracle: torch's singular values; tall and wide weights."""
    weight = layer.weight.detach()
    normed = UnitNorm()(weight)
    values = torch.linalg.svdvals(weight.flatten(1))
    assert torch.allclose(normed * values[0], weight, atol=1e-5)


def test_a_spectral_critic_is_smooth_and_has_no_buffers() -> None:
    """Its slope is at most the product of its layers' norms, 1 each; nothing moves in passing."""
    torch.manual_seed(0)
    critic = Critic((8, 8, 8), (4, 8), spectral=True)
    with torch.no_grad():
        for weight in critic.parameters():
            weight.mul_(50.0)
    assert list(critic.buffers()) == []
    volumes = torch.randn(3, 1, 8, 8, 8)
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    first = critic(volumes)
    assert torch.equal(first, critic(volumes))
    assert all(torch.equal(before[name], x) for name, x in critic.state_dict().items())
    assert slopes(critic, volumes).max() <= 1 + 1e-5


@pytest.mark.parametrize(("kernel", "stride", "windows"), [(4, 2, 8), (3, 2, 8), (3, 1, 27)])
def test_a_normed_convolution_lengthens_nothing(kernel: int, stride: int, windows: int) -> None:
    """Oracle: the largest singular value of the convolution as one dense matrix.

    The bound holds, and a kernel whose windows all agree comes near it.
    """
    every = torch.eye(6**3).reshape(-1, 1, 6, 6, 6)
    torch.manual_seed(0)
    for weight in (torch.randn(3, 1, *(kernel,) * 3), torch.ones(1, 1, *(kernel,) * 3)):
        normed = UnitNorm(windows)(weight)
        dense = conv3d(every, normed, stride=stride, padding=1).flatten(1)
        stretch = float(torch.linalg.svdvals(dense)[0])
        assert stretch <= 1 + 1e-5
    assert stretch > 0.5


@pytest.mark.parametrize("conditions", [0, 3])
def test_a_critic_scores_odd_volumes_one_by_one(conditions: int) -> None:
    torch.manual_seed(0)
    critic = Critic((9, 12, 5), (4, 8), conditions=conditions)
    volumes = torch.randn(2, 1, 9, 12, 5)
    rows = torch.randn(2, conditions) if conditions else None
    scores = critic(volumes, rows)
    assert scores.shape == (2,)
    alone = critic(volumes[1:], None if rows is None else rows[1:])
    assert torch.allclose(scores[1:], alone, atol=1e-6)
    if rows is not None:
        assert not torch.allclose(scores, critic(volumes, -rows))


@pytest.mark.parametrize("shape", [(4, 5, 6), (16, 16, 16)])
def test_a_patch_critic_has_scores_at_any_shape_and_no_batch_norm(shape: tuple[int, ...]) -> None:
    critic = patch_critic(2, 8, 2, 4)
    scores = critic(torch.randn(2, 2, *shape))[-1]
    assert scores.shape[:2] == (2, 1)
    assert list(critic.buffers()) == []
    assert any(isinstance(layer, nn.GroupNorm) for layer in critic.modules())
