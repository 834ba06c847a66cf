"""Rounds with the settings that save memory: every kind of turn learns as ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import batch_of, tiny_plan
from voxfed.client.training import Trainer
from voxfed.models.base import Batch, rows_of
from voxfed.models.registry import schedule_of
from voxfed.models.state import tensors_of
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.terms import terms_with

MEMBERS = ("a", "b", "c", "d", "e")
SHAPE = (8, 8, 8)


class Balls:
    """One volume of each patient."""

    def __init__(self, name: str) -> None:
        self._batch = batch_of(name, len(MEMBERS), SHAPE)

    def batches(self, patient: str) -> Sequence[Batch]:
        number = MEMBERS.index(patient)
        return [rows_of(self._batch, slice(number, number + 1))]


@pytest.mark.parametrize("saving", [{"precision": "bfloat16"}, {"checkpointing": True}])
@pytest.mark.parametrize("privacy", [True, False])
@pytest.mark.parametrize("name", ["wgan-gp", "latent-diffusion"])
def test_a_round_saves_memory(name: str, privacy: bool, saving: dict[str, Any]) -> None:
    """Patients' turns, one that reads nobody, and open ones; names and dtypes stay as they are."""
    plan = tiny_plan(name, SHAPE, expected_patients=5, privacy={"enabled": privacy})
    schedule = schedule_of(plan)
    terms = terms_with(plan, 5, 1.0 if privacy else 0.0, schedule)
    trainer = Trainer(plan, terms, torch.device("cpu"), PerformanceSettings(**saving))
    before = tensors_of(trainer.family)
    for stage in trainer.family.stages:
        update = trainer.train(stage, Balls(name), MEMBERS)  # type: ignore[arg-type]
        assert any(bool(change.any()) for change in update.values())
        assert all(change.dtype == torch.float32 for change in update.values())
    after = tensors_of(trainer.family)
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(note["passes"] == "alone" for note in trainer.notes.values())
    assert bool(trainer.notes) is privacy
