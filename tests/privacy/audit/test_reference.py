"""Attacks with reference models, against the formulas written out and against known losses."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from voxfed.privacy.audit.reference import Flags, Values, offline_lira, rmia
from voxfed.privacy.audit.scores.fusion import areas
from voxfed.study.errors import UsageError

Losses = tuple[Values, Values, Flags, Flags]


def losses(n: int = 200, references: int = 4, leak: float = 0.5, seed: int = 0) -> Losses:
    """Return scores of target and references, who trained each reference, and the members.

    Patients differ in how plain they are by 1, models by 0.3; training adds `leak`.
    """
    generator = np.random.default_rng(seed)
    members = generator.random(n) < 0.5
    trained = generator.random((references, n)) < 0.5
    trained[0] &= ~trained.all(0)  # somebody has never met each patient
    plain = generator.normal(0, 1.0, n)
    target = plain + generator.normal(0, 0.3, n) + leak * members
    others = plain + generator.normal(0, 0.3, (references, n)) + leak * trained
    return target, others, trained, members


@pytest.mark.parametrize(("shrinkage", "gamma"), [(0.3, 1.0), (0.3, 2.0), (1.0, 1.0), (0.0, 1.5)])
def test_rmia_is_the_share_of_the_population_that_a_patient_beats(
    shrinkage: float, gamma: float
) -> None:
    """Probability by probability and pair by pair."""
    target, others, trained, members = losses(n=25, references=3)
    outside = [others[r, x] for r in range(3) for x in range(25) if not trained[r, x]]
    centre, spread = np.mean(outside), np.std(outside)

    def ratio(x: int) -> float:
        known = [math.exp((others[r, x] - centre) / spread) for r in range(3) if not trained[r, x]]
        among = ((1 + shrinkage) * float(np.mean(known)) + 1 - shrinkage) / 2
        return math.exp((target[x] - centre) / spread) / among

    expected = []
    for x in range(25):
        better = [ratio(x) / ratio(z) >= gamma for z in range(25) if not members[z] and z != x]
        itself = 0 if members[x] else (gamma == 1) / 2
        expected.append((sum(better) + itself) / (~members).sum())
    found = rmia(target, others, trained, ~members, shrinkage=shrinkage, gamma=gamma)
    assert found == pytest.approx(np.array(expected))


def test_lira_is_the_distance_from_those_who_never_met_the_patient() -> None:
    """Mean and pooled deviation by loops over patients."""
    target, others, trained, _ = losses(n=25, references=5)
    without = [[others[r, x] for r in range(5) if not trained[r, x]] for x in range(25)]
    squares = sum((v - np.mean(values)) ** 2 for values in without for v in values)
    spread = math.sqrt(squares / sum(len(values) - 1 for values in without))
    expected = [
        (target[x] - np.mean(values)) / (spread * math.sqrt(1 + 1 / len(values)))
        for x, values in enumerate(without)
    ]
    assert offline_lira(target, others, trained) == pytest.approx(np.array(expected))


def test_lira_of_non_members_is_a_standard_normal() -> None:
    """Its unit is what its words say, so that a threshold means a false positive rate."""
    target, others, trained, members = losses(n=4000, references=6, leak=0.0)
    found = offline_lira(target, others, trained)
    assert found.mean() == pytest.approx(0.0, abs=0.05)
    assert found.std() == pytest.approx(1.0, abs=0.04)
    assert (found > norm.isf(0.05)).mean() == pytest.approx(0.05, abs=0.012)
    assert members.any()


@pytest.mark.parametrize("references", [2, 4, 8])
def test_references_beat_the_plain_score(references: int) -> None:
    """Where patients differ more than training shows, only references see the training."""
    plain, relative, offline = [], [], []
    for seed in range(10):
        target, others, trained, members = losses(references=references, seed=seed)
        plain.append(areas(target, members))
        relative.append(areas(rmia(target, others, trained, ~members), members))
        offline.append(areas(offline_lira(target, others, trained), members))
    assert np.mean(plain) < 0.68
    assert np.mean(relative) > np.mean(plain) + 0.05
    assert np.mean(offline) > np.mean(plain) + 0.1


def test_without_leak_references_find_nothing() -> None:
    """The AUC is 1/2 on average, so comparing a population with itself gives no edge."""
    for gamma in (1.0, 1.5):
        found, lira = [], []
        for seed in range(100):
            target, others, trained, members = losses(n=60, leak=0.0, seed=seed)
            found.append(areas(rmia(target, others, trained, ~members, gamma=gamma), members))
            lira.append(areas(offline_lira(target, others, trained), members))
        for values in (found, lira):
            assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values) / 10)


def test_the_unit_of_a_score_does_not_matter() -> None:
    """Nats of a million voxels and errors of one give the same scores."""
    target, others, trained, members = losses(n=50)
    for unit, zero in ((1e6, -3e7), (1e-5, 2.0)):
        moved = target * unit + zero, others * unit + zero, trained
        assert rmia(*moved, ~members) == pytest.approx(rmia(target, others, trained, ~members))
        assert offline_lira(*moved) == pytest.approx(offline_lira(target, others, trained))


def test_what_a_reference_trained_on_says_nothing() -> None:
    """Scores of references that met the patient are not read."""
    target, others, trained, members = losses(n=30)
    changed = np.where(trained, 1e3, others)
    assert np.array_equal(
        rmia(target, others, trained, ~members), rmia(target, changed, trained, ~members)
    )
    assert np.array_equal(
        offline_lira(target, others, trained), offline_lira(target, changed, trained)
    )


def test_what_cannot_be_attacked_is_refused() -> None:
    """Wrong shapes, damaged scores and patients whom all models met give an error."""
    target, others, trained, members = losses(n=30)
    everybody = trained.copy()
    everybody[:, 3] = True
    broken = others.copy()
    broken[0, 0] = np.inf
    for wrong, text in (
        ((target[:-1], others, trained), "do not fit"),
        ((target, broken, trained), "not finite"),
        ((target, others, everybody), "by every reference"),
    ):
        with pytest.raises(UsageError, match=text):
            rmia(*wrong, ~members[: len(wrong[0])])
        with pytest.raises(UsageError, match=text):
            offline_lira(*wrong)
    with pytest.raises(UsageError, match="spread of reference"):
        offline_lira(target, others[:1], np.zeros((1, 30), dtype=bool))
    for options in ({"gamma": 0.5}, {"shrinkage": 1.5}):
        with pytest.raises(UsageError, match="settings of RMIA"):
            rmia(target, others, trained, ~members, **options)
    with pytest.raises(UsageError, match="population"):
        rmia(target, others, trained, np.zeros(30, dtype=bool))
