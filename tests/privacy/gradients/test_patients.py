"""The clipped sum is the same in every way it is taken, and one patient moves it by at most C."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from networks import batch_of, network, step_on, trained, wide
from torch import Tensor, nn
from voxfed.models.base import Batch, Condition, joined
from voxfed.privacy.clipping import clip_weights
from voxfed.privacy.gradients import patients as module
from voxfed.privacy.gradients.patients import PatientGradients
from voxfed.privacy.gradients.performance import PerformanceSettings

BOUND = 0.05
PASSES = ("one", "two", "alone")


def clip(norms: Tensor) -> Tensor:
    return clip_weights(norms, BOUND)


def cohort(sizes: Sequence[int], dtype: torch.dtype = torch.float64) -> list[list[Batch]]:
    """Patients with so many volumes each."""
    whole = wide(batch_of(sum(sizes)), dtype)
    rows = [
        Batch(whole.volumes[i : i + 1], Condition(label=torch.tensor([i % 3])))
        for i in range(sum(sizes))
    ]
    found = []
    for size in sizes:
        found.append(rows[:size])
        rows = rows[size:]
    return found


def ready(made: nn.Module, passes: str, volumes_at_once: int = 8) -> PatientGradients:
    made.double()
    performance = PerformanceSettings(passes=passes, volumes_at_once=volumes_at_once)
    example = wide(batch_of(2), torch.float64)
    gradients = PatientGradients(made, step_on(made), trained(made), example, performance)
    assert gradients.passes == passes
    return gradients


def brute_force(made: nn.Module, everybody: list[list[Batch]]) -> list[Tensor]:
    """The oracle: autograd, clipping and adding, patient after patient, without draws."""
    step = quiet(made)
    total = [torch.zeros_like(p) for p in trained(made)]
    for volumes in everybody:
        losses = [step.loss(volume, torch.Generator())[0] for volume in volumes]
        loss = torch.stack(losses).mean()
        parts = torch.autograd.grad(loss, trained(made), allow_unused=True, materialize_grads=True)
        norm = torch.cat([part.flatten() for part in parts]).norm()
        for kept, part in zip(total, parts, strict=True):
            kept += part * min(1.0, BOUND / float(norm))
    return total


def quiet(made: nn.Module):  # type: ignore[no-untyped-def]
    """The step of `step_on` without its noise."""
    from dataclasses import replace

    noisy = step_on(made)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        calm = torch.Generator()
        original = torch.randn
        try:
            torch.randn = lambda shape, **_: torch.zeros(shape)  # type: ignore[assignment]
            return noisy.loss(batch, calm)
        finally:
            torch.randn = original

    return replace(noisy, loss=loss)


def summed(
    gradients: PatientGradients, everybody: list[list[Batch]], seed: int = 3
) -> list[Tensor]:
    return gradients.weighted_sum(everybody, torch.Generator().manual_seed(seed), clip)


@pytest.mark.parametrize(
    ("kind", "passes"), list(product(["autoencoder", "unet", "transposed", "repeated"], PASSES))
)
def test_every_way_is_one_patient_at_a_time(kind: str, passes: str) -> None:
    """The issue's exactness, with 1, 3, 2 and 1 volumes a patient: to 1e-9."""
    made = network(kind)
    gradients = ready(made, passes)
    gradients.step = quiet(made)
    everybody = cohort([1, 3, 2, 1])
    exact = torch.cat([t.flatten() for t in brute_force(made, everybody)])
    found = torch.cat([t.flatten() for t in summed(gradients, everybody)])
    assert float((found - exact).norm()) <= 1e-9 * float(exact.norm())


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("volumes_at_once", [1, 2, 5, 100])
def test_packing_changes_nothing(passes: str, volumes_at_once: int) -> None:
    """However few volumes a pass holds, patients stay whole and the sum is the same."""
    made = network("repeated")
    gradients = ready(made, passes, volumes_at_once)
    gradients.step = quiet(made)
    everybody = cohort([1, 4, 0, 2, 1, 3])
    exact = brute_force(made, [volumes for volumes in everybody if volumes])
    for one, other in zip(summed(gradients, everybody), exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("passes", "n"), list(product(PASSES, [1, 2, 4, 8])))
