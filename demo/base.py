"""The public base: a model fitted to other phantoms before any hospital is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..client.cache import VolumeCache
from ..client.cohort import digest, read_cohort
from ..models.base import Batch
from ..models.fitting import fit
from ..models.phantoms import PUBLIC, write_cohort
from ..models.registry import build
from ..models.state import tensors_of, to_bytes
from ..study.plan import StudyPlan

PHANTOMS = 200
STEPS = 1000
SECONDS = 55.0


def public_base(folder: Path, plan: StudyPlan, progress: Callable[[int, int], None]) -> bytes:
    """Return weights fitted for at most 60 s to public phantoms, as safetensors.

    Args:
        folder: where the phantoms are written.
        plan: gives the family and the grid; its intensity is that of phantoms.
        progress: called with what is done and the total.
    """
    write_cohort(folder, PHANTOMS, PUBLIC, seed=1000)
    settings = plan.volumes.model_copy(
        update={"modality": "phantom", "intensity": "percentiles", "spacing": (6.0, 6.0, 6.0)}
    )
    cache = VolumeCache(folder / ".cache", settings)
    images = [image for owned in read_cohort(folder).patients.values() for image in owned]
    volumes = np.stack([cache.get(image.path, digest(image.path)) for image in images])
    family = build(plan)
    fit(
        family,
        family.stages[0],
        Batch(torch.from_numpy(volumes)),
        steps=STEPS,
        batch=8,
        learning_rate=3e-3,
        generator=torch.Generator().manual_seed(0),
        seconds=SECONDS,
        progress=lambda done, total, _: progress(done, total),
    )
    return to_bytes(tensors_of(family))
