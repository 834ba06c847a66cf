"""A volume moved, mirrored, turned or cut is still like itself, and like nobody else."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import contrastive
from voxfed.privacy.audit.copies import spaces
from voxfed.privacy.audit.copies.spaces import View, embedding, latent, octants, voxels

SIDE = 12
PEOPLE = draw_phantoms(20, (SIDE,) * 3, np.random.default_rng(1))


@pytest.fixture(autouse=True)
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer shifts than are shipped, so that tests take seconds; the rest is as it is."""
    monkeypatch.setattr(spaces, "SHIFTS", (0, -1, 1))


def shifted(volumes: Tensor, step: tuple[int, int, int], fill: float) -> Tensor:
    """Return volumes moved by whole voxels, one voxel at a time."""
    moved = torch.full_like(volumes, fill)
    for place in itertools.product(*map(range, volumes.shape[2:])):
        source = [x - y for x, y in zip(place, step, strict=True)]
        if all(0 <= x < side for x, side in zip(source, volumes.shape[2:], strict=True)):
            moved[(..., *place)] = volumes[(..., *source)]
    return moved


@pytest.mark.parametrize("step", [(1, 0, 0), (-2, 0, 1), (0, 3, -1)])
def test_a_view_shifts_as_moving_each_voxel_does(step: tuple[int, int, int]) -> None:
    """Sign and axis of a shift: a wrong one would look in the wrong place."""
    drawn = torch.rand((2, 1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    seen = View(shift=step).seen(drawn, (5, 6, 7))
    assert torch.equal(seen, shifted(drawn, step, 0.0).flatten(1))


def test_a_coarser_grid_holds_the_means_of_what_it_covers() -> None:
    """Beside torch's own pooling where sides divide, and the whole mean where they do not."""
    drawn = torch.rand((2, 1, 6, 8, 9), generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool3d(drawn, (2, 2, 3))
    torch.testing.assert_close(spaces._resized(drawn, (3, 4, 3)), pooled)
    odd = spaces._resized(drawn, (4, 5, 7))
    torch.testing.assert_close(odd.mean(), drawn.mean())


def test_the_correlation_is_that_of_residuals_of_a_regression() -> None:
    """One view: the partial correlation, by least squares one pair at a time."""
    made, real = PEOPLE[:4], PEOPLE[4:]
    place = spaces._Place(real)
    found = place.compare(made, [torch.ones(place.shape)], [View()]).samples
    body = (real.mean(0) > spaces.BACKGROUND).flatten().numpy()
    rows, mean = real.flatten(1).double().numpy(), real.mean(0).flatten().double().numpy()
    main = np.linalg.svd((rows - mean) * body, full_matrices=False)[2][: len(real) // 8]
    shared = np.concatenate([[np.ones(len(mean)), mean], main])[:, body].T

    def rest(row: np.ndarray) -> np.ndarray:
        return row[body] - shared @ np.linalg.lstsq(shared, row[body], rcond=None)[0]

    for i, j in itertools.product(range(4), range(len(real))):
        first, second = rest(made[i].flatten().double().numpy()), rest(rows[j])
        expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert found[i, j] == pytest.approx(expected, abs=1e-4)  # float32 over 1,700 voxels


CHANGES = {
    "as it is": lambda x: x,
    "mirrored": lambda x: x.flip([2]),
    "mirrored twice": lambda x: x.flip([3, 4]),
    "shifted": lambda x: shifted(x, (1, -1, 1), -1.0),
    "brighter": lambda x: ((x + 1) * 1.1 - 1),
    "turned": lambda x: torch.from_numpy(
        spaces.View(turn=(1, 10.0)).seen(x + 1, x.shape[2:]).numpy()
    ).reshape(x.shape) - 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_volume_is_nearest_to_itself(name: str) -> None:
    """Alignment: each change of a replay leaves its patient the nearest, by far."""
    alike = voxels(CHANGES[name](PEOPLE), PEOPLE).samples
    own = np.diag(alike).copy()
    np.fill_diagonal(alike, -1)
    assert (own > alike.max(axis=1)).all()
    assert own.min() > 0.85


def test_a_copied_octant_or_middle_is_found_and_the_whole_is_not_alike() -> None:
    """Partial copies: an eighth of a patient in another volume."""
    half = SIDE // 2
    for start in ((0, half, 0), (half // 2,) * 3):
        block = (..., *(slice(x, x + half) for x in start))
        made = PEOPLE[10:].clone()
        made[block] = PEOPLE[:10][block]
        found = octants(made, PEOPLE[:10]).samples
        assert (found.argmax(axis=1) == np.arange(10)).all()
        assert np.diag(found).min() > 0.98
        assert np.diag(voxels(made, PEOPLE[:10]).samples).max() < 0.95


def test_the_blocks_cover_the_volume_once_and_its_middle_once_more() -> None:
    """No place that a partial copy could hide in, at odd sides too."""
    parts = torch.stack(spaces._parts((5, 8, 7)))
    assert (parts[:8].sum(0) == 1).all()
    assert parts[8].sum() > 0


def test_empty_volumes_and_the_mean_are_like_nobody() -> None:
    """What shows no patient must not divide by nothing."""
    blank = torch.stack([torch.zeros_like(PEOPLE[0]), -torch.ones_like(PEOPLE[0])])
    for space in (voxels, octants):
        found = space(torch.cat([blank, PEOPLE.mean(0, keepdim=True)]), PEOPLE)
        assert np.isfinite(found.samples).all()
        assert found.samples[:2].max() < 0.05


def test_features_are_compared_by_cosine_after_the_mean_over_mirrorings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The embedding, with features whose cosine is known by hand."""
    monkeypatch.setattr(spaces, "TURNS", ())
    monkeypatch.setattr(spaces, "NOISES", ())

    def extract(volumes: Tensor) -> np.ndarray:
        return volumes.flatten(1)[:, [0, -1]].double().numpy()

    real = torch.zeros((3, 1, 16, 16, 16))
    real[:, 0, 0, 0, 0] = torch.tensor([1.0, 0.0, 2.0])
    real[:, 0, -1, -1, -1] = torch.tensor([0.0, 1.0, 2.0])
    made = torch.zeros((1, 1, 16, 16, 16))
    made[0, 0, 0, 0, 0], made[0, 0, -1, -1, -1] = 1.0, 3.0
    found = embedding(made, real, extract).samples[0]
    own = np.array([0.0, 2.0])  # (1, 3) less the mean (1, 1)
    views = np.array([[[1, 0], [0, 1], [2, 2]], [[0, 1], [1, 0], [2, 2]], [[0, 0]] * 3]) - 1.0
    lengths = np.linalg.norm(views, axis=2)
    cosines = (views @ own) / np.where(lengths > 0, lengths, 1) / 2
    np.testing.assert_allclose(found, cosines.max(axis=0), atol=1e-6)


def rotated(volumes: Tensor, axis: int, degrees: float) -> Tensor:
    """Return volumes turned by another library, at angles that the search does not try."""
    plane = [other + 2 for other in range(3) if other != axis]
    turned = ndimage.rotate((volumes + 1).numpy(), degrees, axes=plane, reshape=False, order=1)
    return torch.from_numpy(turned - 1).clamp(-1, 1)


def sure(made: Tensor, people: Tensor, extract: Callable[[Tensor], np.ndarray]) -> int:
    """Return how many are nearer to their copy than any two people are to each other."""
    alike = embedding(made, people, extract)
    between = alike.patients[: len(made), len(made) :]
    return int((np.diag(alike.samples[:, : len(made)]) > between.max()).sum())


@pytest.mark.parametrize("degrees", [8.0, -8.0])
@pytest.mark.parametrize("axis", range(3))
def test_turned_patients_are_found_by_features(
    axis: int, degrees: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's features change with a turn that it did not learn to overlook."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extract = contrastive(Encoder()).features
    people = draw_phantoms(40, (16,) * 3, np.random.default_rng(1))
    made = rotated(people[:20], axis, degrees)
    assert sure(made, people, extract) >= 18
    monkeypatch.setattr(spaces, "TURNS", ())
    assert sure(made, people, extract) <= 15


def test_noisy_patients_are_found_by_features_that_see_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As those of the encoder do, to which noise is a fault."""

    def extract(volumes: Tensor) -> np.ndarray:
        means = functional.avg_pool3d(volumes, 4).flatten(1)
        rough = (volumes[..., 1:] - volumes[..., :-1]).square().mean((1, 2, 3, 4))
        return torch.cat([means, 20 * rough[:, None]], 1).double().numpy()

    people = draw_phantoms(40, (16,) * 3, np.random.default_rng(1))
    noise = torch.randn((20, 1, 16, 16, 16), generator=torch.Generator().manual_seed(4))
    made = (people[:20] + 0.2 * noise).clamp(-1, 1)
    assert sure(made, people, extract) >= 18
    monkeypatch.setattr(spaces, "NOISES", ())
    assert sure(made, people, extract) <= 15


def test_latents_are_compared_as_they_are() -> None:
    real = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    found = latent(real, real)
    np.testing.assert_allclose(np.diag(found.samples), 1, atol=1e-6)
    assert np.array_equal(found.samples, found.patients)
