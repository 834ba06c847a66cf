"""Figures hold the truth as often as they say, and compare like with like."""

import numpy as np
import pytest
from voxfed.models.quality.distances import Features, fid, kid
from voxfed.models.quality.intervals import (
    DRAWS,
    LEAST,
    MEANS,
    Figure,
    Rows,
    average,
    compare,
    diversity,
)
from voxfed.models.quality.neighbours import coverage, rarity
from voxfed.models.quality.similarity import ms_ssim
from voxfed.study.errors import UsageError

STUDIES, N, WIDTH = 40, 16, 8


def drawn(generator: np.random.Generator, n: int, shift: float = 0.0) -> Features:
    """Return Gaussian rows."""
    return generator.normal(size=(n, WIDTH)) + shift


@pytest.mark.parametrize(
    ("statistic", "shift"),
    [(kid, 0.0), (kid, 0.6), (fid, 0.0), (fid, 0.6), (coverage, 0.6)],
)
def test_intervals_hold_the_truth(statistic: object, shift: float) -> None:
    """Of 40 simulated studies 34 or more hold the mean figure at that n.

    At equal distributions too, where KID degenerates and a bootstrap never holds it.
    """
    assert callable(statistic)
    generator = np.random.default_rng(7)
    many = [statistic(drawn(generator, N), drawn(generator, N, shift)) for _ in range(600)]
    truth, held, widths = float(np.mean(many)), 0, []
    for _ in range(STUDIES):
        real, synthetic = drawn(generator, N), drawn(generator, N, shift)
        figure = compare(
            "x", statistic, list(real[:, None]), synthetic, better="lower", generator=generator
        )
        assert figure is not None
        held += figure.low <= truth <= figure.high
        assert figure.value == pytest.approx(statistic(real, synthetic))
        widths.append(figure.high - figure.low)
    assert held >= 34
    assert np.mean(widths) < 2.2 * 4 * np.std(many)  # not wide beyond use


def test_averages_hold_the_truth() -> None:
    """The mean over patients of unequal numbers of volumes, with patients as the unit."""
    generator, held = np.random.default_rng(8), 0
    for _ in range(60):
        patients = [
            (generator.normal(2.0, 1.0) + generator.normal(0, 0.2, generator.integers(1, 6)))
            for _ in range(25)
        ]
        figure = average("x", patients, better="lower", generator=generator)
        assert figure is not None
        held += figure.low <= 2.0 <= figure.high
    assert held >= 51  # nominal 57; volumes as the unit would hold far fewer


def test_averages_weigh_patients_alike() -> None:
    """A patient with many volumes counts once, one without a value not at all."""
    generator = np.random.default_rng(0)
    patients = [[1.0] * 9, [1.0], [3.0], [], [3.0], [3.0], [1.0]]
    figure = average("x", patients, better="higher", generator=generator)
    assert figure is not None
    assert (figure.value, figure.n, figure.real) == (2.0, 6, None)
    assert 1.0 <= figure.low < 2.0 < figure.high <= 3.0


def test_no_mean_of_a_few_patients_is_told() -> None:
    """Four patients carry no mean, though a fifth without a value stands beside them."""
    generator = np.random.default_rng(0)
    patients = [[float(n)] * 3 for n in range(5)]
    assert average("x", patients, better="higher", generator=generator) is not None
    assert average("x", [*patients[:4], []], better="higher", generator=generator) is None


def test_real_against_real_is_told_at_the_same_n() -> None:
    """Every set that the statistic sees has the n of the figure, or its half, one row a patient."""
    generator, seen = np.random.default_rng(1), []

    def spy(real: Rows, synthetic: Rows) -> float:
        seen.append((len(real), len(synthetic), len(np.unique(real[:, 0])), synthetic.min() < 0))
        return float(len(real))

    real = [np.full((1 + i % 3, 2), float(i)) for i in range(30)]
    others = [np.full((2, 2), float(100 + i)) for i in range(11)]
    figure = compare("x", spy, real, -np.ones((25, 2)), others, better="lower", generator=generator)
    assert figure == Figure("x", 11.0, 11.0, 11.0, 11, 11.0, "lower")
    assert seen.count((11, 11, 11, True)) == MEANS  # against the samples
    assert seen.count((11, 11, 11, False)) == MEANS  # against the other patients
    assert seen.count((5, 5, 5, True)) == DRAWS


