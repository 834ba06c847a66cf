"""The neighbour replay: a sound engine reaches the bound, and a NaN is no silence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from voxfed.privacy.audit import replay
from voxfed.privacy.audit.specimen import WEIGHTS, Specimen
from voxfed.privacy.gradients.patients import PatientGradients


def test_a_sound_engine_moves_by_the_bound_and_no_more() -> None:
    """Nothing is drawn: the same reading each time."""
    first, second = replay.read(), replay.read()
    assert first == second
    assert not first.alarm
    assert replay.LEAST < first.measured <= replay.LIMIT


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_gradient_that_is_not_one_alarms(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """NaN is below no limit, and an engine in which nobody moves anything is none either."""

    def broken(gradients: PatientGradients, *_: object) -> list[Tensor]:
        return [torch.full(p.shape, value, dtype=torch.float64) for p in gradients.parameters]

    monkeypatch.setattr(PatientGradients, "weighted_sum", broken)
    assert replay.read().alarm


@pytest.mark.parametrize("patient", WEIGHTS)
def test_one_patient_that_becomes_nan_alarms(monkeypatch: pytest.MonkeyPatch, patient: str) -> None:
    """The worst patient counts, and a NaN is worse than any number."""
    real = Specimen.release

    def release(specimen: Specimen, patients: list[str]) -> Tensor:
        found = real(specimen, patients)
        return found * torch.nan if patient in patients and len(patients) == 1 else found

    monkeypatch.setattr(Specimen, "release", release)
    reading = replay.read()
    assert reading.alarm
    assert reading.measured != reading.measured
