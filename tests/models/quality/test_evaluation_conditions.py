"""Evaluation of models that are told something: whether they listen, and who must be there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from families import balls
from torch import Tensor
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family
from voxfed.models.conditioning import Conditioning
from voxfed.models.quality import adherence, evaluation
from voxfed.models.quality.drawing import Drawn
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.evaluation import Cohort, evaluate, told_and_tested
from voxfed.models.quality.features import contrastive
from voxfed.models.quality.intervals import Figure
from voxfed.models.quality.utility import utility

SHAPE = (16, 16, 16)
NAMES = tuple(f"patient-{number:02d}" for number in range(48))


def conditions(kind: str, n: int, seed: int) -> list[Condition]:
    """Return masks of a box somewhere, or classes in turn."""
    if kind == "class":
        return [Condition(label=torch.tensor([number % 2])) for number in range(n)]
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros((n, 1, 1, *SHAPE), dtype=torch.int64)
    for mask in masks:
        x, y, z = torch.randint(1, 9, (3,), generator=generator).tolist()
        mask[0, 0, x : x + 6, y : y + 6, z : z + 6] = 1
    return [Condition(mask=mask) for mask in masks]


def paint(condition: Condition, generator: torch.Generator) -> Tensor:
    """Return (1, 1, D, H, W): the box on black, or brightness above (class 1) or below."""
    if condition.mask is not None:
        bright = condition.mask.float()
    else:
        assert condition.label is not None
        bright = torch.zeros((1, 1, *SHAPE))
        first = 8 * int(condition.label)
        bright[..., first : first + 8] = 1
    noise = 0.2 * torch.randn(bright.shape, generator=generator)
    return (1.2 * bright - 0.6 + noise).clamp(-1, 1)


class Painter(Family):
    """Paints what it is told, or others' in turn; remembers what it was told."""

    stages = ("only",)

    def __init__(self, kind: str, *, others: Sequence[Condition] = ()) -> None:
        super().__init__()
        told = Conditioning(kind, 2, 1, SHAPE)  # type: ignore[arg-type]
        self.spec: Any = type("Spec", (), {"conditioning": told})()
        self.others, self.told = others, list[Condition]()

    def steps(self, stage: str) -> tuple[Any, ...]:
        return ()

    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        self.told.append(condition)
        if self.others:
            condition = self.others[len(self.told) % len(self.others)]
        return paint(condition, generator)


def figures(family: Family, kind: str, held_out: int, members: int) -> dict[str, Figure]:
    """Return what an evaluation of a family finds, by name."""
    generator = torch.Generator().manual_seed(1)
    rows = zip(NAMES, conditions(kind, len(NAMES), 2), strict=True)
    table = {name: [Batch(paint(told, generator), told)] for name, told in rows}
    site = Cohort(
        table.__getitem__, NAMES[:held_out], NAMES[held_out : held_out + members], {}, (2.0,) * 3
    )
    torch.manual_seed(0)
    found = evaluate(family, contrastive(Encoder()), site, samples=held_out, seed=5)
    return {figure.name: figure for figure in found.figures["all"]}


