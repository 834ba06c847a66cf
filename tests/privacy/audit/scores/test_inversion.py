"""Inversion finds the code that comes nearest, and a decoder that knows a scan by heart."""

import numpy as np
import pytest
import torch
from families import balls, tiny, told
from scipy.optimize import minimize
from torch import Tensor
from voxfed.models.base import NO_CONDITION, Batch, Condition, Decodes
from voxfed.models.registry import FAMILIES
from voxfed.privacy.audit.scores.inversion import PRIOR, SCORES, distance, least_distance
from voxfed.privacy.audit.scores.score import Context

SHAPE = (4, 4, 4)
INVERSION, CALIBRATED = SCORES


class Linear(torch.nn.Module):
    """Makes volumes of a shape as sums of columns, one code a column."""

    def __init__(self, columns: Tensor, shape: tuple[int, int, int] = SHAPE) -> None:
        super().__init__()
        self.columns, self.shape = torch.nn.Parameter(columns), shape

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw standard normal codes."""
        return torch.randn(n, self.columns.shape[1], generator=generator)

    def decode(self, codes: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Return the columns' sums weighed by codes."""
        return (codes @ self.columns.T).reshape(len(codes), 1, *self.shape)


def linear(seed: int = 0) -> Linear:
    """Return a decoder of 3 orthonormal columns, scaled so that voxels are of the order of 1."""
    drawn = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
    return Linear(torch.linalg.qr(drawn).Q * 8)


def test_a_linear_decoder_is_inverted_to_the_least_squares_residual() -> None:
    """A residual of one size that no column shares has a minimum in closed form: r + r^2."""
    columns = torch.zeros(64, 3)  # Haar columns: orthogonal to each other and to the residual
    signs = torch.ones(64)
    for n in range(3):
        columns[:, n] = torch.where(torch.arange(64) // 2**n % 2 == 0, 1.0, -1.0)
        signs *= columns[:, n]
    code, residual = torch.tensor([0.5, -1.0, 0.8]), 0.3
    sought = (columns @ code + residual * signs).reshape(1, 1, *SHAPE)
    best = np.linalg.lstsq(columns.numpy(), sought.numpy().ravel(), rcond=None)[1]
    assert float(best[0]) / 64 == pytest.approx(residual**2, rel=1e-5)
    starts = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    found = least_distance(Linear(columns).decode, starts, sought, steps=150)
    expected = residual + residual**2 + PRIOR * float(code.square().mean())
    assert float(found.detach()) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_minimum_is_that_of_a_general_optimiser(seed: int) -> None:
    """Absolute and squared differences and the prior together, for any scan; with default steps."""
    family, sought = linear(seed), balls(1, SHAPE, seed)

    def cost(code: object) -> float:
        codes = torch.tensor(code, dtype=torch.float32).reshape(1, 3)
        with torch.no_grad():
            gap = distance(family.decode(codes), sought)
        return float(gap + PRIOR * codes.square().mean())

    best = minimize(cost, [0.0, 0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-4})
    measure = INVERSION.prepare(family, Context(seed=3))
    assert -float(measure(Batch(sought))) == pytest.approx(best.fun, rel=1e-2)


def test_a_scan_known_by_heart_scores_above_all_others() -> None:
    """The decoder's columns are five scans; five others of the same kind are not found."""
    scans = balls(10, (8, 8, 8), seed=4)
    family = Linear(scans[:5].reshape(5, 512).T.clone(), (8, 8, 8))
    measure = INVERSION.prepare(family, Context(seed=0))
    scores = [float(measure(Batch(scan[None]))) for scan in scans]
    assert min(scores[:5]) > max(scores[5:])


def test_calibration_takes_off_how_near_another_scan_comes() -> None:
    """The score is the plain one and the distance to the nearest of the references."""
    scans = balls(4, SHAPE, seed=5)
    references = [Batch(scan[None]) for scan in scans[1:]]
    batch, context = Batch(scans[:1]), Context(seed=0, reference=references)
    plain = float(INVERSION.prepare(linear(), context)(batch))
    nearest = min(float(distance(one.volumes, batch.volumes)) for one in references)
    assert float(CALIBRATED.prepare(linear(), context)(batch)) == pytest.approx(plain + nearest)
    assert CALIBRATED.needs == ("reference",)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_decoder_of_the_registry_can_be_inverted(name: str) -> None:
    """A sample is found better than an inverted sample is, the same each time, and nothing moves.

    Neither weights nor their gradients nor the program's own random numbers change.
    """
    family = tiny(name, (8, 8, 8)).eval()
    assert INVERSION.fits(family) == isinstance(family, Decodes)
    if not isinstance(family, Decodes):
        return
    before = {key: value.clone() for key, value in family.state_dict().items()}
    condition = told(name, 1, (8, 8, 8))
    with torch.no_grad():
        volumes = family.decode(family.codes(1, torch.Generator().manual_seed(1)), condition)
    state = torch.get_rng_state()
    scores = []
    with torch.no_grad():
        for volume in (volumes, volumes, -volumes.flip(2) + 1):
            measure = INVERSION.prepare(family, Context(seed=0))
            scores.append(measure(Batch(volume, condition)))
    assert scores[0].shape == (1,)
    assert torch.equal(scores[0], scores[1])
    assert scores[2] < scores[0] < 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in family.state_dict().items())
    assert all(weight.grad is None for weight in family.parameters())
