"""Copies are found where they are and nowhere else."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from voxfed.privacy.audit.extraction import find_copies
from voxfed.privacy.audit.statistics import excess_chance
from voxfed.study.errors import VolumeError

SIDE = 12
BODY = gaussian_filter(np.random.default_rng(99).normal(size=(SIDE,) * 3), 2.5)
BODY = BODY / BODY.std()


def people(n: int, seed: int, visits: int = 1) -> dict[str, list[np.ndarray]]:
    """Smooth volumes that share an anatomy and differ by patient."""
    generator = np.random.default_rng(seed)
    own = [gaussian_filter(generator.normal(size=(SIDE,) * 3), 1.5) for _ in range(n)]
    return {
        f"patient-{seed}-{i}": [
            np.tanh(0.4 * BODY + 0.3 * x / x.std() + 0.02 * generator.normal(size=BODY.shape))
            .astype(np.float32)[None]
            for _ in range(visits)
        ]
        for i, x in enumerate(own)
    }  # fmt: skip


def samples_of(group: dict[str, list[np.ndarray]]) -> np.ndarray:
    return np.stack([scans[0] for scans in group.values()])


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_replayed_members_are_caught(noise: float) -> None:
    """The positive control: a model that hands out its patients."""
    members, others = people(12, 1), people(12, 2)
    samples = samples_of(members)
    samples = samples + np.random.default_rng(3).normal(0, noise, samples.shape)
    found = find_copies(samples.astype(np.float32), members, others)
    assert found["memorised_members"] == found["strict_memorised_members"] == 12
    assert found["memorised_non_members"] == found["copies_of_non_members"] == 0


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_blurred_copies_of_five_patients_are_caught(blur: float) -> None:
    """An over-trained autoencoder draws its patients without their finest detail."""
    members, others = people(5, 10), people(5, 11)
    samples = np.concatenate(
        [[gaussian_filter(scan[0], blur)[None]] for scan in samples_of(members)] * 4
    )
    found = find_copies(samples.astype(np.float32), members, others)
    assert (found["memorised_members"], found["memorised_non_members"]) == (5, 0)


def test_fresh_people_are_no_copies() -> None:
    """The negative control: in 30 worlds without copying, chance alone must explain the counts."""
    alarms = 0
    for seed in range(30):
        members, others = people(10, 3 * seed + 100), people(10, 3 * seed + 101)
        found = find_copies(samples_of(people(40, 3 * seed + 102)), members, others)
        chance = excess_chance(
            int(found["memorised_members"]), int(found["memorised_non_members"]), 10
        )
        alarms += chance < 0.05
    assert alarms <= 3


def test_samples_of_the_mean_patient_are_no_copies() -> None:
    """A blurred model draws what all patients share, which would correlate with every one."""
    members, others = people(15, 5), people(15, 6)
    mean = samples_of({**people(60, 7)}).mean(axis=0)
    noise = np.random.default_rng(8).normal(0, 0.02, (30, *mean.shape))
    found = find_copies((mean + noise).astype(np.float32), members, others)
    chance = excess_chance(int(found["memorised_members"]), int(found["memorised_non_members"]), 15)
    assert chance > 0.05


def test_members_and_non_members_are_compared_in_equal_numbers() -> None:
    members, others = people(9, 1), people(5, 2)
    found = find_copies(samples_of(people(8, 4)), members, others)
    assert (found["samples"], found["compared"]) == (8, 5)
    assert all(isinstance(value, float) for value in found.values())
    assert len(found) <= 32


def test_two_visits_are_one_patient() -> None:
    members, others = people(6, 1, visits=2), people(6, 2, visits=2)
    samples = np.stack([scan for scans in members.values() for scan in scans])
    found = find_copies(samples, members, others)
    assert found["copies_of_members"] == 12
    assert found["memorised_members"] == 6


def test_one_copied_patient_among_fresh_samples_is_counted_once() -> None:
    members, others = people(12, 1), people(12, 2)
    copied = next(iter(members.values()))[0]
    samples = np.concatenate([samples_of(people(6, 9)), np.stack([copied] * 5)])
    found = find_copies(samples, members, others)
    assert found["strict_memorised_members"] == 1
    assert found["strict_copies_of_members"] == 5


def test_nothing_to_compare_gives_no_counts() -> None:
    assert find_copies(samples_of(people(3, 1)), people(3, 2), {}) == {}
    assert find_copies(np.zeros((0, 1, 8, 8, 8), np.float32), people(3, 2), people(3, 1)) == {}


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(VolumeError, match="differ in shape"):
        find_copies(np.zeros((2, 1, 8, 8, 8), np.float32), people(3, 1), people(3, 2))
