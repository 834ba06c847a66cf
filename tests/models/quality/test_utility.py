"""Synthetic volumes help where they are right, and do not where they are not."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from voxfed.models.base import Batch, Condition
from voxfed.models.quality import utility as module
from voxfed.models.quality.intervals import Figure
from voxfed.models.quality.utility import area_under_curve, balanced_accuracy
from voxfed.study.errors import UsageError

SIDE = 16


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bodies(n: int, seed: int) -> Batch:
    """Return noisy volumes with a cube high (label 1) or low (label 0), its mask and its label."""
    generator = draws(seed)
    labels = torch.arange(n) % 2
    masks = torch.zeros(n, 1, SIDE, SIDE, SIDE, dtype=torch.int64)
    for mask, label in zip(masks, labels.tolist(), strict=True):
        x, y, z = torch.randint(0, 4, (3,), generator=generator).tolist()
        z += 7 * label
        mask[0, x + 3 : x + 8, y + 3 : y + 8, z : z + 5] = 1
    noise = 0.5 * torch.randn(masks.shape, generator=generator)
    volumes = (masks.float() - 0.5 + noise).clamp(-1, 1)
    return Batch(volumes, Condition(label=labels, mask=masks))


def told(batch: Batch, *kinds: str) -> Batch:
    """Return the batch with some of its condition."""
    return replace(
        batch, condition=Condition(**{kind: getattr(batch.condition, kind) for kind in kinds})
    )


def shuffled(batch: Batch, seed: int) -> Batch:
    """Return the volumes with each other's labels and masks."""
    order = torch.randperm(len(batch.volumes), generator=draws(seed))
    condition = batch.condition
    return replace(
        batch,
        condition=Condition(
            label=None if condition.label is None else condition.label[order],
            mask=None if condition.mask is None else condition.mask[order],
        ),
    )


def utility(*sets: Any, **more: Any) -> tuple[Figure, ...]:
    """Return the figures of all patients of the test."""
    told = [measure.figure(measure.patients) for measure in module.utility(*sets, **more)]
    return tuple(figure for figure in told if figure is not None)


def run(kind: str, synthetic: Batch, *, steps: int = 80) -> dict[str, Figure]:
    """Return the figures of synthetic volumes beside two real ones, on 12 patients of two each."""
    real, test = told(bodies(2, 0), kind), told(bodies(24, 2), kind)
    patients = [f"patient-{number % 12}" for number in range(24)]
    figures = utility(real, synthetic, test, patients, steps=steps, repeats=1, generator=draws())
    return {figure.name: figure for figure in figures}


def test_right_labels_help() -> None:
    """Many synthetic volumes with right labels beat two real ones, alone and beside them."""
    found = run("label", told(bodies(48, 1), "label"))
    assert list(found) == [
        f"{name}, {way}"
        for name in ("balanced accuracy", "AUC")
        for way in ("real only", "synthetic only", "both")
    ]
    for name in ("balanced accuracy", "AUC"):
        alone, synthetic, both = (
            found[f"{name}, {way}"] for way in ("real only", "synthetic only", "both")
        )
        assert min(synthetic.value, both.value) > 0.9
        assert min(synthetic.value, both.value) >= alone.value
    assert {figure.n for figure in found.values()} == {12}
    assert all(figure.low <= figure.value <= figure.high for figure in found.values())


def test_shuffled_labels_do_not_beat_chance() -> None:
    """The figure is of what was learned from the labels, not of the test's make-up."""
    found = run("label", shuffled(told(bodies(48, 1), "label"), 1))
    assert found["balanced accuracy, synthetic only"].low < 0.6
    assert found["AUC, synthetic only"].low < 0.6


def test_right_masks_help_and_shuffled_masks_do_not() -> None:
    """The same for segmenters, by Dice."""
    right = run("mask", told(bodies(24, 1), "mask"))
    wrong = run("mask", shuffled(told(bodies(24, 1), "mask"), 1), steps=40)
    assert list(right) == ["Dice, real only", "Dice, synthetic only", "Dice, both"]
    assert right["Dice, synthetic only"].value > 0.6
    assert right["Dice, both"].value > 0.6
    assert wrong["Dice, synthetic only"].value < 0.4


def test_figures_repeat() -> None:
    """The same generator gives the same figures to the last digit."""
    some = told(bodies(6, 1), "label")
    first, second = (
        utility(some, some, some, list("abcdef"), steps=2, repeats=1, generator=draws())
        for _ in range(2)
    )
    assert first == second
    assert len(first) == 6


def test_without_labels_there_is_no_utility() -> None:
    """An unconditional model's volumes have nothing to be read from them."""
    some = told(bodies(6, 0))
    assert utility(some, some, some, list("abcdef"), generator=draws()) == ()


def test_a_test_of_one_class_has_no_utility() -> None:
    """Whoever always says the one class would be right: no figure is better than that one."""
    some = told(bodies(6, 0), "label")
    one = replace(some, condition=Condition(label=torch.ones(6, dtype=torch.int64)))
    assert utility(some, some, one, list("abcdef"), generator=draws()) == ()


