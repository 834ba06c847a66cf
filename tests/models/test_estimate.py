"""Estimates: what tensors without memory say a step keeps is what autograd then keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import NAMES, batch_of, tiny_plan
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from voxfed.models.base import Batch, Family, Step
from voxfed.models.checkpointing import forget_activations
from voxfed.models.estimate import Sketch, bytes_of
from voxfed.models.registry import build
from voxfed.study.errors import PlanError

SHAPE = (16, 16, 16)


def kept(family: Family, step: Step, batch: Batch | None, bfloat16: bool) -> int:
    """The oracle: bytes of what autograd keeps of a real forward pass, weights apart."""
    own = {weight.untyped_storage().data_ptr() for weight in family.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = tensor.detach()
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        step.loss(batch, torch.Generator().manual_seed(3))
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("setting", [{}, {"bfloat16": True, "checkpointing": True}])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_step_keeps(name: str, setting: dict[str, bool]) -> None:
    """Of every step of every family, to a tenth: both run the same code, on other tensors."""
    plan = tiny_plan(name, SHAPE)
    sketch, family = Sketch(plan, **setting), build(plan)
    if setting:
        forget_activations(family)
    family.train()
    for stage in family.stages:
        for one, other in zip(family.steps(stage), sketch.family.steps(stage), strict=True):
            batch = batch_of(name, 2, SHAPE) if one.reads_patients else None
            measured = kept(family, one, batch, bool(setting))
            use = sketch.step(other, 2)
            assert use.kept == pytest.approx(measured, rel=0.1, abs=4096), one.name
            assert use.peak >= 0.9 * use.kept


def test_a_step_by_hand() -> None:
    """A product and its exponential: both factors' volumes and the result are kept, once each."""
    sketch = Sketch(tiny_plan("vae", SHAPE))
    name, weight = next(iter(sketch.family.named_parameters()))
    volume = 4 * 16**3

    def loss(batch: Batch, _: torch.Generator) -> Tensor:
        return (batch.volumes * weight.mean()).exp().flatten(1).sum(1)

    use = sketch.step(Step("by hand", (name,), True, loss), 3)
    assert use.kept == pytest.approx(2 * 3 * volume, abs=64)
    own = bytes_of([weight])
    # going back, the gradient of the exponential comes beside the volumes, the product is gone
    assert 3 * 3 * volume <= use.peak <= 4 * 3 * volume + 8 * own
    rows = sketch.step(Step("by hand", (name,), True, loss), 3, rows=100)
    assert rows.peak - 100 * own >= 0


def test_volumes_take_as_much_each() -> None:
    """What a pass keeps grows with its volumes and with their voxels."""
    sketch = Sketch(tiny_plan("diffusion", SHAPE))
    (step,) = sketch.family.steps("diffusion")
    two, four = sketch.step(step, 2).kept, sketch.step(step, 4).kept
    assert four == pytest.approx(2 * two, rel=0.05)
    large = Sketch(tiny_plan("diffusion", (32, 32, 32)))
    (step,) = large.family.steps("diffusion")
    assert large.step(step, 2).kept > 7 * two


def test_nothing_is_run_at_full_size() -> None:
    """A step that would fill a hundred GB is sketched on any machine."""
    sketch = Sketch(tiny_plan("diffusion", (512, 512, 512)))
    (step,) = sketch.family.steps("diffusion")
    assert sketch.step(step, 8).kept > 100e9


def test_each_setting_keeps_less() -> None:
    """bfloat16 takes a little over half, checkpointing less than that, both least of all."""

    def of(**setting: Any) -> int:
        sketch = Sketch(tiny_plan("diffusion", SHAPE), **setting)
        return sketch.step(sketch.family.steps("diffusion")[0], 2).kept

    plain, narrow, again = of(), of(bfloat16=True), of(checkpointing=True)
    assert 0.5 * plain <= narrow < 0.7 * plain
    assert again < 0.5 * plain
    assert of(bfloat16=True, checkpointing=True) < min(narrow, again)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_takes_less_than_a_step(name: str) -> None:
    """At least the volume itself, and nothing is kept for a way back."""
    sketch = Sketch(tiny_plan(name, SHAPE))
    one, two = sketch.sample(1), sketch.sample(2)
    assert 4 * 16**3 <= one <= two <= 2.5 * one
    steps = [s for stage in sketch.family.stages for s in sketch.family.steps(stage)]
    assert one < max(sketch.step(step, 2).peak for step in steps)


def test_a_wrong_plan_is_named() -> None:
    with pytest.raises(PlanError, match="unknown family"):
        Sketch(tiny_plan("vae", SHAPE).model_copy(update={"family": "vey"}))
