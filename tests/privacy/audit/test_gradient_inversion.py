"""Gradient inversion finds a patient in an open update, and nobody in a private one."""

import math

import numpy as np
import pytest
import streams
import torch
from voxfed.models.base import Batch
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.wgan_gp import WganGp, WganGpSpec
from voxfed.privacy.audit.gradient_inversion import (
    Likeness,
    Prior,
    by_tensor,
    compare,
    gradient,
    invert,
    learn_prior,
    total_variation,
)
from voxfed.privacy.calibration import calibrate_sigma
from voxfed.privacy.engine import StepSettings, private_gradient
from voxfed.privacy.gradients.patients import PatientGradients
from voxfed.study.errors import UsageError

SHAPE = (8, 8, 8)
PATIENTS = draw_phantoms(51, SHAPE, np.random.default_rng(1))
PRIOR = learn_prior(draw_phantoms(100, SHAPE, np.random.default_rng(99)))


class Site:
    """A critic at its first weights, and updates of one patient."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = WganGp(WganGpSpec(critic_channels=(16, 32), shape=SHAPE))
        self.step = next(s for s in self.model.steps(self.model.stages[0]) if s.reads_patients)
        named = dict(self.model.named_parameters())
        self.parameters = [named[name] for name in self.step.parameters]

    def attack(self, update: list[torch.Tensor], victim: int) -> Likeness:
        found = invert(self.step, self.parameters, update, PRIOR, turns=40)
        return compare(found, PATIENTS, victim, PRIOR.mean)


@pytest.fixture(scope="module")
def site() -> Site:
    """One model for all."""
    return Site()


@pytest.mark.parametrize("victim", [0, 1])
def test_an_open_update_gives_its_patient_away(site: Site, victim: int) -> None:
    """The positive control: first of 51, in correlation and in PSNR."""
    update = gradient(site.step, site.parameters, Batch(PATIENTS[victim : victim + 1]), seed=0)
    found = site.attack(update, victim)
    assert found.rank == 1
    assert found.psnr > found.other_psnr
    assert found.correlation > found.other_correlation + 0.1


def test_a_private_update_gives_nobody_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: at epsilon 8 ranks are those of blind draws, to three deviations."""
    streams.fix(monkeypatch)
    sigma = calibrate_sigma(rate=0.25, steps=225, epsilon=8.0, delta=1e-5)
    settings = StepSettings(1.0, 1.0, 0.1, sigma, 1, 1)
    gradients = PatientGradients(site.model, site.step, site.parameters, Batch(PATIENTS[:2]))
    ranks = []
    for victim in range(6):
        volumes = [Batch(PATIENTS[victim : victim + 1])]
        generator = torch.Generator().manual_seed(0)
        update = private_gradient(gradients, ["p"], lambda _, v=volumes: v, settings, generator)
        ranks.append(site.attack(update, victim).rank)
    deviation = math.sqrt((51**2 - 1) / 12 / len(ranks))
    assert np.mean(ranks) > 26 - 3 * deviation
    assert ranks.count(1) <= 1


def test_components_are_those_of_the_covariance() -> None:
    """Squared lengths are the largest eigenvalues of the public volumes' covariance."""
    public = torch.randn((6, 1, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    prior = learn_prior(public, directions=3)
    expected = np.linalg.eigvalsh(np.cov(public.flatten(1).numpy().T, bias=True))[::-1][:3]
    assert prior.directions.square().sum(1).numpy() == pytest.approx(expected, rel=1e-4)
    assert learn_prior(public).directions.shape == (5, 8)
    assert torch.equal(prior.volume(torch.zeros(1, 3)), public.mean(0, keepdim=True))


def test_likeness_against_numpy() -> None:
    """PSNR with a range of 2, and Pearson's correlation of what differs from the mean."""
    draw = torch.Generator().manual_seed(0)
    patients = torch.rand((3, 1, 2, 3, 4), generator=draw) * 2 - 1
    found, mean = (torch.rand((1, 1, 2, 3, 4), generator=draw) for _ in range(2))
    told = compare(found, patients, 1, mean)
    rows = [np.corrcoef((p - mean).ravel(), (found - mean).ravel())[0, 1] for p in patients]
    errors = [float((p - found).square().mean()) for p in patients]
    psnr = [10 * math.log10(4 / error) for error in errors]
    assert told.correlation == pytest.approx(rows[1], abs=1e-6)
    assert told.other_correlation == pytest.approx(max(rows[0], rows[2]), abs=1e-6)
    assert told.psnr == pytest.approx(psnr[1], abs=1e-4)
    assert told.other_psnr == pytest.approx(max(psnr[0], psnr[2]), abs=1e-4)
    assert told.rank == 1 + sum(row > rows[1] for row in rows)


def test_matching_and_roughness_by_hand() -> None:
    """A cosine a tensor, averaged; a step of height 1 across one of four voxels' faces."""
    found = [torch.tensor([1.0, 0.0]), torch.tensor([[2.0]])]
    update = [torch.tensor([1.0, 1.0]), torch.tensor([[-1.0]])]
    assert float(by_tensor(found, update)) == pytest.approx((math.sqrt(0.5) - 1) / 2)
    volume = torch.zeros((1, 1, 2, 2, 2))
    volume[0, 0, 0] = 1.0
    assert float(total_variation(volume)) == 1.0


def test_an_update_of_other_parameters_is_refused(site: Site) -> None:
    """Cosines of tensors that do not belong together mean nothing."""
    prior = Prior(PRIOR.mean, PRIOR.directions)
    with pytest.raises(UsageError, match="not one of these parameters"):
        invert(site.step, site.parameters, [torch.zeros(3)], prior)
