"""Reference models: shared out evenly, trained as said, and better than a plain score."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from families import balls, tiny, tiny_plan
from torch import Tensor
from voxfed.models.base import Batch, Family, Step, joined
from voxfed.models.fitting import fit
from voxfed.models.registry import build
from voxfed.privacy.audit.attack import Groups, attack
from voxfed.privacy.audit.coverage import not_tested
from voxfed.privacy.audit.scores.fusion import areas
from voxfed.privacy.audit.scores.reconstruction import SCORES
from voxfed.privacy.audit.scores.score import LIRA, REFERENCED, RMIA, Context
from voxfed.privacy.audit.shadows import (
    Lessons,
    halves,
    lessons_of,
    local_steps,
    reference_scores,
)
from voxfed.study.errors import UsageError

SHAPE = (8, 8, 8)
N = 40
MEMBERS = np.random.default_rng(3).permutation(N) < N // 2
Patients = list[list[Batch]]


class Linear(Family):
    """Squeezes a volume into a few numbers and back, by one matrix each way."""

    stages = ("matrix",)
    shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.down = torch.nn.Parameter(0.02 * torch.randn((512, 30), generator=generator))
        self.up = torch.nn.Parameter(0.02 * torch.randn((30, 512), generator=generator))

    def steps(self, stage: str) -> tuple[Step, ...]:
        return (Step("matrix", ("down", "up"), True, self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return (self.reconstruct(batch) - batch.volumes).square().flatten(1).sum(1)

    def reconstruct(self, batch: Batch) -> Tensor:
        return (batch.volumes.flatten(1) @ self.down @ self.up).view_as(batch.volumes)

    def sample(self, n: int, **_: object) -> Tensor:
        return torch.zeros((n, 1, *SHAPE))


def noises() -> Patients:
    """Volumes that nobody could guess, some fainter and so plainer than others."""
    generator = np.random.default_rng(0)
    loud = generator.uniform(0.2, 1.0, (N, 1, 1, 1, 1, 1))
    volumes = loud * generator.uniform(-1, 1, (N, 1, 1, *SHAPE))
    return [[Batch(torch.tensor(x, dtype=torch.float32))] for x in volumes]


def known(model: Family, patients: Patients) -> npt.NDArray[np.float64]:
    measure = SCORES[0].prepare(model, Context(7))
    return np.array([float(measure(own[0])) for own in patients])


def found_areas(family: Family, patients: Patients, lessons: Lessons) -> dict[str, float]:
    """Train `family` and return the AUC of its plain score and of both attacks."""
    given = joined([own[0] for own, met in zip(patients, MEMBERS, strict=True) if met])
    for stage, steps in lessons.steps.items():
        generator = torch.Generator().manual_seed(11)
        rate, batch = lessons.learning_rate, lessons.batch
        if family.training:
            fit(
                family,
                stage,
                given,
                steps=steps,
                batch=batch,
                learning_rate=rate,
                generator=generator,
            )
    plain = known(family.eval(), patients)
    found = {"plain": plain} | reference_scores(
        plain,
        patients,
        lambda model: known(model, patients),
        lessons,
        5,
        random_bytes=np.random.default_rng(0).bytes,
    )
    return {name: float(areas(values, MEMBERS)) for name, values in found.items()}


@cache
def linear_areas(trained: bool) -> dict[str, float]:
    lessons = Lessons(4, Linear, {"matrix": 40}, 8, 3e-3)
    return found_areas(Linear().train(trained), noises(), lessons)


def test_references_find_members_where_the_plain_score_is_weak() -> None:
    """Faint volumes look known to any model; references take that away."""
    found = linear_areas(True)
    assert min(found[RMIA], found[LIRA]) > 0.85
    assert found["plain"] < 0.75


def test_an_untrained_model_is_not_found() -> None:
    """The negative control: models that are better trained than the target betray nobody."""
    found = linear_areas(False)
    assert 0.25 < min(found.values()) <= max(found.values()) < 0.75


@pytest.mark.slow
def test_an_over_trained_autoencoder_is_found() -> None:
    """A family of the registry, trained as a study without privacy would."""
    lessons = Lessons(4, lambda: tiny("vae", SHAPE), {"autoencoder": 400}, 8, 3e-3)
    patients = [[Batch(x[None])] for x in balls(N, SHAPE)]
    found = found_areas(tiny("vae", SHAPE), patients, lessons)
    assert min(found[RMIA], found[LIRA]) > 0.8


@pytest.mark.parametrize(("n", "models"), [(2, 2), (7, 2), (8, 3), (9, 5), (40, 32)])
def test_each_patient_is_inside_of_a_reference_and_outside_of_another(n: int, models: int) -> None:
    """Without that, a patient has nobody to be compared with."""
    trained = halves(n, models, random_bytes=np.random.default_rng(1).bytes)
    assert trained.shape == (models, n)
    assert trained.any(0).all()
    assert not trained.all(0).any()
    assert set(trained.sum(1)) <= {n // 2, n - n // 2}
    for first in range(0, models - 1, 2):
        assert (trained[first] != trained[first + 1]).all()


def test_halves_favour_nobody() -> None:
    """Over many draws each patient is in the first half as often as any other."""
    draw = np.random.default_rng(2).bytes
    inside = sum(halves(10, 2, random_bytes=draw)[0].astype(int) for _ in range(2000))
    assert np.abs(inside / 2000 - 0.5).max() < 0.05  # four standard deviations


@pytest.mark.parametrize(("n", "models"), [(1, 2), (2, 1), (0, 0)])
def test_too_few_to_halve(n: int, models: int) -> None:
    """One reference, or one patient, leaves somebody without a comparison."""
    with pytest.raises(UsageError, match="reference models cannot be trained"):
        halves(n, models)


def test_two_references_give_no_lira() -> None:
    """No patient has two references that never met them, so their spread cannot be told."""
    lessons = Lessons(2, Linear, {"matrix": 1}, 2, 1e-3)
    patients = noises()[:4]
    found = reference_scores(
        np.zeros(4), patients, lambda model: known(model, patients), lessons, 0
    )
    assert set(found) == {RMIA}


def test_a_plan_says_how_references_are_trained() -> None:
    """From the plan's first weights, for the rounds of each stage, and told step by step."""
    plan = tiny_plan(
        "latent-diffusion",
        SHAPE,
        stages={"autoencoder": 3, "diffusion": 0},
        privacy={"audit_counts": "exact", "reference_models": 2},
    )
    assert local_steps(plan) == {"autoencoder": 6}
    lessons = lessons_of(plan, lambda: build(plan))
    assert (lessons.models, lessons.batch, lessons.learning_rate) == (2, 3, 1e-3)
    patients, told, before = [[Batch(x[None])] for x in balls(4, SHAPE)], [], build(plan)
    changed: list[set[str]] = []

    def look(model: Family) -> npt.NDArray[np.float64]:
        first = before.state_dict()
        changed.append({n for n, x in model.state_dict().items() if not torch.equal(x, first[n])})
        assert not model.training
        return np.arange(4.0)

    reference_scores(
        np.zeros(4), patients, look, lessons, 0, progress=lambda *row: told.append(row)
    )
    moved = {name for step in before.steps("autoencoder") for name in step.parameters}
    assert changed[0]
    assert all(names <= moved for names in changed)
    assert told[5::6] == [(6, 6, f"reference model {n} of 2") for n in (1, 2)]


