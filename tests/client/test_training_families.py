"""Every family trains for two rounds of each stage with privacy, and every turn is charged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from families import NAMES, batch_of, tiny_plan
from safetensors.torch import load
from voxfed.client import training
from voxfed.client.training import Trainer
from voxfed.models.base import Batch, rows_of
from voxfed.models.registry import schedule_of
from voxfed.models.state import tensors_of, to_bytes
from voxfed.models.trained import stage_parameters
from voxfed.privacy.engine import private_gradient
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.terms import terms_with
from voxfed.server.aggregation import RunningMean

MEMBERS = ("a", "b", "c", "d", "e")
SHAPE = (8, 8, 8)


class Balls:
    """One volume of each patient, with what the family is told of it."""

    def __init__(self, name: str) -> None:
        self._batch = batch_of(name, len(MEMBERS), SHAPE)

    def batches(self, patient: str) -> Sequence[Batch]:
        number = MEMBERS.index(patient)
        return [rows_of(self._batch, slice(number, number + 1))]


@pytest.mark.parametrize("name", NAMES)
def test_two_private_rounds_of_each_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update holds the stage's tensors alone, moves them, and every read is one release."""
    plan = tiny_plan(name, SHAPE)
    schedule = schedule_of(plan)
    terms = terms_with(plan, 5, 1.0, schedule)
    trainer = Trainer(plan, terms, torch.device("cpu"), PerformanceSettings())
    releases: list[str] = []

    def counted(way, *rest):  # type: ignore[no-untyped-def]
        releases.append(way.step.name)
        return private_gradient(way, *rest)

    monkeypatch.setattr(training, "private_gradient", counted)
    weights = to_bytes(tensors_of(trainer.family))
    for number in range(1, schedule.rounds + 1):
        stage = schedule.stage_of(number)
        releases.clear()
        trainer.load(load(weights))
        update = trainer.train(stage.name, Balls(name), MEMBERS)  # type: ignore[arg-type]
        assert len(releases) == plan.local_steps * stage.turns
        charged = sum(event.steps for event in terms.per_round[stage.name])
        assert len(releases) == charged
        trained = stage_parameters(trainer.family, stage.name)
        assert set(update) == set(trained)
        assert any(bool(change.any()) for change in update.values())
        mean = RunningMean(weights, trained, 1e4)
        mean.add(to_bytes(update), 1.0)
        weights = mean.apply()
