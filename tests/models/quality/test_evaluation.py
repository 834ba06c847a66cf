"""Evaluation: figures that tell good samples from bad ones, and groups that name nobody."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family
from voxfed.models.conditioning import Conditioning
from voxfed.models.quality import adherence, distances, evaluation, neighbours, similarity
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.evaluation import (
    Cohort,
    evaluate,
    intensities,
    shown_groups,
)
from voxfed.models.quality.features import Extractor, contrastive
from voxfed.models.quality.intervals import averaged
from voxfed.models.quality.utility import utility
from voxfed.study.errors import UsageError

SHAPE = (16, 16, 16)
NAMES = tuple(f"patient-{number:02d}" for number in range(96))


@cache
def extractor() -> Extractor:
    """An encoder with the weights it began with: random features tell coarse things apart."""
    torch.manual_seed(0)
    return contrastive(Encoder())


@cache
def phantoms(n: int, seed: int) -> Tensor:
    return draw_phantoms(n, SHAPE, np.random.default_rng(seed))


class Drawer(Family):
    """Draws from a list of volumes, one after the other; a source comes back with noise."""

    stages = ("only",)

    def __init__(self, volumes: Tensor, noise: float = 0.0, kind: str = "none") -> None:
        super().__init__()
        self.volumes, self.noise, self.taken = volumes, noise, 0
        told = Conditioning(kind, 2, 1, SHAPE)  # type: ignore[arg-type]
        self.spec: Any = type("Spec", (), {"conditioning": told})()

    def steps(self, stage: str) -> tuple[Any, ...]:
        return ()

    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        volume = self.volumes[self.taken % len(self.volumes)][None]
        self.taken += 1
        if condition.source is not None:
            volume = condition.source
        return volume + self.noise * torch.randn(volume.shape, generator=generator)


def cohort(strata: Any = None, *, patients: int = 24, paired: bool = False) -> Cohort:
    """Half of the patients were held out; each has one volume, or one beside its source."""
    volumes = phantoms(len(NAMES), 3)
    table = {
        name: [Batch(x[None], Condition(source=x[None]) if paired else NO_CONDITION)]
        for name, x in zip(NAMES, volumes, strict=True)
    }

    def read(name: str) -> Sequence[Batch]:
        return table[name]

    return Cohort(read, NAMES[0:patients:2], NAMES[1:patients:2], strata or {}, (1.0,) * 3)


def figures(family: Family, **more: Any) -> dict[str, Any]:
    found = evaluate(family, extractor(), cohort(**more), samples=12, seed=5)
    return {figure.name: figure for figure in found.figures["all"]}


def test_more_of_the_same_is_as_good_as_real() -> None:
    """Unseen phantoms of the same kind reach real against real; noise does not come near."""
    good = figures(Drawer(phantoms(12, 9)))
    bad = figures(Drawer(torch.zeros(1, 1, *SHAPE), noise=0.5))
    assert good["KID"].low < good["KID"].real < good["KID"].high
    assert bad["KID"].low > 10 * abs(bad["KID"].real)
    assert bad["FID"].low > 2 * good["FID"].high
    assert bad["coverage"].high < 0.5 < good["coverage"].low
    assert {figure.n for figure in good.values()} == {12}


def test_each_figure_bears_its_own_name() -> None:
    """Oracle: the direct call on all volumes at once, since n takes in every one of them."""
    statistics = {
        "FID": distances.fid,
        "KID": distances.kid,
        "MMD": distances.mmd,
        "precision": neighbours.precision,
        "recall": neighbours.recall,
        "density": neighbours.density,
        "coverage": neighbours.coverage,
        "rarity": neighbours.rarity,
    }
    made = phantoms(12, 11)
    found = figures(Drawer(made))
    held_out, members, samples = (
        extractor().features(x)
        for x in (phantoms(len(NAMES), 3)[0:24:2], phantoms(len(NAMES), 3)[1:24:2], made)
    )
    direct = {name: statistic(held_out, samples) for name, statistic in statistics.items()}
    assert len(set(direct.values())) == 8, "two figures of one value could be exchanged"
    for name, statistic in statistics.items():
        assert found[name].value == pytest.approx(direct[name], rel=1e-6, abs=1e-9), name
        real = statistic(held_out, members)
        assert found[name].real == pytest.approx(real, rel=1e-6, abs=1e-9), name


def test_copies_of_members_are_nearer_to_members_than_real_patients_are() -> None:
    """A model that copies is caught: no distance to those who trained, and much to the others."""
    found = figures(Drawer(phantoms(len(NAMES), 3)[1:24:2]))
    near, far = found["cosine distance to members"], found["cosine distance to held-out"]
    assert near.value == pytest.approx(0, abs=1e-9)
    assert near.real > 1e-3
    assert far.value > 1e-3


def test_one_volume_again_and_again_has_no_diversity() -> None:
    """MS-SSIM between equal samples is 1; between held-out patients it is what the pairs say."""
    found = figures(Drawer(phantoms(1, 9)))["MS-SSIM between samples"]
    assert found.value == pytest.approx(1)
    table = similarity.ms_ssim(phantoms(len(NAMES), 3)[0:24:2].numpy())
    pairs = table[np.triu_indices(12, k=1)]
    assert found.real == pytest.approx(pairs.mean())


def test_translations_are_compared_with_their_own_patient() -> None:
    """PSNR of a known error is the closed form; without a source there is no such figure."""
    found = figures(Drawer(phantoms(1, 9), noise=0.1, kind="source"), paired=True)
    assert found["PSNR, dB"].value == pytest.approx(10 * np.log10(4 / 0.01), abs=0.5)
    assert found["MAE"].value == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.05)
    assert 0 < found["SSIM"].value < 1
    assert found["PSNR, dB"].n == 12
    assert "PSNR, dB" not in figures(Drawer(phantoms(12, 9)))


def test_an_evaluation_repeats() -> None:
    """The seed fixes samples and intervals, so that a site gives the same figures again."""
    first, again = (figures(Drawer(phantoms(12, 9), noise=0.1)) for _ in range(2))
    assert first == again


def test_too_few_patients() -> None:
    """Seven held-out patients carry no figure."""
    with pytest.raises(UsageError, match="too few"):
        figures(Drawer(phantoms(12, 9)), patients=14)


GROUPS = {"a": NAMES[:20], "b": NAMES[20:43]}


@pytest.mark.parametrize(
    ("patients", "given"),
    [
        (NAMES[:43], ["a", "b"]),  # nobody is left
        (NAMES[:48], ["a", "b"]),  # five are left
        (NAMES[:47], ["b"]),  # four would be all less a and b: the smaller goes
        (NAMES[:24], []),  # all less a is four patients
        (NAMES[:25], ["a"]),
        (NAMES[:19], []),
    ],
)
def test_no_group_is_given_that_tells_of_fewer_than_five(
    patients: Sequence[str], given: list[str]
) -> None:
    """What all less the groups would tell is nobody, or five patients and more."""
    shown = shown_groups(GROUPS, patients)
    assert sorted(shown) == given
    assert all(set(shown[name]) == set(GROUPS[name]) & set(patients) for name in given)


def test_groups_are_compared_at_one_n() -> None:
    """A figure that depends on n would make a gap between groups of different size."""
    strata = {"sex": {"sex F": NAMES[:50], "sex M": NAMES[50:90]}}
    found = evaluate(
        Drawer(phantoms(30, 9)), extractor(), cohort(strata, patients=90), samples=30, seed=5
    )
    assert list(found.figures) == ["all", "sex F", "sex M"]
    numbers = {group: {row.n for row in rows} for group, rows in found.figures.items()}
    assert numbers == {"all": {30}, "sex F": {20}, "sex M": {20}}
    gap = [figure.real for group in ("sex F", "sex M") for figure in found.figures[group][:1]]
    assert gap[0] == pytest.approx(gap[1], rel=0.5), "real against real hardly differs"


@pytest.mark.parametrize(("members", "told"), [(7, False), (8, True)])
def test_too_few_members_of_a_group_give_no_real_against_real(members: int, told: bool) -> None:
    """Of no group of the attribute then, or the one's n would differ from the other's."""
    few = {*NAMES[0:50:2], *NAMES[1 : 2 * members : 2]}
    strata = {"sex": {"sex F": few, "sex M": NAMES[50:90]}}
    found = evaluate(
        Drawer(phantoms(30, 9)), extractor(), cohort(strata, patients=90), samples=30, seed=5
    )
    for group in ("sex F", "sex M"):
        rows = {figure.name: figure for figure in found.figures[group]}
        assert {figure.real is not None for figure in rows.values()} == {told}
        assert {figure.n for figure in rows.values()} == {8 if told else 20}
        assert ("cosine distance to members" in rows) == told


def test_no_interval_leaves_what_a_figure_can_be() -> None:
    """Copies of the held-out patients lie at the limits, where halves moved would cross them."""
    found = figures(Drawer(phantoms(len(NAMES), 3)[0:24:2]))
    limits = {
        **dict.fromkeys(("precision", "recall", "coverage", "MS-SSIM between samples"), (0, 1)),
        **dict.fromkeys(("FID", "density", "rarity"), (0, np.inf)),
        **dict.fromkeys(("cosine distance to held-out", "cosine distance to members"), (0, 2)),
    }
    for name, (least, most) in limits.items():
        assert least <= found[name].low <= found[name].high <= most, name
        assert least <= found[name].value <= most, name
    assert found["coverage"].high == 1
    assert found["FID"].low == 0


def test_intensities_are_shares_in_which_each_patient_counts_alike() -> None:
    """A patient with many volumes does not stand for the hospital; by hand and in all."""
    black, half = np.full((3, 1, 2), -1.0, np.float32), np.array([[-1.0, 0.99]], np.float32)
    shares = intensities([black, half])
    assert len(shares) == 32
    assert (shares[0], shares[31], sum(shares)) == (0.75, 0.25, 1.0)
    found = evaluate(Drawer(phantoms(12, 9)), extractor(), cohort(), samples=12, seed=5)
    expected = intensities([volume[None].numpy() for volume in phantoms(len(NAMES), 3)[0:24:2]])
    assert found.held_out == pytest.approx(expected)
    assert found.samples == pytest.approx(intensities([phantoms(12, 9).numpy()]))


@pytest.mark.parametrize(("kind", "tested"), [("mask", 8), ("class", 16)])
def test_masks_are_told_of_some_patients_and_tested_on_others(
    kind: str, tested: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask tells of the volume that it was drawn on; a class does not, and all are tested."""
    monkeypatch.setattr(adherence, "STEPS", 1)
    monkeypatch.setattr(evaluation, "utility", partial(utility, steps=1, repeats=1))
    volumes = phantoms(len(NAMES), 3)
    table = {}
    for number, (name, x) in enumerate(zip(NAMES, volumes, strict=True)):
        label, mask = torch.tensor([number // 2 % 2]), (x[None] > 0).long()
        told = Condition(label=label) if kind == "class" else Condition(mask=mask)
        table[name] = [Batch(x[None], told)]
    groups = {"age": {"age 40 to 49": NAMES}, "sex": {"sex F": NAMES[:20]}}
    monkeypatch.setattr(evaluation, "LEAST_OF_A_GROUP", 8)
    site = Cohort(table.__getitem__, NAMES[0:32:2], NAMES[1:32:2], groups, (1.0, 1.0, 1.0))
    found = evaluate(Drawer(volumes, kind=kind), extractor(), site, samples=16, seed=5)
    learned = "Dice, both" if kind == "mask" else "AUC, both"
    named = {group: {x.name: x for x in rows} for group, rows in found.figures.items()}
    assert named["all"][learned].n == tested
    assert named["age 40 to 49"][learned].value == named["all"][learned].value
    assert (learned in named["sex F"]) == (kind == "class"), "ten of a sex, five of them tested"
    if kind == "mask":
        assert named["age 40 to 49"]["Dice"].real == named["all"]["Dice"].real
        assert {"Dice", "HD95, mm"} <= set(named["sex F"])


def test_translations_are_told_of_groups() -> None:
    """By hand: all is the mean of both sexes, each counting by its patients."""
    site = cohort({"sex": {"sex F": NAMES[:50], "sex M": NAMES[50:90]}}, patients=90, paired=True)
    drawer = Drawer(phantoms(1, 9), noise=0.1, kind="source")
    found = evaluate(drawer, extractor(), site, samples=45, seed=5)
    for name in ("PSNR, dB", "SSIM", "MAE"):
        everybody, *parts = (
            next(figure for figure in found.figures[group] if figure.name == name)
            for group in ("all", "sex F", "sex M")
        )
        assert [part.n for part in parts] == [25, 20]
        whole = sum(part.n * part.value for part in parts) / everybody.n
        assert everybody.value == pytest.approx(whole)


def test_nobody_is_told_by_what_the_groups_leave_over() -> None:
    """All less two sexes are two patients of whom samples were drawn: one sex is not told."""
    patients = [f"p{number:02d}" for number in range(50)]
    groups = {"sex F": patients[:21], "sex M": patients[21:41]}  # nine have neither
    values = {patient: [float(number)] for number, patient in enumerate(patients)}
    real = {patient: row for patient, row in values.items() if patient != "p49"}
    for drawn, told in ((50, ["all", "sex F", "sex M"]), (43, ["all", "sex F"])):
        some = {patient: values[patient] for patient in patients[:drawn]}
        measure = averaged("x", some, real, better="lower", generator=np.random.default_rng(0))
        found = evaluation._told_of(measure, {"sex": groups})
        assert list(found) == told
        assert found["sex F"].value == pytest.approx(10)
        assert found["all"].real is not None
        # where one patient has no real value, all less the sexes is another set than theirs
        assert (found["sex F"].real is None) == (drawn == 50)
