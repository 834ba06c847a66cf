"""The search for copies in a study of images: a faithful translation is no copy of a non-member."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streams
import torch
from families import tiny_plan
from torch import Tensor
from voxfed.client.auditing import _givers, _made
from voxfed.models.base import Batch, Condition
from voxfed.privacy.audit.copies.search import Copies, search
from voxfed.privacy.audit.copies.spaces import VOXELS

SHAPE = (8, 8, 8)
MEMBERS = [f"m{n}" for n in range(10)]
HELD_OUT = [f"h{n}" for n in range(10)]
PLAN = tiny_plan("diffusion", SHAPE, condition={"kind": "source"})


class Patients:
    """One random volume and one random source of each patient."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        names = [*MEMBERS, *HELD_OUT]
        made = torch.rand((2, len(names), 1, 1, *SHAPE), generator=draw) * 2 - 1
        self.volumes = dict(zip(names, made[0], strict=True))
        self.sources = dict(zip(names, made[1], strict=True))

    def batches(self, patient: str) -> list[Batch]:
        return [Batch(self.volumes[patient], Condition(source=self.sources[patient]))]


class Translator:
    """Answers each source with its own patient's volume, and every third with a member's."""

    def __init__(self, patients: Patients, leaks: bool) -> None:
        self.patients, self.leaks, self.asked = patients, leaks, 0
        self.givers: set[str] = set()

    def sample(self, n: int, *, condition: Condition, generator: torch.Generator) -> Tensor:
        assert condition.source is not None
        self.asked += 1
        owner = next(
            name for name, x in self.patients.sources.items() if torch.equal(x, condition.source)
        )
        self.givers.add(owner)
        if self.leaks and self.asked % 3 == 0:
            owner = MEMBERS[self.asked // 3 % len(MEMBERS)]
        return self.patients.volumes[owner]


def searched(leaks: bool) -> tuple[Copies, set[str]]:
    """Return the counts of copies by voxels, and who gave a source."""
    patients = Patients()
    family = Translator(patients, leaks)
    warm: Any = SimpleNamespace(
        approval=SimpleNamespace(plan=PLAN),
        trainer=SimpleNamespace(family=family, device=torch.device("cpu")),
        scans=patients,
    )
    request: Any = SimpleNamespace(samples=30, weights_digest="ab" * 32)
    givers = _givers(HELD_OUT)
    made, checked = _made(warm, request, b"", givers)
    assert checked == 0
    groups = [
        {name: patients.batches(name) for name in group if name not in givers}
        for group in (MEMBERS, HELD_OUT)
    ]
    drawn = np.random.default_rng(1).bytes
    return search(made, *groups, random_bytes=drawn).spaces[VOXELS], family.givers


def test_members_are_compared_with_those_who_gave_no_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copies of members are found beside faithful translations, which make nobody memorised."""
    streams.fix(monkeypatch)
    honest, givers = searched(leaks=False)
    assert len(givers) == honest.compared == len(HELD_OUT) // 2
    assert givers < set(HELD_OUT)
    likeness = honest.strict_memorised_members - honest.strict_memorised_non_members
    assert abs(likeness) <= 3  # by chance; -10 if those who gave a source were compared
    found, _ = searched(leaks=True)
    assert found.strict_memorised_members == 5
    assert found.strict_memorised_non_members <= 2
