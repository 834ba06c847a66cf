"""Adherence: how well samples keep to the image that they were told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..base import Batch, joined
from . import similarity
from .downstream import segment, train_segmenter
from .drawing import Drawn
from .intervals import Better, Measure, averaged
from .segmentation import Spacing, dice, hd95

STEPS = 150
Visits = Sequence[tuple[str, Batch]]
"""Each volume of the held-out patients, a batch of one, with its patient's name."""
Rows = list[tuple[str, list[float | None]]]
Values = dict[str, list[float]]
"""Those of each patient."""

PAIRS: tuple[tuple[str, Callable[..., npt.NDArray[np.float64]], Better], ...] = (
    ("PSNR, dB", similarity.psnr, "higher"),
    ("SSIM", similarity.ssim, "higher"),
    ("MAE", similarity.mae, "lower"),
)


def translations(drawn: Drawn, visits: Visits) -> dict[str, Values]:
    """Return how like each translation of a source is to the patient's own volume.

    Returns:
        From a figure of `PAIRS` to each patient's values; empty where no source was told.
    """
    found: dict[str, Values] = {}
    for number, visit in enumerate(drawn.visits):
        patient, batch = visits[visit]
        if batch.condition.source is None:
            continue
        own = batch.volumes.cpu().numpy()
        for name, likeness, _ in PAIRS:
            value = float(likeness(drawn.array[number : number + 1], own)[0])
            found.setdefault(name, {}).setdefault(patient, []).append(value)
    return found


def anatomy(
    drawn: Drawn,
    visits: Visits,
    members: Sequence[Batch],
    structures: int,
    spacing: Spacing,
    generator: torch.Generator,
) -> list[Measure]:
    """Return Dice and HD95 between the masks told and those that a segmenter finds in the samples.

    The segmenter learns from members alone. Real against real is what it finds in the held-out
    patients' own volumes.

    Args:
        drawn: samples of masks.
        visits: the held-out patients' volumes with their masks.
        members: the volumes of other patients, with masks.
        structures: labels with the background.
        spacing: mm between voxels along D, H, W.
        generator: on the CPU; all that is random follows from it.

    Returns:
        Both figures over all structures, then of each.
    """
    learned = joined(members)
    segmenter = train_segmenter(
        learned.volumes, _mask(learned), structures, steps=STEPS, generator=generator
    )
    own = [(name, _mask(batch)) for name, batch in visits]
    told = [own[visit] for visit in drawn.visits]
    device = visits[0][1].volumes.device
    samples = segment(segmenter, drawn.volumes.to(device))
    real = segment(segmenter, torch.cat([batch.volumes for _, batch in visits]))
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    found = _compare(samples, told, structures, spacing)
    beside = _compare(real, own, structures, spacing)
    return [
        averaged(name, values, beside[name][1], better=better, generator=numbers)
        for name, (better, values) in found.items()
    ]


def _compare(
    masks: Tensor,
    expected: Sequence[tuple[str, Tensor]],
    structures: int,
    spacing: Spacing,
) -> dict[str, tuple[Better, Values]]:
    """Return each figure's better way and its values, over all structures and of each."""
    overlaps: Rows = []
    distances: Rows = []
    for found, (patient, mask) in zip(masks.cpu().numpy()[:, 0], expected, strict=True):
        wanted = mask.cpu().numpy()[0, 0]
        overlaps.append((patient, dice(found, wanted, structures)))
        distances.append((patient, hd95(found, wanted, structures, spacing)))
    figures: dict[str, tuple[Better, Values]] = {}
    kinds: tuple[tuple[str, Rows, Better], ...]
    kinds = ("Dice", overlaps, "higher"), ("HD95, mm", distances, "lower")
    for name, rows, better in kinds:
        chosen = {name: range(structures - 1)}
        if structures > 2:
            chosen |= {f"{name}, structure {n + 1}": range(n, n + 1) for n in range(structures - 1)}
        for title, places in chosen.items():
            patients: Values = {}
            for patient, row in rows:
                values = [value for place in places if (value := row[place]) is not None]
                patients.setdefault(patient, []).extend(values)
            figures[title] = better, patients
    return figures


def _mask(batch: Batch) -> Tensor:
    assert batch.condition.mask is not None  # noqa: S101, a family of masks was told one
    return batch.condition.mask
