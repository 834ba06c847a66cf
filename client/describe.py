"""What a site agreed to say of itself, in coarse numbers."""

from __future__ import annotations

import itertools
import math

from .. import __version__
from ..study.errors import VolumeError
from ..study.messages import Description
from .cohort import Image, read_cohort
from .layout import modality_of
from .nifti import read_grid
from .site import Site

BIDS = "t1w t2w t2star t2starw pdw pdt2 inplanet1 inplanet2 flair angio swi dwi bold asl"
COMMON = "t1 t2 pd adc ct cbct cta pet suv spect mr mri mra us dose phantom"
MODALITIES = frozenset(f"{BIDS} {COMMON}".split())
"""Names that may leave: BIDS suffixes and the common modalities."""

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
        modalities=tuple(sorted({_known(modality_of(image.path)) for image in images})),
        spacing=spacing,
        labels=any(image.label or image.mask for image in images),
        device=_device(site.settings.device),
        most_epsilon=limits.lifetime_epsilon,
        least_noise=limits.least_noise,
        without_privacy=limits.without_privacy,
        defaced=site.settings.defaced,
        version=__version__,
    )


def _known(modality: str) -> str:
    """Return a modality that stands in a list; a file's name may hold a patient's."""
    return modality if modality in MODALITIES else "other"


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
            found.extend(read_grid(image.path).spacing)
        except VolumeError:
            continue  # `site check` names it; a description needs no single file
    return (float(math.floor(min(found))), float(math.ceil(max(found)))) if found else None


def _device(wanted: str) -> str:
    import torch

    if wanted != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)[:80]
    return "cpu"
