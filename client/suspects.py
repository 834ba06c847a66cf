"""Suspects: synthetic volumes beside the patients that they look like, for the operator alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..study.errors import DiskError, UsageError
from ..study.files import write
from .approval import Approval, find
from .site import Site

if TYPE_CHECKING:
    from ..models.base import Batch
    from ..privacy.audit.copies.search import Pair

PAIRS, SAMPLES = "pairs.json", "samples.safetensors"
OWN = 0o600


def keep_pairs(site: Site, study: str, made: Batch, pairs: Sequence[Pair]) -> None:
    """Keep the pairs of the last audit and the synthetic volumes in them; nobody else can read it.

    Raises:
        DiskError: they cannot be written.
    """
    from ..models.state import to_bytes

    folder = _folder(find(site, study))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError as fault:
        raise DiskError(f"{folder} cannot be written: {fault.strerror}") from None
    numbers = sorted({pair.sample for pair in pairs})
    volumes = {str(number): made.volumes[number].float().contiguous() for number in numbers}
    write(folder / SAMPLES, to_bytes(volumes), mode=OWN)
    text = json.dumps([asdict(pair) for pair in pairs], indent=1)
    write(folder / PAIRS, text.encode() + b"\n", mode=OWN)


def draw_pairs(site: Site, study: str) -> list[dict[str, Any]]:
    """Draw each pair of the last audit, three planes side by side, and return what is known of it.

    Raises:
        UsageError: the study was not searched for copies here.
        CohortChanged, VolumeError: a patient's scan is not there any more, or cannot be used.
    """
    import torch

    from ..models.pictures import contact_sheet_png
    from ..models.state import from_bytes
    from .scans import Scans

    approval = find(site, study)
    folder = _folder(approval)
    if not (folder / PAIRS).exists():
        raise UsageError(
            f"the study {study} was not searched for copies at this site",
            hint="an audit with exact counts searches; see `voxfed site approve STUDY --audit`",
        )
    plan, drawn = approval.plan, from_bytes((folder / SAMPLES).read_bytes())
    scans = Scans(
        approval.manifest,
        site.cohort,
        site.worker / "cache",
        plan.volumes,
        torch.device("cpu"),
        plan.condition,
    )
    found = []
    for number, pair in enumerate(json.loads((folder / PAIRS).read_bytes()), start=1):
        patient = scans.batches(pair["patient"])[pair["volume"]].volumes
        trained = "trained" if pair["member"] else "held out"
        rows = [
            (f"synthetic volume {pair['sample']}", drawn[str(pair["sample"])][None].numpy()),
            (f"patient {pair['patient']}, {trained}", patient.numpy()),
        ]
        path = folder / f"pair-{number:02d}.png"
        write(path, contact_sheet_png(rows), mode=OWN)
        found.append({**pair, "picture": str(path)})
    return found


def _folder(approval: Approval) -> Path:
    return approval.folder / "suspects"