def test_only_histograms_of_reference_attacks_leave() -> None:
    """Bins of four patients or more that count everybody once; without lessons, nothing."""
    patients = noises()
    names = [f"{n:02d}" for n in range(N)]
    table = dict(zip(names, patients, strict=True))
    members = {name: table[name] for name, met in zip(names, MEMBERS, strict=True) if met}
    others = {name: own for name, own in table.items() if name not in members}
    groups, made = Groups(members, others, frozenset()), Batch(balls(4, SHAPE))
    lessons = Lessons(3, Linear, {"matrix": 20}, 8, 3e-3)
    found = attack(Linear().eval(), groups, made, seed=7, extract=None, lessons=lessons).scores
    for name in REFERENCED:
        counts = found[name]
        assert sum(counts.members) == sum(counts.non_members) == N // 2
        assert min(np.add(counts.members, counts.non_members)) >= 4
    assert not REFERENCED & set(attack(Linear().eval(), groups, made, seed=7, extract=None).scores)


def test_what_is_not_tested_follows_the_plan() -> None:
    """An audit with references must not say that it had none, nor one without that it had."""
    with_them = tiny_plan("vae", SHAPE, privacy={"audit_counts": "exact", "reference_models": 2})
    assert not any("RMIA" in line for line in not_tested(with_them))
    assert any("RMIA" in line for line in not_tested(tiny_plan("vae", SHAPE)))
