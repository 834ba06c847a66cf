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

SITES = {"abcde": 1.0, "fghij": 3.0}
"""The patients of each site, a letter each, and how much its update counts."""
SHAPE = (8, 8, 8)


class Balls:
    """One volume of each patient, with what the family is told of it."""

    def __init__(self, name: str) -> None:
        self._batch = batch_of(name, 10, SHAPE)

    def batches(self, patient: str) -> Sequence[Batch]:
        number = "abcdefghij".index(patient)
        return [rows_of(self._batch, slice(number, number + 1))]


@pytest.mark.parametrize("name", NAMES)
def test_two_private_rounds_of_each_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each site's update holds the stage's tensors alone, moves them, and every read is charged.

    What comes of a round are the weights before it plus the updates' weighted mean.
    """
    plan = tiny_plan(name, SHAPE)
    schedule = schedule_of(plan)
    terms = terms_with(plan, 5, 1.0, schedule)
    trainer = Trainer(plan, terms, torch.device("cpu"), PerformanceSettings())
    releases: list[str] = []

    def counted(way, *rest):  # type: ignore[no-untyped-def]
        releases.append(way.step.name)
        return private_gradient(way, *rest)

    monkeypatch.setattr(training, "private_gradient", counted)
    weights, volumes = to_bytes(tensors_of(trainer.family)), Balls(name)
    for number in range(1, schedule.rounds + 1):
        stage = schedule.stage_of(number)
        trained = stage_parameters(trainer.family, stage.name)
        mean, updates = RunningMean(weights, trained, 1e4), []
        for members, share in SITES.items():
            releases.clear()
            trainer.load(load(weights))
            update = trainer.train(stage.name, volumes, tuple(members))  # type: ignore[arg-type]
            assert len(releases) == plan.local_steps * stage.turns
            charged = sum(event.steps for event in terms.per_round[stage.name])
            assert len(releases) == charged
            assert set(update) == set(trained)
            assert any(bool(change.any()) for change in update.values())
            mean.add(to_bytes(update), share)
            updates.append(update)
        before, weights = load(weights), mean.apply()
        assert any(not torch.equal(updates[0][n], updates[1][n]) for n in trained)
        for tensor_name, tensor in load(weights).items():
            expected = before[tensor_name]
            if tensor_name in trained:
                first, second = (update[tensor_name] for update in updates)
                expected = expected + (0.25 * first.double() + 0.75 * second.double())
            torch.testing.assert_close(tensor, expected.float())