@pytest.mark.slow
def test_a_model_that_ignores_its_masks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As good a box elsewhere has a Dice of little, while what obeys reaches the real volumes."""
    monkeypatch.setattr(adherence, "STEPS", 80)
    monkeypatch.setattr(evaluation, "utility", partial(utility, steps=80, repeats=1))
    families = Painter("mask"), Painter("mask", others=conditions("mask", 11, 3))
    obeys, ignores = (figures(family, "mask", 12, 12) for family in families)
    assert obeys["Dice"].real == ignores["Dice"].real
    assert obeys["Dice"].value == pytest.approx(obeys["Dice"].real, abs=0.05)
    assert ignores["Dice"].high < 0.5 < obeys["Dice"].low
    assert obeys["HD95, mm"].high < 4 < ignores["HD95, mm"].low
    learned = "Dice, synthetic only"
    assert ignores[learned].high < 0.5 < obeys[learned].low


@pytest.mark.slow
def test_a_model_that_ignores_its_classes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples teach nothing, though each alone is as good as those of one that obeys."""
    monkeypatch.setattr(evaluation, "utility", partial(utility, steps=60, repeats=1))
    # of four samples in a row, each class is told of both and drawn as both
    others = [conditions("class", 2, 0)[number] for number in (0, 0, 1, 1)]
    families = Painter("class"), Painter("class", others=others)
    obeys, ignores = (figures(family, "class", 24, 24) for family in families)
    for name in ("balanced accuracy", "AUC"):
        assert min(obeys[f"{name}, {way}"].low for way in ("real only", "synthetic only")) > 0.9
        assert ignores[f"{name}, real only"].low > 0.9
        assert ignores[f"{name}, synthetic only"].low < 0.6


@pytest.mark.parametrize("kind", ["mask", "class"])
def test_what_is_told_is_of_the_held_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of somebody who trained would ask the model for what it may have learned by heart."""
    monkeypatch.setattr(adherence, "STEPS", 1)
    monkeypatch.setattr(evaluation, "utility", partial(utility, steps=1, repeats=1))
    family = Painter(kind)
    figures(family, kind, 8, 8)
    expected = conditions(kind, len(NAMES), 2)[:8]
    assert len(family.told) == 8
    for told, own in zip(family.told, expected, strict=True):
        one, other = (x.mask if kind == "mask" else x.label for x in (told, own))
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize(("held_out", "tested"), [(8, 5), (9, 5), (10, 5), (11, 5), (12, 6)])
def test_the_fewest_held_out_patients_have_utility_of_masks(
    held_out: int, tested: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that can be evaluated at all has each figure: five are tested, the others are told."""
    monkeypatch.setattr(adherence, "STEPS", 1)
    monkeypatch.setattr(evaluation, "utility", partial(utility, steps=1, repeats=1))
    found = figures(Painter("mask"), "mask", held_out, 8)
    assert found["Dice"].n == held_out
    for way in ("real only", "synthetic only", "both"):
        assert found[f"Dice, {way}"].n == tested


@pytest.mark.parametrize("kind", ["mask", "class"])
@pytest.mark.parametrize(("members", "given"), [(0, False), (4, False), (5, True)])
def test_too_few_members_teach_nobody(
    kind: str, members: int, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure of a network that learned from one patient would be that patient's."""
    monkeypatch.setattr(adherence, "STEPS", 1)
    monkeypatch.setattr(evaluation, "utility", partial(utility, steps=1, repeats=1))
    found = figures(Painter(kind), kind, 8, members)
    learned = {"Dice", "Dice, real only"} if kind == "mask" else {"AUC, real only"}
    assert learned <= set(found) if given else not any("Dice" in x or "AUC" in x for x in found)
    assert "FID" in found


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_tested_was_not_told(apart: bool) -> None:
    """No patient whose mask made a sample to learn from tests what was learned; classes may."""
    volumes = balls(16, SHAPE)
    visits = [
        (f"patient-{number // 2}", Batch(x[None], Condition(label=torch.tensor([number]))))
        for number, x in enumerate(volumes)
    ]
    drawn = Drawn(volumes[:6], [0, 1, 2, 3, 4, 5])
    synthetic, test, patients = told_and_tested(drawn, visits, apart=apart)
    assert synthetic.condition.label is not None
    assert test.condition.label is not None
    told, tested = synthetic.condition.label.tolist(), test.condition.label.tolist()
    assert told == ([0, 1, 4, 5] if apart else [0, 1, 2, 3, 4, 5])
    assert tested == ([2, 3, 6, 7, 10, 11, 12, 13, 14, 15] if apart else list(range(16)))
    assert patients == [f"patient-{number // 2}" for number in tested]
    assert torch.equal(synthetic.volumes, volumes[told])
