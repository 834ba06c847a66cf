"""Synthetic volumes from a release bundle, marked as such."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.base import Condition, Family
from ..models.pictures import contact_sheet
from ..models.registry import build, conditioning
from ..models.state import from_bytes, load_into
from ..models.synthetic import write_synthetic, write_told
from ..models.trained import add_adapters
from ..study.errors import PlanError, Refusal, UsageError
from ..study.plan import StudyPlan
from .bundle import MODEL, WEIGHTS, bundle_digest
from .verification import check_whole

SHOWN = 8


def open_model(bundle: Path) -> tuple[StudyPlan, Family]:
    """Return plan and model of a release bundle, whose files are checked against its attestation.

    Raises:
        VerificationError: a file of the bundle was changed, or the release was revoked.
        Refusal: the audit blocked the release, since samples of such a model may be patients.
    """
    report = check_whole(bundle)
    if report.verdict.closes:
        raise Refusal(
            "the audit blocked this release",
            got=report.findings[0].detail,
            hint="samples of such a model may show patients",
        )
    plan = StudyPlan.from_text(json.loads((bundle / MODEL).read_bytes())["plan"].encode())
    family = build(plan)
    if plan.trained == "adapters":
        add_adapters(family)
    load_into(family, from_bytes((bundle / WEIGHTS).read_bytes()))
    return plan, family.eval()


def draw_samples(
    bundle: Path,
    n: int,
    folder: Path,
    *,
    told: Callable[[StudyPlan], Sequence[Condition]] | None = None,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `n` NIfTI volumes, a JSON sidecar each, and a contact sheet; return the volumes' files.

    The sidecar says what the model was told; a mask or a source lies beside its volume.

    Args:
        bundle: a release bundle, whose files are checked against its attestation.
        n: how many, 1 or more.
        folder: made if it is not there.
        told: gives what the volumes are to show, each of one row, taken in turn; None draws classes
            and attributes from the plan's prior.
        seed: makes the volumes repeatable; None takes the operating system's randomness.
        progress: called with what is done and the total.

    Raises:
        VerificationError, Refusal: as `open_model`.
        UsageError: fewer than one volume is asked for.
        PlanError: the model needs images to start from.
    """
    if n < 1:
        raise UsageError("nothing to draw", got=n, expected="1 or more")
    plan, family = open_model(bundle)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    given, takes = list(told(plan)) if told else [], conditioning(plan)
    if takes.planes and not given:
        raise PlanError(
            "the model starts from images",
            got="none",
            expected=f"a {takes.kind} a volume",
            hint="name a NIfTI file, or a folder of them, with --condition",
        )
    digest, files, kept = bundle_digest(bundle), [], []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, n + 1):
        row = given[(number - 1) % len(given)] if given else takes.prior(1, generator)
        volume = family.sample(1, condition=row, generator=generator)
        path = folder / f"synthetic-{number:04d}.nii.gz"
        words = _words(plan, row, path)
        for kind in ("mask", "source"):
            if (image := getattr(row, kind)) is not None:
                write_told(folder / words[kind], image[0, 0].numpy(), plan.volumes.spacing)
        spacing = plan.volumes.spacing
        write_synthetic(path, volume[0, 0].numpy(), spacing, digest=digest, told=words)
        files.append(path)
        if number <= SHOWN:
            kept.append(volume)
        if progress is not None:
            progress(number, n)
    title = f"synthetic volumes of {plan.name}, bundle {digest[:12]}"
    contact_sheet([(title, torch.cat(kept).numpy())], folder / "contact_sheet.png")
    return files


def _words(plan: StudyPlan, row: Condition, path: Path) -> dict[str, Any]:
    """Return what a volume shows: class or numbers by column, or the image file beside it."""
    settings = plan.condition
    if settings is None:
        return {}
    if row.label is not None:
        return {settings.column: settings.values[int(row.label)]}
    if row.attributes is not None:
        pairs = zip(settings.columns, settings.ranges, row.attributes[0].tolist(), strict=True)
        return {name: round(low + (x + 1) / 2 * (high - low), 4) for name, (low, high), x in pairs}
    return {settings.kind: path.name.replace(".nii.gz", f"_{settings.kind}.nii.gz")}
