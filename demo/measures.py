"""What the demonstration measures inside the hospitals' folders, as no coordinator can."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..client.approval import find
from ..client.scans import Scans
from ..client.site import Site
from ..models.base import Batch
from ..models.registry import build
from ..models.state import from_bytes, load_into
from ..study.plan import StudyPlan

Volumes = npt.NDArray[np.float32]


def split_of(site: Site, study: str) -> tuple[Volumes, Volumes]:
    """Return a site's members' and held-out volumes, (n, 1, D, H, W)."""
    approval = find(site, study)
    manifest = approval.manifest
    scans = Scans(
        manifest,
        site.cohort,
        site.worker / "cache",
        approval.plan.volumes,
        torch.device("cpu"),
    )
    members = [v for name in manifest.members for v in scans.volumes(name)]
    held_out = [v for name in manifest.held_out for v in scans.volumes(name)]
    return np.stack(members), np.stack(held_out)


def held_out_errors(
    sites: Mapping[str, Site], plan: StudyPlan, weights: Mapping[str, bytes]
) -> dict[str, float]:
    """Return the mean absolute error on held-out volumes of each set of weights.

    "mean volume" stands for a model that always answers with the mean of the members' volumes.
    """
    splits = [split_of(site, plan.name) for site in sites.values()]
    held_out = np.concatenate([held for _, held in splits])
    mean = np.concatenate([members for members, _ in splits]).mean(axis=0, keepdims=True)
    errors = {"mean volume": float(np.abs(held_out - mean).mean())}
    for name, content in weights.items():
        family: Any = build(plan)
        load_into(family, from_bytes(content))
        family.eval()
        with torch.no_grad():
            given = torch.from_numpy(held_out)
            rebuilt = torch.cat([family.reconstruct(Batch(part)) for part in given.split(8)])
        errors[name] = float((rebuilt - given).abs().mean())
    return errors


def draw(plan: StudyPlan, weights: bytes, n: int) -> Volumes:
    """Return n synthetic volumes (n, 1, D, H, W)."""
    family = build(plan)
    load_into(family, from_bytes(weights))
    family.eval()
    drawn: Volumes = family.sample(n, generator=torch.Generator().manual_seed(7)).numpy()
    return drawn


def flip_a_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
