"""What a person asks synthetic volumes to show: a class, numbers, or images that may be used."""

from __future__ import annotations

from pathlib import Path

import torch

from ..models.base import Condition
from ..study.condition import ConditionSettings
from ..study.errors import UsageError
from ..study.plan import StudyPlan
from .alignment import align
from .nifti import SUFFIXES


def asked(plan: StudyPlan, words: str) -> list[Condition]:
    """Return the conditions that `--condition` names, each of one row.

    Args:
        plan: of the released model.
        words: a class by its name, numbers in the columns' order and units, or a NIfTI file or a
            folder of them: masks, or sources.

    Raises:
        UsageError: the model is told nothing, or something else.
        VolumeError: an image cannot be used.
    """
    settings = plan.condition
    if settings is None:
        raise UsageError("the model is told no condition", got=words, hint="leave out --condition")
    if settings.kind == "class":
        return [_class(settings, words)]
    if settings.kind == "attributes":
        return [_attributes(settings, words)]
    found = []
    for path in _images(Path(words)):
        voxels = torch.from_numpy(align(path, plan.volumes, settings))[None]
        mask = settings.kind == "mask"
        found.append(Condition(mask=voxels.long()) if mask else Condition(source=voxels))
    return found


def _class(settings: ConditionSettings, words: str) -> Condition:
    if words not in settings.values:
        expected = ", ".join(settings.values)
        raise UsageError(f"no such {settings.column}", got=words, expected=expected)
    return Condition(label=torch.tensor([settings.values.index(words)]))


def _attributes(settings: ConditionSettings, words: str) -> Condition:
    expected = ", ".join(
        f"{column} from {low:g} to {high:g}"
        for column, (low, high) in zip(settings.columns, settings.ranges, strict=True)
    )
    try:
        numbers = [float(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    fits = len(numbers) == len(settings.ranges) and all(
        low <= x <= high for x, (low, high) in zip(numbers, settings.ranges, strict=True)
    )
    if not fits:
        raise UsageError("the condition does not fit", got=words, expected=expected)
    scaled = [
        2 * (x - low) / (high - low) - 1
        for x, (low, high) in zip(numbers, settings.ranges, strict=True)
    ]
    return Condition(attributes=torch.tensor([scaled]))


def _images(path: Path) -> list[Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    images = [one for one in found if one.is_file() and one.name.endswith(SUFFIXES)]
    if not images:
        raise UsageError("no image to start from", got=path, expected="a .nii.gz file or a folder")
    return images
