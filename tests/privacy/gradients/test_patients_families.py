"""The families of the registry: their steps are recorded, and exact in float64."""

from __future__ import annotations

import pytest
import torch
from families import NAMES, batch_of, tiny_plan
from torch import Tensor
from voxfed.client.training import prepare
from voxfed.models.base import Batch, Step
from voxfed.privacy.gradients.nudge import nudged
from voxfed.privacy.gradients.patients import PatientGradients
from voxfed.privacy.gradients.performance import PerformanceSettings

PARTS = ("all", "normalisation-and-biases", "adapters")
ALONE = {
    ("wgan-gp", "critic"),
    ("alpha-wgan-gp", "critic"),
    ("alpha-wgan-gp", "code critic"),
    ("ha-gan", "critics"),
    ("stylegan2", "critic"),
    ("slice-vae", "slices"),
    ("slice-vae", "stack"),
}
"""Steps that go patient by patient: gradients of gradients, and slices that are a batch."""
SHAPE = (8, 8, 8)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_exact(name: str, part: str) -> None:
    """Recorded rows are autograd's to 1e-9, whatever is trained; none falls back unseen."""
    plan = tiny_plan(name, SHAPE, trained=part)
    family = prepare(plan, torch.device("cpu")).double()
    family.train()
    batch = _double(batch_of(name, 3, SHAPE))
    for step in (s for stage in family.stages for s in family.steps(stage) if s.reads_patients):
        learning = dict(family.named_parameters())
        trained = [learning[n] for n in step.parameters if learning[n].requires_grad]
        if not trained:
            continue
        example = _double(batch_of(name, 2, SHAPE, seed=5))
        made = PatientGradients(family, step, trained, example, PerformanceSettings())
        assert made.passes == ("alone" if (name, step.name) in ALONE else "one"), step.name
        if made.passes == "one":
            with nudged(family):
                assert _worst(made, step, trained, batch) < 1e-9, step.name


def _double(batch: Batch) -> Batch:
    condition = batch.condition.mapped(lambda x: x.double() if x.is_floating_point() else x)
    return Batch(batch.volumes.double(), condition)


def _worst(made: PatientGradients, step: Step, trained: list[Tensor], batch: Batch) -> float:
    """The largest relative error of a volume's gradient over all of a step's parameters."""
    rows: dict[int, Tensor] = {}
    made._recorder.record(lambda: step.loss(batch, _draws()), rows.__setitem__)
    errors = []
    for volume in range(len(batch.volumes)):
        loss = step.loss(batch, _draws())[volume]
        exact = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        ours = [rows[n][volume] if n in rows else torch.zeros_like(p) for n, p in enumerate(exact)]
        wrong = torch.cat([(a - b).flatten() for a, b in zip(ours, exact, strict=True)])
        whole = torch.cat([part.flatten() for part in exact])
        errors.append(float(wrong.norm() / whole.norm()))
    return max(errors)


def _draws() -> torch.Generator:
    return torch.Generator().manual_seed(4)
