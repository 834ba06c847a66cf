"""The private step: its mean, its noise, and how far one patient can move it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import streams
import torch
from scipy import stats
from torch import Tensor, nn
from voxfed.models.base import Batch, Step
from voxfed.privacy import engine, sampling
from voxfed.privacy.engine import (
    StepSettings,
    open_gradient,
    private_counts,
    private_gradient,
    private_mean,
)
from voxfed.privacy.gradients.patients import PatientGradients

SETTINGS = StepSettings(
    rate=0.5, divisor=4.0, clip_norm=1.0, sigma=1.0, volumes_per_patient=2, noise_multiplicity=1
)
Load = Callable[[str], Sequence[Batch]]


class Model(nn.Module):
    """A weight of 8 numbers; a volume's loss is half the squared distance to it."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.rows = 0
        self.step = Step("fit", ("weight",), reads_patients=True, loss=self.loss)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        self.rows += len(batch.volumes)
        return 0.5 * (self.weight - batch.volumes.flatten(1)).square().sum(1)


def _gradients(model: Model) -> PatientGradients:
    nobody = Batch(torch.zeros(2, 1, len(model.weight), 1, 1))
    return PatientGradients(model, model.step, [model.weight], nobody)


def _volume(values: object) -> Batch:
    return Batch(volumes=torch.as_tensor(np.array(values, np.float32)).reshape(1, 1, -1, 1, 1))


def _cohort(patients: int, scale: float = 0.1) -> dict[str, list[Batch]]:
    draw = np.random.default_rng(7)
    return {
        f"p{i}": [_volume(draw.normal(size=8) * scale) for _ in range(1 + i % 2)]
        for i in range(patients)
    }


def _release(
    cohort: dict[str, list[Batch]], settings: StepSettings = SETTINGS, seed: int = 0
) -> Tensor:
    model = Model()
    generator = torch.Generator().manual_seed(seed)
    names, load = list(cohort), cohort.__getitem__
    (found,) = private_gradient(_gradients(model), names, load, settings, generator)
    return found


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    streams.fix(monkeypatch)


