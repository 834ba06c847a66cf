"""Families that are told something: each kind is heard, by its own volume alone, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from families import SHAPE, TINY, balls
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family
from voxfed.models.conditioning import FIELDS
from voxfed.models.registry import FAMILIES, TASKS, describe
from voxfed.privacy.inspection import inspect_family
from voxfed.study.errors import PlanError

KINDS = tuple(FIELDS)
TAKEN = [(row.name, kind) for row in describe() for kind in KINDS if TASKS[kind] in row.tasks]

pytestmark = pytest.mark.parametrize(("name", "kind"), TAKEN)


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def make(name: str, kind: str) -> Family:
    """A tiny family that is told of a kind, away from its first zeros, guided where it can be."""
    entry = FAMILIES[name]
    told = {"condition": kind, "classes": 3, "attributes": 2}
    settings: dict[str, Any] = TINY[name] | {"shape": list(SHAPE)}
    settings |= {key: value for key, value in told.items() if key in entry.spec.model_fields}
    if "denoiser" in settings:
        settings["denoiser"] = {**settings["denoiser"], "guidance": 2.0}
    torch.manual_seed(0)
    family = entry.family(entry.spec.checked(settings, file="x", error=PlanError))
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draws()))
    return family.eval()


def conditions(kind: str, n: int) -> Condition:
    """What n volumes are told, each another thing."""
    rows = torch.arange(n)
    if kind == "class":
        return Condition(label=rows % 3)
    if kind == "attributes":
        return Condition(attributes=torch.stack([rows / n, 1 - rows / n], 1))
    if kind == "mask":
        return Condition(mask=torch.randint(3, (n, 1, *SHAPE), generator=draws()))
    return Condition(source=torch.rand((n, 1, *SHAPE), generator=draws()) * 2 - 1)


def wrong(kind: str) -> Iterator[Condition]:
    """What a family that is told of this kind must refuse for one volume."""
    other = KINDS[KINDS.index(kind) - 1]
    yield NO_CONDITION
    yield conditions(other, 1)
    yield conditions(kind, 2)
    beside = {FIELDS[x]: getattr(conditions(x, 1), FIELDS[x]) for x in (kind, other)}
    yield Condition(**beside)


def test_no_patient_enters_anothers_loss(name: str, kind: str) -> None:
    """Neither by volume nor by what is told of it; blind steps stay blind."""
    inspect_family(make(name, kind), SHAPE)


def test_losses_and_samples_have_a_row_for_each(name: str, kind: str) -> None:
    family, told = make(name, kind), conditions(kind, 2)
    batch = Batch(balls(2), told)
    for step in (s for stage in family.stages for s in family.steps(stage) if s.reads_patients):
        assert step.loss(batch, draws()).shape == (2,)
    drawn = family.sample(2, condition=told, generator=draws())
    assert drawn.shape == (2, 1, *SHAPE)
    assert bool((drawn.abs() <= 1).all())


def test_the_condition_is_heard(name: str, kind: str) -> None:
    """Two conditions give two volumes from the same draws."""
    family, told = make(name, kind), conditions(kind, 2)
    first, second = (
        family.sample(
            1, condition=told.mapped(lambda part, i=i: part[i : i + 1]), generator=draws()
        )
        for i in (0, 1)
    )
    assert not torch.equal(first, second)


def test_a_wrong_condition_is_refused(name: str, kind: str) -> None:
    """A missing one, another kind, two for one volume, and another kind beside the right one."""
    for condition in wrong(kind):
        with pytest.raises(PlanError):
            make(name, kind).sample(1, condition=condition, generator=draws())
