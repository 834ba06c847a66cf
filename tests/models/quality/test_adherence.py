"""Adherence: samples that keep to their masks are told from those that do not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from voxfed.models.base import Batch, Condition
from voxfed.models.quality import adherence, similarity
from voxfed.models.quality.adherence import Visits, anatomy, translations
from voxfed.models.quality.drawing import Drawn
from voxfed.models.quality.intervals import Figure

SIDE = 12


def scene(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n volumes of a bright and a dark box on grey, with noise, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros((n, 1, SIDE, SIDE, SIDE), dtype=torch.int64)
    for mask in masks:
        for label, first in ((1, 0), (2, SIDE // 2)):
            corner = torch.randint(1, 3, (3,), generator=generator).tolist()
            place = [slice(corner[0] + first, corner[0] + first + 4)]
            place += [slice(c + 2, c + 8) for c in corner[1:]]
            mask[0, *place] = label
    shades = torch.tensor([0.0, 0.8, -0.8])[masks]
    return shades + 0.05 * torch.randn(shades.shape, generator=generator), masks


def batches(n: int, seed: int) -> list[Batch]:
    volumes, masks = scene(n, seed)
    return [
        Batch(x[None], Condition(mask=mask[None])) for x, mask in zip(volumes, masks, strict=True)
    ]


def visits() -> Visits:
    return [(f"patient-{number}", batch) for number, batch in enumerate(batches(8, seed=1))]


@cache
def found(kind: str) -> dict[str, Figure]:
    """The figures of samples that keep to their masks, or that are told other patients'."""
    held_out = visits()
    volumes = torch.cat([batch.volumes for _, batch in held_out])
    order = list(range(8)) if kind == "right" else [*range(1, 8), 0]
    drawn = Drawn(volumes[order], list(range(8)))
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adherence, "STEPS", 60)
        measures = anatomy(drawn, held_out, batches(16, seed=2), 3, (1.0, 1.0, 1.0), generator)
    told = [measure.figure(measure.patients) for measure in measures]
    return {figure.name: figure for figure in told if figure is not None}


def test_samples_that_keep_to_their_masks_reach_real() -> None:
    """The samples are the patients' own volumes: Dice and HD95 are those of the real ones."""
    figures = found("right")
    assert set(figures) == {
        f"{name}{part}"
        for name in ("Dice", "HD95, mm")
        for part in ("", ", structure 1", ", structure 2")
    }
    for figure in figures.values():
        assert figure.value == figure.real
        assert figure.n == 8
    assert figures["Dice"].value > 0.8
    parts = [figures[f"Dice, structure {label}"].value for label in (1, 2)]
    assert figures["Dice"].value == pytest.approx(np.mean(parts))


def test_samples_of_other_masks_are_found_out() -> None:
    """A model that ignores what it is told draws good organs in the wrong place."""
    right, wrong = found("right"), found("wrong")
    assert wrong["Dice"].real == right["Dice"].real
    assert wrong["Dice"].high < right["Dice"].low
    assert wrong["HD95, mm"].value > right["HD95, mm"].value


def test_translations_belong_to_their_patient() -> None:
    """A patient with two visits has two values, of the very visit that was translated."""
    volumes, _ = scene(3, seed=3)
    sources = [Batch(x[None], Condition(source=x[None])) for x in volumes]
    held_out = [("a", sources[0]), ("a", sources[1]), ("b", sources[2])]
    noisy = volumes + 0.1
    values = translations(Drawn(noisy, [0, 1, 2]), held_out)
    assert set(values) == {"PSNR, dB", "SSIM", "MAE"}
    assert values["MAE"] == {
        "a": pytest.approx([0.1, 0.1], rel=1e-4),
        "b": pytest.approx([0.1], rel=1e-4),
    }
    own = similarity.ssim(noisy[1:2].numpy(), volumes[1:2].numpy())
    assert values["SSIM"]["a"][1] == pytest.approx(own[0])


def test_without_a_source_there_are_no_pairs() -> None:
    """A mask is not an image that a sample could be like."""
    volumes = torch.cat([batch.volumes for _, batch in visits()])
    assert translations(Drawn(volumes, list(range(8))), visits()) == {}
    assert translations(Drawn(volumes, []), visits()) == {}
