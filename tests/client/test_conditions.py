"""What a person asks for becomes what the model is told, or is refused with what it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from families import tiny_plan
from voxfed.client.conditions import asked
from voxfed.study.errors import UsageError, VolumeError

CLASS = {"kind": "class", "column": "sex", "values": ["F", "M"]}
AGE = {"kind": "attributes", "columns": ["age", "weight"], "ranges": [[20.0, 80.0], [40.0, 120.0]]}
MASK = {"kind": "mask", "structures": 3}
SOURCE = {"kind": "source", "intensity": "window", "window": [0.0, 100.0]}


def plan(condition: dict[str, Any] | None) -> Any:
    changes = {"condition": condition} if condition else {}
    return tiny_plan("diffusion", (8, 8, 8), **changes)


def image(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([9.0, 9.0, 9.0, 1.0])), path)
    return path


def test_a_class_and_numbers_by_hand() -> None:
    """Ages 20 to 80 go to -1 to 1, so 50 is 0; 60 kg of 40 to 120 is a quarter of the way."""
    (row,) = asked(plan(CLASS), "M")
    assert torch.equal(row.label, torch.tensor([1]))
    (row,) = asked(plan(AGE), "50,60")
    assert torch.equal(row.attributes, torch.tensor([[0.0, -0.5]]))


def test_images_are_read_as_a_site_reads_them(tmp_path: Path) -> None:
    """A folder gives its images in order; a mask keeps its labels, a source its window."""
    labels = np.zeros((8, 8, 8))
    labels[2:6, 2:6, 2:6] = 2
    image(tmp_path / "b.nii.gz", labels)
    image(tmp_path / "a.nii.gz", np.where(labels > 0, 1, 0))
    first, second = asked(plan(MASK), str(tmp_path))
    assert first.mask.dtype == torch.int64
    assert (first.mask.shape, int(first.mask.max())) == ((1, 1, 8, 8, 8), 1)
    assert int(second.mask.sum()) == 2 * 64
    (row,) = asked(plan(SOURCE), str(image(tmp_path / "c.nii.gz", labels * 50)))
    assert row.source.unique().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("condition", "words", "told"),
    [
        (None, "F", "told no condition"),
        (CLASS, "f", "expected F, M"),
        (AGE, "50", "age from 20 to 80"),
        (AGE, "50,old", "weight from 40 to 120"),
        (AGE, "50,nan", "does not fit"),
        (AGE, "90,60", "does not fit"),
        (MASK, "nowhere", "no image to start from"),
    ],
)
def test_what_the_model_does_not_know_is_refused(condition: Any, words: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        asked(plan(condition), words)


def test_a_mask_with_strange_labels_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "a.nii.gz", np.arange(512).reshape(8, 8, 8) % 5)
    with pytest.raises(VolumeError, match="other labels"):
        asked(plan(MASK), str(path))
