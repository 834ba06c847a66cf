"""bfloat16 and checkpointing: each patient's own gradient still, and nobody moves more than C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import NAMES, batch_of, tiny
from networks import batch_of as volumes_of
from networks import network, step_on, trained
from torch import Tensor, nn
from torch.nn import functional
from voxfed.models.base import Batch, Step, joined, rows_of
from voxfed.models.checkpointing import forget_activations
from voxfed.privacy.clipping import clip_weights
from voxfed.privacy.gradients.patients import PatientGradients
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.gradients.precision import in_precision, sound_kernels
from voxfed.privacy.inspection import example
from voxfed.study.errors import Refusal

CPU = torch.device("cpu")
BOUND = 0.05
SAVING: tuple[dict[str, Any], ...] = (
    {"precision": "bfloat16"},
    {"checkpointing": True},
    {"precision": "bfloat16", "checkpointing": True},
)
SHAPE = (8, 8, 8)


def whole(norms: Tensor) -> Tensor:
    return torch.ones_like(norms)


def clip(norms: Tensor) -> Tensor:
    return clip_weights(norms, BOUND)


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.double().flatten() for part in parts])


def plain(
    step: Step, weights: Sequence[Tensor], patient: Sequence[Batch], bfloat16: bool
) -> Tensor:
    """The oracle: autograd of one patient's mean loss, in the same arithmetic."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = step.loss(joined(patient), torch.Generator().manual_seed(3))[: len(patient)]
    with sound_kernels("bfloat16", CPU):
        found = torch.autograd.grad(
            loss.float().mean(), weights, allow_unused=True, materialize_grads=True
        )
    return flat(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_patients_gradient_is_autograds_in_that_arithmetic(name: str) -> None:
    """In bfloat16 with checkpointing, through every private step of every family."""
    family = tiny(name, SHAPE)
    forget_activations(family)
    performance = PerformanceSettings(precision="bfloat16", checkpointing=True)
    whole_batch = batch_of(name, 2, SHAPE)
    patient = [rows_of(whole_batch, slice(n, n + 1)) for n in range(2)]
    weights = dict(family.named_parameters())
    for step in (s for stage in family.stages for s in family.steps(stage) if s.reads_patients):
        own = [weights[n] for n in step.parameters]
        made = PatientGradients(family, step, own, example(family, SHAPE), performance)
        assert made.passes == "alone"
        found = flat(made.weighted_sum([patient], torch.Generator().manual_seed(3), whole))
        expected = plain(step, own, patient, bfloat16=True)
        assert float(expected.norm()) > 0
        # only the division by the number of volumes may round elsewhere
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm()), step.name


def quiet(made: nn.Module) -> Step:
    """A step without draws, so that whoever else is there draws nothing from anyone."""

    def loss(batch: Batch, _: torch.Generator) -> Tensor:
        mean, deviation = made.encode(batch.volumes)  # type: ignore[operator]
        found = made.decode(mean + 0.1 * deviation)  # type: ignore[operator]
        return (found + 0.3).square().flatten(1).mean(1)

    return Step("quiet", tuple(n for n, _ in made.named_parameters()), True, loss)


@pytest.mark.parametrize("saving", SAVING)
def test_one_patient_moves_the_sum_by_at_most_c(saving: dict[str, Any]) -> None:
    """Neighbour replay: each of five patients is left out in turn; the bound is reached."""
    made = network("autoencoder")
    if saving.get("checkpointing"):
        forget_activations(made)
    performance = PerformanceSettings(**saving)
    gradients = PatientGradients(made, quiet(made), trained(made), volumes_of(2), performance)
    rows = [rows_of(volumes_of(8), slice(n, n + 1)) for n in range(8)]
    cohort = [rows[:1], rows[1:4], rows[4:5], rows[5:7], rows[7:]]

    def summed(patients: Sequence[Sequence[Batch]]) -> Tensor:
        return flat(gradients.weighted_sum(patients, torch.Generator().manual_seed(3), clip))

    everybody = summed(cohort)
    for number in range(len(cohort)):
        moved = float((everybody - summed(cohort[:number] + cohort[number + 1 :])).norm())
        # to the bit but for a float64 sum: in bfloat16, too, nobody rounds anybody else
        assert 0.99 * BOUND <= moved <= BOUND * (1 + 1e-9)


def test_checkpointing_changes_no_sum() -> None:
    """In float32 it is the same number to the bit as without."""
    sums = []
    for checkpointing in (False, True):
        made = network("autoencoder")
        if checkpointing:
            forget_activations(made)
        performance = PerformanceSettings(passes="alone", checkpointing=checkpointing)
        gradients = PatientGradients(made, step_on(made), trained(made), volumes_of(2), performance)
        patients = [[rows_of(volumes_of(3), slice(n, n + 1))] for n in range(3)]
        sums.append(flat(gradients.weighted_sum(patients, torch.Generator().manual_seed(3), clip)))
    assert torch.equal(*sums)


def test_a_step_that_bfloat16_breaks_is_refused() -> None:
    """The site is told before a patient is drawn, with the setting that mends it."""
    layer = nn.Conv3d(1, 1, 3, padding=1)

    def loss(batch: Batch, _: torch.Generator) -> Tensor:
        return torch.sin(1e4 * layer(batch.volumes)).flatten(1).mean(1)

    step = Step("steep", ("weight", "bias"), True, loss)
    saving = PerformanceSettings(precision="bfloat16")
    with pytest.raises(Refusal, match="another one in bfloat16") as caught:
        PatientGradients(layer, step, list(layer.parameters()), volumes_of(2), saving)
    assert 'precision = "float32"' in caught.value.hint


@pytest.mark.parametrize(
    ("depth", "channels", "kernel"), [(2, 16, 3), (3, 16, 4), (2, 64, 3), (8, 8, 3)]
)
def test_weight_gradients_are_sound_on_small_grids(depth: int, channels: int, kernel: int) -> None:
    """Grids for which oneDNN's bfloat16 kernel leaves memory as it finds it, or writes beyond."""
    torch.manual_seed(0)
    layer = nn.Conv3d(channels, 8, kernel, padding=1).bfloat16()
    x = torch.randn((2, channels, depth, 4, 4)).bfloat16().requires_grad_()
    with sound_kernels("bfloat16", CPU):
        loss = layer(x).float().square().sum()
        found = torch.autograd.grad(loss, [x, *layer.parameters()])
    wide = x.detach().float().requires_grad_()
    weights = [weight.detach().float().requires_grad_() for weight in layer.parameters()]
    y = functional.conv3d(wide, weights[0], weights[1], padding=1)
    exact = torch.autograd.grad(y.square().sum(), [wide, *weights])
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.float() - other).norm()) < 0.02 * float(other.norm())  # 8 bits


def test_float32_is_left_alone() -> None:
    """No wrapper, no mode, where nothing is asked for."""
    made = network("repeated")
    step = step_on(made)
    assert in_precision(step, "float32") is step
    assert in_precision(step, "bfloat16").loss(volumes_of(2), torch.Generator()).dtype == (
        torch.float32
    )