def test_fid_between_equals_is_its_own_real_against_real() -> None:
    """The small-sample bias of FID is in both numbers, so that the figure can be read."""
    generator = np.random.default_rng(2)
    sets = [drawn(generator, 24) for _ in range(3)]
    figure = compare(
        "FID",
        fid,
        list(sets[0][:, None]),
        sets[1],
        list(sets[2][:, None]),
        better="lower",
        generator=generator,
    )
    assert figure is not None
    assert figure.real is not None
    assert figure.value > 1
    assert figure.low < figure.real < figure.high


def test_the_same_seed_gives_the_same_figure() -> None:
    """A figure can be computed again to the bit."""
    real, synthetic = np.random.default_rng(3).normal(size=(2, 12, 4))
    figures = [
        compare(
            "x",
            kid,
            list(real[:, None]),
            synthetic,
            better="lower",
            generator=np.random.default_rng(11),
        )
        for _ in range(2)
    ]
    assert figures[0] == figures[1]


def test_limits_cut_the_interval() -> None:
    """A share's interval never leaves 0 to 1."""
    real = np.random.default_rng(3).normal(size=(12, 2))
    found = [
        compare(
            "x",
            coverage,
            list(real[:, None]),
            real + 0.2,
            better="higher",
            generator=np.random.default_rng(0),
            **limits,
        )
        for limits in ({}, {"limits": (0.0, 1.0)})
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].high > 1 == found[1].high
    assert found[0].low == found[1].low


def test_a_figure_without_value_is_none() -> None:
    """Rarity of samples that lie in no real ball is nothing, not zero."""
    real = np.random.default_rng(3).normal(size=(12, 2))
    generator = np.random.default_rng(0)
    far = real + 1000
    assert (
        compare("x", rarity, list(real[:, None]), far, better="lower", generator=generator) is None
    )


def test_diversity_stands_beside_that_of_patients() -> None:
    """A collapsed model is far above the patients' likeness, noise below; n is the smaller's."""
    generator = np.random.default_rng(4)
    grid = np.indices((8, 8, 8)).sum(0) / 3
    patients = np.sin(grid + generator.uniform(0, 2, (12, 1, 1, 1, 1))).astype(np.float32)
    real = [patient[None] for patient in patients]
    collapsed = patients[:1] + generator.normal(0, 0.01, (9, 1, 8, 8, 8)).astype(np.float32)
    noise = generator.uniform(-1, 1, (40, 1, 8, 8, 8)).astype(np.float32)
    low, high = (diversity(real, x, generator=generator) for x in (noise, collapsed))
    assert (low.n, high.n) == (12, 9)
    assert low.real is not None
    assert high.real is not None
    assert low.high < low.real
    assert high.real < high.low
    table = ms_ssim(collapsed)
    assert high.value == pytest.approx(table[np.triu_indices(9, 1)].mean())


def test_too_few_are_refused() -> None:
    """Below eight patients, samples or other patients no set is judged."""
    rows, volumes = np.zeros((LEAST, 3)), np.zeros((LEAST, 1, 8, 8, 8), np.float32)
    generator = np.random.default_rng(0)
    patients = list(rows[:, None])
    for real, synthetic, others in (
        (patients[1:], rows, ()),
        (patients, rows[1:], ()),
        (patients, rows, patients[1:]),
        ([], rows, ()),
    ):
        with pytest.raises(UsageError, match="too few"):
            compare("x", kid, real, synthetic, others, better="lower", generator=generator)
    with pytest.raises(UsageError, match="too few"):
        diversity(list(volumes[1:, None]), volumes, generator=generator)