def test_one_patient_moves_the_sum_by_at_most_c(passes: str, n: int) -> None:
    """With dropout and fresh noise, at 1, 2, 4 or 8 volumes, alone and as the last of three.

    The last, so that the others draw the same with and without it.
    """
    made = network("dropping")
    gradients = ready(made, passes, volumes_at_once=11)
    everybody = cohort([2, 1, n])
    for seed, others in ((0, 2), (1, 2), (0, 0)):
        sums = []
        for drawn in (everybody[:others] + everybody[2:], everybody[:others]):
            torch.manual_seed(seed)
            found = summed(gradients, drawn, seed)
            sums.append(torch.cat([t.flatten() for t in found]))
        moved = float((sums[0] - sums[1]).norm())
        assert moved <= BOUND * (1 + 1e-9)  # float64 sums round too
        assert moved >= BOUND * 0.99  # the bound is reached, so it is tested


def test_two_passes_draw_the_same_twice() -> None:
    """Noise and dropout of the pass that clips are those of the pass that measured."""
    made = network("dropping")
    everybody = cohort([2, 1, 3])
    norms: list[Tensor] = []

    def spy(found: Tensor) -> Tensor:
        norms.append(found)
        return clip(found)

    results = []
    for passes in ("one", "two"):
        gradients = ready(made, passes)
        torch.manual_seed(11)
        results.append(gradients.weighted_sum(everybody, torch.Generator().manual_seed(3), spy))
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-9, atol=0)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_a_pass_that_drew_anew_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: without the replay the sums differ."""
    from contextlib import nullcontext

    made, everybody = network("dropping"), cohort([2, 1, 3])
    gradients = ready(made, "two")
    right = summed(gradients, everybody)
    monkeypatch.setattr(module.Draws, "put_back", lambda self: nullcontext())
    wrong = summed(gradients, everybody)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(right, wrong, strict=True))


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_patient_that_is_not_finite_counts_as_zero(passes: str, bad: float) -> None:
    """The others' sum is as if the patient were not there, and the count stays here."""
    made = network("repeated")
    gradients = ready(made, passes)
    gradients.step = quiet(made)
    everybody = cohort([1, 2, 1, 2])
    everybody[1][1] = Batch(everybody[1][1].volumes * bad, everybody[1][1].condition)
    without = brute_force(made, [everybody[0], everybody[2], everybody[3]])
    for one, other in zip(summed(gradients, everybody), without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert gradients.not_finite >= 1


def test_nobody_is_nothing() -> None:
    made = network("repeated")
    assert all(not total.any() for total in summed(ready(made, "one"), []))
    assert all(not total.any() for total in summed(ready(made, "one"), [[], []]))


def test_memory_decides_between_one_pass_and_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of all volumes must fit into a quarter of what is free."""
    made = network("repeated").double()
    size = sum(p.numel() * p.element_size() for p in trained(made))
    example = wide(batch_of(2), torch.float64)

    def way(free: float) -> str:
        monkeypatch.setattr(module, "_free_memory", lambda device: free)
        performance = PerformanceSettings(volumes_at_once=8)
        return PatientGradients(made, step_on(made), trained(made), example, performance).passes

    assert way(8 * size / module.SHARE) == "one"
    assert way(8 * size / module.SHARE - 1) == "two"


def test_two_passes_hold_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are dropped as soon as their norm is known."""
    made = network("autoencoder")
    gradients = ready(made, "two")
    alive: list[int] = []
    most = 0
    original = module._norms

    def counted(rows: Tensor) -> Tensor:
        nonlocal most
        held = sum(x.numel() for layer in gradients._recorder._layers for x in layer.rows.values())
        most = max(most, held + rows.numel())
        alive.append(rows.numel())
        return original(rows)

    monkeypatch.setattr(module, "_norms", counted)
    summed(gradients, cohort([1, 1, 1]))
    assert most < sum(alive) / 4


def test_joined_keeps_conditions_in_their_rows() -> None:
    """Every part of a condition stays with its volume."""
    parts = [
        Batch(
            torch.full((1, 1, 2, 2, 2), float(i)),
            Condition(label=torch.tensor([i]), mask=torch.full((1, 1, 2, 2, 2), i)),
        )
        for i in range(3)
    ]
    whole = joined(parts)
    assert whole.volumes[:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert whole.condition.label is not None
    assert whole.condition.label.tolist() == [0, 1, 2]
    assert whole.condition.mask is not None
    assert whole.condition.mask[2].unique().tolist() == [2]
    assert whole.condition.source is None