@pytest.mark.parametrize("kind", ["label", "mask"])
def test_a_test_of_four_patients_has_no_utility(kind: str) -> None:
    """However many volumes they have: the patients are what the interval is over."""
    some = told(bodies(10, 0), kind)
    found = [
        utility(some, some, some, list(names), steps=1, repeats=1, generator=draws())
        for names in ("abcdabcdab", "abcdeabcde")
    ]
    assert [len(figures) for figures in found] == [0, 6 if kind == "label" else 3]


def test_classes_that_no_draw_holds_together_have_no_utility() -> None:
    """Sixteen patients of sixteen classes: a value without an interval would pass for certain."""
    some = replace(bodies(16, 0), condition=Condition(label=torch.arange(16)))
    patients = [f"patient-{number}" for number in range(16)]
    assert utility(some, some, some, patients, steps=1, repeats=1, generator=draws()) == ()


@pytest.mark.parametrize("kind", ["label", "mask"])
def test_a_part_of_the_patients_has_the_figures_of_a_test_of_them_alone(kind: str) -> None:
    """Trained once, each group is told as if nobody else had been tested."""
    some, test = told(bodies(6, 1), kind), told(bodies(12, 2), kind)
    names = [f"patient-{number % 2}{number // 2}" for number in range(12)]
    rows = [number for number, name in enumerate(names) if name < "patient-04"] + [1, 3, 5, 7]
    part = Batch(test.volumes[rows], test.condition.mapped(lambda each: each[rows]))
    chosen = [names[row] for row in rows]
    more: Any = {"steps": 5, "repeats": 1}
    alone = utility(some, some, part, chosen, generator=draws(), **more)
    for measure, expected in zip(
        module.utility(some, some, test, names, generator=draws(), **more), alone, strict=True
    ):
        figure = measure.figure(chosen)
        assert figure is not None
        assert (figure.name, figure.n) == (expected.name, 8)
        assert figure.value == pytest.approx(expected.value, abs=1e-6)
        assert figure.low <= figure.value <= figure.high


def test_a_group_that_lacks_a_class_has_no_figure_of_classes() -> None:
    """Its balanced accuracy would be of one class fewer than its neighbour's."""
    some = told(bodies(12, 1), "label")
    names = [f"patient-{number % 2}{number // 2}" for number in range(12)]
    measures = module.utility(some, some, some, names, steps=1, repeats=1, generator=draws())
    ones = [name for name in names if name.startswith("patient-1")]
    assert [measure.figure(ones) for measure in measures] == [None] * 6
    assert None not in [measure.figure(names) for measure in measures]


def test_a_draw_of_a_patient_is_of_all_its_volumes() -> None:
    """Each volume three times over changes no interval; each patient has both labels."""
    some, test = told(bodies(4, 1), "label"), told(bodies(16, 2), "label")
    found = []
    for times in (1, 3):
        volumes = test.volumes.repeat(times, 1, 1, 1, 1)
        assert test.condition.label is not None
        again = Batch(volumes, Condition(label=test.condition.label.repeat(times)))
        patients = [f"patient-{number // 2}" for number in range(16)] * times
        figures = utility(some, some, again, patients, steps=5, repeats=1, generator=draws())
        found.append([number for x in figures for number in (x.value, x.low, x.high)])
        assert {figure.n for figure in figures} == {8}
    assert len(found[0]) == 18
    assert found[0] == pytest.approx(found[1])
    assert any(low < high for low, high in zip(found[0][1::3], found[0][2::3], strict=True))


@pytest.mark.parametrize(
    ("real", "synthetic", "patients"),
    [("label", "", "abcd"), ("", "label", "abcd"), ("label", "mask", "abcd"), ("", "", "abc")],
)
def test_what_does_not_fit_is_refused(real: str, synthetic: str, patients: str) -> None:
    """Labels on one side only, or a volume without a patient, is an error and not a number."""
    some = bodies(4, 0)
    with pytest.raises(UsageError):
        utility(
            told(some, *filter(None, [real])),
            told(some, *filter(None, [synthetic])),
            told(some, *filter(None, [real])),
            list(patients),
            generator=draws(),
        )


def test_an_empty_set_is_refused() -> None:
    """A model that drew nothing has no utility of 0: there is nothing to train on."""
    some, none = told(bodies(2, 0), "label"), told(bodies(0, 0), "label")
    with pytest.raises(UsageError, match=r"\[2, 0, 2\] volumes"):
        utility(some, none, some, ["a", "b"], generator=draws())


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    """A loop over pairs, with ties and three classes."""
    scores = np.array([[3, 1, 0], [2, 2, 0], [0, 2, 2], [1, 0, 2], [1, 1, 1], [2, 1, 3]], float)
    labels = np.array([0, 0, 1, 2, 1, 2])
    areas = []
    for label in range(3):
        column = scores[:, label]
        pairs = list(itertools.product(column[labels == label], column[labels != label]))
        areas.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert area_under_curve(scores, labels) == pytest.approx(np.mean(areas))


def test_balanced_accuracy_counts_classes_alike() -> None:
    """Three of four and none of one are 3/8, though three of five are right."""
    scores = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0]], float)
    assert balanced_accuracy(scores, np.array([0, 0, 0, 0, 1])) == pytest.approx(0.375)
