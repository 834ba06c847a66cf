"""Scores of samples alone: a generator that replays scans is caught, a fresh one is not."""

import math

import pytest
import torch
from families import balls, tiny
from torch import Tensor
from voxfed.models.base import Batch
from voxfed.privacy.audit.scores.nearest import NEAREST, SCORES, distances, mean_nearest, radius
from voxfed.privacy.audit.scores.score import Context, Score

SHAPE = (8, 8, 8)
NEAREST_SAMPLE, MONTE_CARLO = SCORES


def scores(score: Score, context: Context, volumes: Tensor) -> list[float]:
    measure = score.prepare(tiny("vae", SHAPE), context)
    return [float(measure(Batch(volume[None]))) for volume in volumes]


def auc(members: list[float], others: list[float]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    return sum(pairs) / len(pairs)


def replayed(scans: Tensor, n: int) -> Batch:
    """Return n scans in turn, each with its own noise."""
    made = scans[torch.arange(n) % len(scans)]
    return Batch(made + 0.05 * torch.randn(made.shape, generator=torch.Generator().manual_seed(0)))


def references(n: int) -> list[Batch]:
    return [Batch(scan[None]) for scan in balls(n, SHAPE, seed=99)]


def test_distances_are_root_mean_squares() -> None:
    """Volume by volume, also across the blocks that they are taken in."""
    volume, others = balls(1, SHAPE), balls(70, SHAPE, seed=1)
    expected = [float((volume[0] - other).square().mean().sqrt()) for other in others]
    assert distances(volume, others).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_nearest_are_averaged() -> None:
    """Five of the distances, or all where there are fewer."""
    found = torch.tensor([9.0, 1, 8, 2, 7, 3, 6, 4, 5])
    assert float(mean_nearest(found)) == pytest.approx(sum(range(1, NEAREST + 1)) / NEAREST)
    assert float(mean_nearest(found[:2])) == pytest.approx(5.0)


def test_the_radius_is_the_median_distance_to_another_sample() -> None:
    """No sample is its own neighbour."""
    made, nearest = balls(21, SHAPE), []
    for n in range(21):
        others = torch.cat([made[:n], made[n + 1 :]])
        nearest.append(float(distances(made[n : n + 1], others).min()))
    assert float(radius(made)) == pytest.approx(sorted(nearest)[10])


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_generator_that_replays_is_caught(score: Score, calibrated: bool) -> None:
    """Members have samples about them and others have not, with and without reference scans."""
    members, others = balls(10, SHAPE, seed=1), balls(10, SHAPE, seed=2)
    reference = references(12) if calibrated else []
    context = Context(seed=0, made=replayed(members, 100), reference=reference)
    assert auc(scores(score, context, members), scores(score, context, others)) >= 0.9


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_generator_of_fresh_scans_is_not_caught(score: Score, calibrated: bool) -> None:
    """Samples of the same kind as all patients lie no nearer to any."""
    members, others = balls(60, SHAPE, seed=1), balls(60, SHAPE, seed=2)
    context = Context(
        seed=0,
        made=Batch(balls(100, SHAPE, seed=3)),
        reference=references(30) if calibrated else [],
    )
    found = auc(scores(score, context, members), scores(score, context, others))
    assert 0.4 < found < 0.6  # a standard deviation is 0.053


def test_calibration_divides_by_how_near_references_come() -> None:
    """The plain score is minus a log distance; the calibrated one that of a ratio of distances."""
    scans, made = balls(3, SHAPE, seed=1), balls(20, SHAPE)
    reference = references(7)
    plain = scores(NEAREST_SAMPLE, Context(seed=0, made=Batch(made)), scans)
    context = Context(seed=0, made=Batch(made), reference=reference)
    calibrated = scores(NEAREST_SAMPLE, context, scans)
    others = torch.cat([one.volumes for one in reference])
    for scan, before, after in zip(scans, plain, calibrated, strict=True):
        near = float(mean_nearest(distances(scan[None], made)))
        away = float(mean_nearest(distances(scan[None], others)))
        assert before == pytest.approx(-math.log(near), rel=1e-5)
        assert after == pytest.approx(math.log(away / near), abs=1e-5)


def test_a_scan_that_is_given_back_bit_by_bit_has_a_score() -> None:
    """No distance is no reason for a score that is not finite; it is the highest of all."""
    scans = balls(6, SHAPE)
    context = Context(seed=0, made=Batch(scans[torch.arange(30) % 5]))
    for score in SCORES:
        found = scores(score, context, scans)
        assert all(math.isfinite(value) for value in found)
        assert min(found[:5]) > found[5]


def test_the_monte_carlo_score_is_a_share_of_samples() -> None:
    """How many lie within the radius."""
    scans, made = balls(5, SHAPE, seed=1), balls(40, SHAPE)
    found = scores(MONTE_CARLO, Context(seed=0, made=Batch(made)), scans)
    for scan, score in zip(scans, found, strict=True):
        near = [float((scan - one).square().mean().sqrt()) <= float(radius(made)) for one in made]
        assert score == pytest.approx(sum(near) / 40)


def test_both_need_samples() -> None:
    """Without samples neither is offered."""
    assert [score.needs for score in SCORES] == [("made",), ("made",)]
