"""It learns: an engine that sent pure noise would pass every test of privacy, and none of these.

The model is linear regression: a volume is a patient's features and target, so that gradients,
and the error after some private steps, are known in closed form.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import streams
import torch
from scipy import stats
from torch import Tensor, nn
from voxfed.models.base import Batch, Step
from voxfed.privacy.engine import StepSettings, private_gradient
from voxfed.privacy.gradients.patients import PatientGradients

Array = npt.NDArray[np.float64]
PATIENTS, SIZE, RATE, CLIP = 12, 6, 0.5, 100.0
DIVISOR = RATE * PATIENTS
LEARNING_RATE, STEPS, RUNS = 0.3, 12, 80


class Cohort:
    """Patients with one to three visits, each visit a row of features and their target."""

    def __init__(self) -> None:
        draw = np.random.default_rng(2)
        truth = draw.normal(size=SIZE)
        self.visits = {}
        for i in range(PATIENTS):
            x = draw.normal(size=(1 + i % 3, SIZE))
            self.visits[f"p{i}"] = np.c_[x, x @ truth + draw.normal(size=len(x))]

    def load(self, patient: str) -> list[Batch]:
        rows = torch.from_numpy(self.visits[patient]).float()
        return [Batch(volumes=row.reshape(1, 1, -1, 1, 1)) for row in rows]

    def gradients(self, weight: Array) -> Array:
        """Each patient's gradient of the mean loss over visits, (PATIENTS, SIZE)."""
        return np.array(
            [(v[:, :-1] @ weight - v[:, -1]) @ v[:, :-1] / len(v) for v in self.visits.values()]
        )

    def curvatures(self) -> Array:
        """Each patient's second derivative, (PATIENTS, SIZE, SIZE)."""
        return np.array([v[:, :-1].T @ v[:, :-1] / len(v) for v in self.visits.values()])


class Line:
    """A linear layer that starts at zero; a volume's loss is half its squared residual."""

    def __init__(self) -> None:
        layer = nn.Linear(SIZE, 1, bias=False)
        self.weight = layer.weight

        def loss(batch: Batch, generator: torch.Generator) -> Tensor:
            values = batch.volumes.flatten(1)
            return 0.5 * (layer(values[:, :-1])[:, 0] - values[:, -1]).square()

        step = Step("fit", ("weight",), reads_patients=True, loss=loss)
        example = Batch(volumes=torch.randn((2, 1, SIZE + 1, 1, 1)))
        self.gradients = PatientGradients(layer, step, [self.weight], example)
        nn.init.zeros_(self.weight)

    def release(self, cohort: Cohort, sigma: float) -> Tensor:
        """One private gradient at the present weight, (1, SIZE)."""
        settings = StepSettings(
            rate=RATE,
            divisor=DIVISOR,
            clip_norm=CLIP,
            sigma=sigma,
            volumes_per_patient=3,
            noise_multiplicity=1,
        )
        names, generator = list(cohort.visits), torch.Generator()
        (found,) = private_gradient(self.gradients, names, cohort.load, settings, generator)
        return found

    @torch.no_grad()
    def train(self, cohort: Cohort, sigma: float) -> Array:
        """The weight after all steps from zero, (SIZE,)."""
        self.weight.zero_()
        for _ in range(STEPS):
            with torch.enable_grad():
                gradient = self.release(cohort, sigma)
            self.weight -= LEARNING_RATE * gradient
        return self.weight.double().numpy()[0].copy()


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    streams.fix(monkeypatch)


def test_the_mean_of_2000_releases_is_the_exact_gradient() -> None:
    """No bias in any direction; nine tenths of the gradient, or half, lie outside the interval."""
    cohort, model, sigma = Cohort(), Line(), 0.02
    each = cohort.gradients(np.zeros(SIZE))
    assert np.linalg.norm(each, axis=1).max() < CLIP  # clipping is never active
    exact = each.mean(0)
    releases = np.array([model.release(cohort, sigma).numpy()[0] for _ in range(2000)])
    # the covariance of a release is known: who was drawn, and the noise
    covariance = RATE * (1 - RATE) * each.T @ each + (sigma * CLIP) ** 2 * np.eye(SIZE)
    precision = len(releases) * np.linalg.inv(covariance / DIVISOR**2)

    def p_value(expected: Array) -> float:
        error = releases.mean(0) - expected
        return float(stats.chi2.sf(error @ precision @ error, SIZE))

    assert p_value(exact) > 1e-3
    assert p_value(0.9 * exact) < 1e-6
    assert p_value(0.5 * exact) < 1e-12


def expected_error(cohort: Cohort, best: Array, sigma: float, share: float = 1.0) -> float:
    """E |w - best|^2 after all steps from zero, by the recursion of the first two moments.

    A step takes e = w - best to e - (rate / divisor) (sum over the drawn of (H_p e + g_p), plus
    N(0, (sigma C)^2)): linear in e, so that the moments close. With `share` of each gradient.
    """
    each, at_best = share * cohort.curvatures(), share * cohort.gradients(best)
    step = LEARNING_RATE / DIVISOR
    forward = np.eye(SIZE) - LEARNING_RATE * each.mean(0)
    mean, moment = -best, np.outer(best, best)
    for _ in range(STEPS):
        drawn = np.zeros((SIZE, SIZE))
        for curvature, gradient in zip(each, at_best, strict=True):
            cross = np.outer(curvature @ mean, gradient)
            drawn += curvature @ moment @ curvature + cross + cross.T
            drawn += np.outer(gradient, gradient)
        moment = forward @ moment @ forward + step**2 * RATE * (1 - RATE) * drawn
        moment += (step * sigma * CLIP) ** 2 * np.eye(SIZE)
        mean = forward @ mean
    return float(np.trace(moment))


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_the_error_of_a_linear_model_is_the_closed_form(sigma: float) -> None:
    """80 trainings of 12 private steps end as near to the best fit as theory says."""
    cohort, model = Cohort(), Line()
    at_zero = cohort.gradients(np.zeros(SIZE)).mean(0)
    best = np.linalg.solve(cohort.curvatures().mean(0), -at_zero)
    errors = [np.square(model.train(cohort, sigma) - best).sum() for _ in range(RUNS)]
    reach = 4 * np.std(errors) / np.sqrt(RUNS)
    assert abs(np.mean(errors) - expected_error(cohort, best, sigma)) < reach
    # the interval tells the step from one with half the gradient, half the noise or twice as much
    others = [
        expected_error(cohort, best, sigma, share=0.5),
        expected_error(cohort, best, sigma / 2),
        expected_error(cohort, best, sigma * 2),
    ]
    assert all(abs(np.mean(errors) - other) > reach for other in others)
