"""What a site agreed to say of itself, in coarse numbers."""

from __future__ import annotations

import itertools
import math

from .. import __version__
from ..study.errors import VolumeError
from ..study.messages import Description
from .cohort import Image, modality_of, read_cohort
from .nifti import read_spacing
from .site import Site

BANDS = (10, 20, 50, 100, 200, 500, 1000)


def describe(site: Site) -> Description:
    """Return the banded number of patients, modalities, spacing range (mm), device and limits.

    Raises:
        VolumeError: the cohort cannot be read.
    """
    cohort = read_cohort(site.cohort)
    images = [image for owned in cohort.patients.values() for image in owned]
    spacing = _spacing_range(images)
    limits = site.settings.limits
    return Description(
        patients=band(len(cohort.patients)),
        modalities=tuple(sorted({modality_of(image.path) for image in images}))[:32],
        spacing=spacing,
        labels=any(image.label or image.mask for image in images),
        device=_device(site.settings.device),
        most_epsilon=limits.lifetime_epsilon,
        least_noise=limits.least_noise,
        without_privacy=limits.without_privacy,
        defaced=site.settings.defaced,
        version=__version__,
    )


def band(n: int) -> str:
    """Return the band of a number of patients, e.g. "20 to 49".

    >>> band(60)
    '50 to 99'
    """
    if n < BANDS[0]:
        return f"under {BANDS[0]}"
    for low, high in itertools.pairwise(BANDS):
        if n < high:
            return f"{low} to {high - 1}"
    return f"{BANDS[-1]} or more"


def _spacing_range(images: list[Image]) -> tuple[float, float] | None:
    """Return the smallest and largest voxel size in whole mm, of the headers that can be read."""
    found: list[float] = []
    for image in images:
        try:
            found.extend(read_spacing(image.path))
        except VolumeError:
            continue  # `site check` names it; a description needs no single file
    return (float(math.floor(min(found))), float(math.ceil(max(found)))) if found else None


def _device(wanted: str) -> str:
    import torch

    if wanted != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)[:80]
    return "cpu"
