"""Conditions become numbers or planes, and one that does not fit is refused by name."""

from dataclasses import replace

import pytest
import torch
from voxfed.models.base import NO_CONDITION, Condition
from voxfed.models.conditioning import Conditioning, Kind
from voxfed.study.errors import PlanError

KINDS: tuple[Kind, ...] = ("class", "attributes", "mask", "source")


def make(kind: Kind) -> Conditioning:
    return Conditioning(kind, classes=3, attributes=2, shape=(2, 3, 4))


def test_a_class_is_one_among_zeros() -> None:
    told = make("class").told(Condition(label=torch.tensor([2, 0])), 2)
    assert told is not None
    assert told.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_mask_is_one_plane_a_structure() -> None:
    mask = torch.randint(3, (2, 1, 2, 3, 4))
    told = make("mask").told(Condition(mask=mask), 2)
    assert told is not None
    assert told.shape == (2, 3, 2, 3, 4)
    assert torch.equal(told.argmax(1, keepdim=True), mask)
    assert torch.equal(told.sum(1), torch.ones(2, 2, 3, 4))


def test_numbers_and_source_are_told_as_they_are() -> None:
    numbers, source = torch.rand(2, 2), torch.rand(2, 1, 2, 3, 4)
    assert make("attributes").told(Condition(attributes=numbers), 2) is numbers
    assert make("source").told(Condition(source=source), 2) is source
    assert make("none").told(NO_CONDITION, 2) is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_fits_and_has_the_stated_channels(kind: Kind) -> None:
    conditioning = make(kind)
    told = conditioning.told(conditioning.example(4, torch.Generator().manual_seed(0)), 4)
    assert told is not None
    assert told.shape[1] == conditioning.numbers + conditioning.planes
    assert told.dtype == torch.float32
    assert make("none").example(4, torch.Generator()) == NO_CONDITION


@pytest.mark.parametrize("kind", ["mask", "source"])
def test_no_image_is_drawn_from_a_prior(kind: Kind) -> None:
    """An image of noise is no public mask: who samples must give one."""
    with pytest.raises(PlanError, match=f"a {kind} cannot be drawn"):
        make(kind).prior(1, torch.Generator())


def test_classes_are_drawn_by_weight() -> None:
    """4,000 draws are within 6 standard deviations of the plan's weights; a 0 is never drawn."""
    weighted = replace(make("class"), weights=(3.0, 0.0, 1.0))
    label = weighted.prior(4000, torch.Generator().manual_seed(0)).label
    assert label is not None
    counts = torch.bincount(label, minlength=3).tolist()
    assert counts[1] == 0
    assert abs(counts[0] - 3000) < 6 * 27.4


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_condition_is_refused(kind: Kind) -> None:
    with pytest.raises(PlanError, match="takes a condition"):
        make(kind).told(NO_CONDITION, 1)


def test_a_condition_too_many_is_refused() -> None:
    both = Condition(label=torch.tensor([1]), attributes=torch.zeros(1, 2))
    with pytest.raises(PlanError, match="label, attributes"):
        make("class").told(both, 1)
    with pytest.raises(PlanError, match="takes no condition"):
        make("none").told(both, 1)


@pytest.mark.parametrize(
    ("kind", "condition", "words"),
    [
        ("class", Condition(label=torch.tensor([3])), "0 to 2"),
        ("class", Condition(label=torch.tensor([-1])), "0 to 2"),
        ("class", Condition(label=torch.tensor([1.0])), "int64"),
        ("class", Condition(label=torch.tensor([1, 1])), "wrong shape"),
        ("attributes", Condition(attributes=torch.zeros(1, 3)), "wrong shape"),
        ("attributes", Condition(attributes=torch.full((1, 2), torch.nan)), "finite"),
        ("mask", Condition(mask=torch.full((1, 1, 2, 3, 4), 3)), "0 to 2"),
        ("mask", Condition(mask=torch.zeros(1, 1, 4, 3, 2).long()), "wrong shape"),
        ("source", Condition(source=torch.zeros(1, 2, 2, 3, 4)), "wrong shape"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(
    kind: Kind, condition: Condition, words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        make(kind).told(condition, 1)
