"""Who holds a synthetic volume can tell what it was asked to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_plan
from voxfed.models.base import NO_CONDITION, Condition
from voxfed.privacy.samples import _words

CLASS = {"kind": "class", "column": "sex", "values": ["F", "M"]}
AGE = {"kind": "attributes", "columns": ["age"], "ranges": [[20.0, 80.0]]}
PATH = Path("synthetic-0001.nii.gz")


@pytest.mark.parametrize(
    ("condition", "row", "words"),
    [
        (CLASS, Condition(label=torch.tensor([1])), {"sex": "M"}),
        (AGE, Condition(attributes=torch.tensor([[0.5]])), {"age": 65.0}),
        (
            {"kind": "mask", "structures": 3},
            Condition(mask=torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)),
            {"mask": "synthetic-0001_mask.nii.gz"},
        ),
    ],
)
def test_what_a_volume_shows(condition: Any, row: Condition, words: dict[str, object]) -> None:
    """In the cohort's own words and units: a mask's file, a class by name, an age in years."""
    assert _words(tiny_plan("diffusion", condition=condition), row, PATH) == words


def test_a_family_that_is_told_nothing_has_nothing_to_say() -> None:
    assert _words(tiny_plan("diffusion"), NO_CONDITION, PATH) == {}
