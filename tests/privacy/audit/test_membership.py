"""The scores against models whose knowledge of each volume is known."""

import numpy as np
import pytest
import torch
from torch import Tensor
from voxfed.models.base import Batch, Condition
from voxfed.privacy.audit.membership import (
    EDGES,
    SCORES,
    TIMES,
    histogram,
    mean_of,
    patient_scores,
    score_of,
)
from voxfed.study.errors import Refusal, VolumeError


class Shift:
    """Rebuilds every volume with a known error."""

    def __init__(self, error: float) -> None:
        self.error = error

    def reconstruct(self, batch: Batch) -> Tensor:
        """Add the error."""
        return batch.volumes + self.error


class Memory:
    """Knows the patients it has seen, and answers grey for all others."""

    def __init__(self, seen: list[np.ndarray]) -> None:
        self.seen = [torch.from_numpy(scan) for scan in seen]

    def reconstruct(self, batch: Batch) -> Tensor:
        """Return what was seen, and grey for all else."""
        known = any(torch.equal(batch.volumes[0], scan) for scan in self.seen)
        return batch.volumes if known else torch.zeros_like(batch.volumes)


class Denoiser:
    """Its error is the time times the volume's mean."""

    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        """Return a known error."""
        return time * batch.volumes.flatten(1).mean(1)


class Bound:
    """Knows each volume's density: that of a uniform voxel of width e^mean."""

    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return minus the sum of voxels."""
        return -batch.volumes.flatten(1).sum(1)


class Critic(torch.nn.Module):
    """Finds bright volumes real; its own samples have mean 0.25 and standard deviation 0.5.

    Args:
        zero: added to every score.
        unit: every score is multiplied by it.
    """

    def __init__(self, zero: float = 0.0, unit: float = 1.0) -> None:
        super().__init__()
        self.zero, self.unit = torch.nn.Parameter(torch.tensor(zero)), unit

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the mean, on the critic's scale."""
        return self.zero + self.unit * batch.volumes.flatten(1).mean(1)

    def sample(self, n: int, *, condition: Condition, generator: torch.Generator) -> Tensor:
        """Return volumes whose means have the stated moments."""
        line = torch.linspace(-1, 1, n)
        means = 0.25 + 0.5 * line / line.std()
        return means.reshape(-1, 1, 1, 1, 1).expand(n, 1, 8, 8, 8)


def scores(model: object, volumes: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """What a site computes for a family."""

    def batches(patient: str) -> list[Batch]:
        return [Batch(torch.from_numpy(scan)[None]) for scan in volumes[patient]]

    return patient_scores(score_of(model)[1], volumes, batches)  # type: ignore[arg-type]


def scan(value: float) -> np.ndarray:
    return np.full((1, 8, 8, 8), value, dtype=np.float32)


def test_error_is_the_mean_over_voxels_then_over_a_patients_volumes() -> None:
    errors = scores(Memory([scan(0.25)]), {"a": [scan(0.25), scan(0.5)]})
    assert errors == {"a": pytest.approx(0.25)}
    assert scores(Shift(-0.125), {"b": [scan(0)]}) == {"b": 0.125}


def test_seen_patients_score_lower() -> None:
    people = {name: [scan(i / 10)] for i, name in enumerate("abcd", start=1)}
    errors = scores(Memory([people["a"][0], people["b"][0]]), people)
    assert max(errors["a"], errors["b"]) < min(errors["c"], errors["d"])


@pytest.mark.parametrize("scans", [[], [scan(float("nan"))]])
def test_what_cannot_be_scored_is_refused(scans: list[np.ndarray]) -> None:
    with pytest.raises(VolumeError, match="cannot be scored"):
        scores(Shift(0.1), {"a": scans})


def test_histogram_matches_numpy_and_keeps_everybody() -> None:
    values = np.exp(np.random.default_rng(0).normal(-2, 1, 500))
    expected, _ = np.histogram(np.clip(values, EDGES[0], EDGES[-1]), EDGES)
    assert histogram(values.tolist(), EDGES) == tuple(expected)
    counts = histogram([0.0, 1e9], EDGES)
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)


def test_a_patient_moves_one_count_by_one() -> None:
    """The noise on these counts is calibrated to this sensitivity."""
    values = [0.03, 0.05, 0.2]
    change = np.array(histogram([*values, 0.07], EDGES)) - np.array(histogram(values, EDGES))
    assert np.linalg.norm(change) == 1


def test_mean_from_the_bins_is_near_the_mean() -> None:
    """Bins are 4 % wide, so the mean is off by 2 % at most."""
    values = np.exp(np.random.default_rng(1).normal(-2, 0.5, 200))
    assert mean_of(histogram(values.tolist(), EDGES), EDGES) == pytest.approx(
        values.mean(), rel=0.02
    )
    assert mean_of([0.0] * 256, EDGES) is None


def test_bins_rise_from_a_ten_thousandth_to_the_largest_error_there_can_be() -> None:
    assert len(EDGES) == 257
    assert (EDGES[0], EDGES[-1]) == (pytest.approx(1e-4), pytest.approx(4.0))
    assert list(EDGES) == sorted(set(EDGES))


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        (Shift(0.125), "reconstruction", 0.125),
        (Denoiser(), "denoising", 0.5 * sum(TIMES) / len(TIMES)),
        (Bound(), "likelihood", np.exp(0.5)),
        (Critic(), "critic", 1 - np.arctan(0.5) * 2 / np.pi),
    ],
)
def test_each_protocol_has_its_score(model: object, name: str, expected: float) -> None:
    """The family's name plays no part; the values are by hand."""
    assert score_of(model)[0] == name  # type: ignore[arg-type]
    assert name in SCORES
    assert scores(model, {"a": [scan(0.5)]})["a"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("zero", "unit"), [(10.0, 1.0), (-10.0, 1.0), (3.0, 100.0), (0.0, 0.01)])
def test_a_critics_zero_and_unit_say_nothing(zero: float, unit: float) -> None:
    """A Wasserstein critic may drift: a shift once moved every patient into one bin."""
    people = {name: [scan(i / 10)] for i, name in enumerate("abcd")}
    plain, drifted = scores(Critic(), people), scores(Critic(zero, unit), people)
    assert drifted == pytest.approx(plain, rel=1e-4)
    assert len(set(plain.values())) == 4


def test_a_family_that_offers_nothing_is_refused() -> None:
    with pytest.raises(Refusal, match="nothing that membership"):
        score_of(object())  # type: ignore[arg-type]