@pytest.fixture
def noiseless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is drawn and no noise is added: what is left is the clipped sum."""
    monkeypatch.setattr(engine, "add_noise", lambda total, deviation: total)
    monkeypatch.setattr(sampling, "poisson", lambda patients, rate: list(patients))


def test_the_mean_of_many_releases_is_the_plain_gradient() -> None:
    """Where no clip is active the release is unbiased: q and divisor match each other."""
    cohort = _cohort(8)
    exact = -np.mean(
        [np.mean([v.volumes.numpy().ravel() for v in vs], axis=0) for vs in cohort.values()], axis=0
    )
    settings = StepSettings(**{**vars(SETTINGS), "clip_norm": 10.0, "sigma": 0.01})
    found = np.array([_release(cohort, settings, seed).numpy() for seed in range(600)])
    error = (found.mean(0) - exact) / (found.std(0, ddof=1) / np.sqrt(len(found)))
    # eight coordinates, each within 4.5 standard errors
    assert np.all(np.abs(error) < 4.5)


def test_the_noise_is_that_of_the_accountant() -> None:
    """Standard deviation sigma C / divisor, Gaussian, in every coordinate, drawn afresh."""
    model = Model(20_000)
    settings = StepSettings(**{**vars(SETTINGS), "clip_norm": 0.5, "sigma": 3.0})
    still = {"p": [_volume(np.zeros(20_000))]}
    releases = [
        private_gradient(_gradients(model), ["p"], still.__getitem__, settings, torch.Generator())[
            0
        ].numpy()
        for _ in range(2)
    ]
    for release in releases:
        assert stats.kstest(release / (3.0 * 0.5 / 4.0), "norm").pvalue > 1e-5
    # 20 000 pairs: five standard errors of a correlation of zero
    assert abs(np.corrcoef(*releases)[0, 1]) < 5 / np.sqrt(20_000)


def test_an_empty_draw_releases_noise() -> None:
    """Nobody can tell from a release that nobody was drawn; nothing is read for it."""
    model = Model(4000)

    def load(patient: str) -> list[Batch]:
        pytest.fail("a scan was read")

    settings = StepSettings(**{**vars(SETTINGS), "rate": 1e-12})
    (found,) = private_gradient(_gradients(model), ["p"], load, settings, torch.Generator())
    assert stats.kstest(found.numpy() / (1 / 4), "norm").pvalue > 1e-5


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_one_patient_moves_the_release_by_at_most_c_over_the_divisor(scale: float) -> None:
    """Neighbouring cohorts, same draws: the bound that the noise is measured against."""
    cohort = _cohort(5) | {"last": [_volume(np.full(8, scale)), _volume(np.full(8, 2 * scale))]}
    without = {name: cohort[name] for name in cohort if name != "last"}
    moved = float((_release(cohort) - _release(without)).double().norm())
    bound = SETTINGS.clip_norm / SETTINGS.divisor
    assert moved <= bound * (1 + 1e-6)
    if scale > 0.5:
        assert moved == pytest.approx(bound, rel=1e-5)  # the bound is reached, so it is tested


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_patient_with_a_bad_gradient_counts_as_zero(value: float) -> None:
    """One broken scan neither stops the step nor changes it."""
    cohort = _cohort(3)
    assert torch.equal(_release(cohort | {"bad": [_volume(np.full(8, value))]}), _release(cohort))


@pytest.mark.usefixtures("noiseless")
def test_many_visits_count_once() -> None:
    """The unit is the patient: ten volumes have no more weight than one."""
    volume = _volume(np.full(8, 0.1))
    one, ten = _release({"p": [volume]}), _release({"p": [volume] * 10})
    torch.testing.assert_close(one, ten)
    torch.testing.assert_close(one, torch.full((8,), -0.1 / 4.0).double())


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize(("volumes", "draws", "rows"), [(5, 1, 2), (1, 1, 2), (5, 3, 6)])
def test_work_is_bounded_by_the_plan(volumes: int, draws: int, rows: int) -> None:
    """At most `volumes_per_patient` volumes, each `noise_multiplicity` times; one has a copy."""
    model = Model()
    settings = StepSettings(**{**vars(SETTINGS), "noise_multiplicity": draws})
    cohort = {"p": [_volume(np.full(8, 0.1))] * volumes}
    private_gradient(_gradients(model), ["p"], cohort.__getitem__, settings, torch.Generator())
    assert model.rows == rows


@pytest.mark.usefixtures("noiseless")
def test_the_divisor_does_not_depend_on_who_is_there() -> None:
    """A withdrawn patient leaves the divisor as it was: the sum is still divided by it."""
    volume = _volume(np.full(8, 0.1))
    two = _release({"a": [volume], "b": [volume]})
    torch.testing.assert_close(two, 2 * _release({"a": [volume]}))


def test_noise_takes_no_seed() -> None:
    """The loss's generator does not decide the noise: with the same seed no release repeats."""
    cohort = _cohort(4)
    assert not torch.equal(_release(cohort, seed=3), _release(cohort, seed=3))


def test_open_gradient_is_the_plain_mean() -> None:
    """Without privacy the step is that of ordinary training: one volume of each patient drawn."""
    cohort = {name: volumes[:1] for name, volumes in _cohort(6).items()}
    model = Model()
    settings = StepSettings(**{**vars(SETTINGS), "rate": 1.0, "clip_norm": 1e-9})
    load: Load = cohort.__getitem__
    (found,) = open_gradient(
        model.step, [model.weight], list(cohort), load, settings, torch.Generator()
    )
    exact = -np.mean([v[0].volumes.numpy().ravel() for v in cohort.values()], axis=0)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-5)
    (none,) = open_gradient(model.step, [model.weight], [], load, settings, torch.Generator())
    assert torch.equal(none, torch.zeros(8))


def test_private_mean_bounds_and_noises() -> None:
    """Each patient counts between 0 and 1, NaN as 0; the noise is the multiplier over the size."""
    values = {"a": 0.5, "b": 1e9, "c": -3.0, "d": float("nan"), "e": float("inf")}
    draws = np.array([private_mean(values, 10.0, 2.0) for _ in range(2000)])
    assert stats.kstest((draws - 2.5 / 10.0) / (2.0 / 10.0), "norm").pvalue > 1e-5


def test_private_counts_add_noise_to_each() -> None:
    """Every bin of the histogram has its own noise of the multiplier's size."""
    counts = np.arange(4000.0)
    found = np.array(private_counts(counts.tolist(), 3.0))
    assert stats.kstest((found - counts) / 3.0, "norm").pvalue > 1e-5
