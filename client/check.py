"""Judging every file of a cohort before a site trains on it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from ..study.condition import ConditionSettings
from ..study.errors import VolumeError
from .alignment import check_labels, check_pair
from .cohort import Cohort, survey
from .finding import Finding, Verdict, shown
from .nifti import Volume, read_grid, read_volume
from .participants import condition_numbers, read_participants

__all__ = ["Finding", "Verdict", "as_json", "check_cohort", "check_values", "unreadable_by"]

MAX_ANISOTROPY = 5.0  # thickest over thinnest voxel side
MIN_SIDE = 8  # voxels

Progress = Callable[[int, int], None]


def check_cohort(
    folder: Path,
    modality: str = "",
    *,
    condition: ConditionSettings | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Reads every file of a cohort and returns one finding for each, sorted by path.

    Args:
        folder: the cohort.
        modality: which images are wanted; "" is every one.
        condition: what a study reads beside them, judged too.
        progress: called with the files read so far and their number.

    Raises:
        VolumeError: there is no such folder.
    """
    cohort = survey(folder, modality, condition)
    owners: dict[Path, set[str]] = defaultdict(set)
    uses: dict[Path, int] = defaultdict(int)
    scans: set[Path] = set()
    pairs: list[tuple[Path, Path]] = []
    for patient, images in cohort.patients.items():
        for image in images:
            uses[image.path] += 1
            scans.update(path for path in (image.path, image.source) if path is not None)
            other = image.beside(condition)
            pairs += [(image.path, other)] if other is not None else []
            for path in image.files:
                owners[path].add(patient)
    findings = list(cohort.findings)
    masks = {other for _, other in pairs} - scans
    structures = condition.structures if condition is not None else 0
    # only a scan's copy is a fault: masks of two patients may well be equal
    twins: dict[str, list[Path]] = defaultdict(list)
    judged: dict[Path, Finding] = {}
    for done, path in enumerate(sorted(owners), start=1):
        name, least = shown(path, cohort.folder), structures if path in masks else 0
        judged[path], digest = _judge(path, name, scan=path in scans, structures=least)
        if digest and path in scans:
            twins[digest].append(path)
        if progress is not None:
            progress(done, len(owners))
    for image_path, other in pairs:
        if Verdict.FAIL not in (judged[image_path].verdict, judged[other].verdict):
            judged[other] = _placed(judged[other], image_path, other)
    for paths in twins.values():
        patients = set[str]().union(*(owners[path] for path in paths))
        if len(patients) > 1 or sum(uses[path] for path in paths) > 1:
            for path in paths:
                judged[path] = _twin(judged[path], paths, path, cohort.folder, len(patients) > 1)
    return sorted([*findings, *judged.values()], key=lambda finding: finding.path)


def check_values(cohort: Cohort, condition: ConditionSettings | None) -> None:
    """Refuse a cohort with a patient who lacks what is asked of participants.tsv; read no image.

    Raises:
        Refusal: how many patients, the first of them, and what is asked for.
        VolumeError: the table of participants cannot be read.
    """
    if condition is not None and condition.kind in ("class", "attributes"):
        condition_numbers(read_participants(cohort.folder), cohort.patients, condition)


def as_json(findings: list[Finding]) -> dict[str, list[dict[str, str]]]:
    """Returns the findings as the one document that `voxfed site check --json` prints."""
    return {
        "files": [
            {
                "path": finding.path,
                "verdict": finding.verdict.value,
                "reason": finding.reason,
                "remedy": finding.remedy,
            }
            for finding in findings
        ]
    }


def unreadable_by(folder: Path, uid: int, gid: int) -> list[str]:
    """Returns the files and folders that a user may not read, relative to the cohort.

    Parents of the cohort do not count, since a container mounts the folder itself. Only the mode
    bits are read: access lists and further groups may allow more.

    Args:
        folder: the cohort.
        uid: the container's user.
        gid: the container's group.
    """
    found: list[str] = []

    def refuse(path: Path, wanted: int) -> bool:
        refused = uid != 0 and not _allows(path, uid, gid, wanted)
        if refused:
            found.append(shown(path, folder))
        return refused

    for parent, folders, files in os.walk(folder):
        if refuse(Path(parent), 0o5):
            folders.clear()
            continue
        folders.sort()
        for name in sorted(files):
            refuse(Path(parent) / name, 0o4)
    return found


def _allows(path: Path, uid: int, gid: int, wanted: int) -> bool:
    """The kernel asks one class only: the owner's bits bind the owner though others may read."""
    try:
        status = path.stat()
    except OSError:  # a broken link
        return False
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    return (status.st_mode >> shift) & wanted == wanted


def _judge(path: Path, name: str, *, scan: bool, structures: int) -> tuple[Finding, str]:
    """Returns the finding on one file, and the digest of its voxels if they could be read."""
    try:
        volume = read_volume(path, constant=not scan)
        if structures:
            check_labels(volume.voxels, structures)
    except VolumeError as error:
        return Finding(name, Verdict.FAIL, error.message, error.hint), ""
    doubts = _doubts(volume)
    if not doubts:
        return Finding(name, Verdict.PASS), volume.digest
    reason = "; ".join(reason for reason, _ in doubts)
    remedy = "; ".join(remedy for _, remedy in doubts)
    return Finding(name, Verdict.WARN, reason, remedy), volume.digest


def _placed(finding: Finding, image: Path, other: Path) -> Finding:
    """Returns the finding on a mask or source, or that it does not lie where its image does."""
    try:
        check_pair(read_grid(image), read_grid(other))
    except VolumeError as error:
        return Finding(finding.path, Verdict.FAIL, error.message, error.hint)
    return finding


def _doubts(volume: Volume) -> list[tuple[str, str]]:
    """Returns reason and remedy of what is odd but usable."""
    doubts = []
    spacing = volume.grid.spacing
    if max(spacing) > MAX_ANISOTROPY * min(spacing):
        sides = " x ".join(f"{side:.3g}" for side in spacing)
        doubts.append((f"the voxels are long ({sides} mm)", "prefer a series with thinner slices"))
    if min(volume.voxels.shape) < MIN_SIDE:
        sides = " x ".join(map(str, volume.voxels.shape))
        doubts.append((f"the volume is small ({sides} voxels)", "make sure it is not a localiser"))
    if not volume.grid.oriented:
        doubts.append(
            ("the header states no orientation", "compare left and right with the source image")
        )
    return doubts


def _twin(finding: Finding, paths: list[Path], path: Path, folder: Path, across: bool) -> Finding:
    others = [shown(other, folder) for other in paths if other != path]
    where = f" ({', '.join(others)})" if others else ""
    if across:
        reason = f"the same image belongs to two patients{where}"
        remedy = "keep it at the patient it shows; if both are one person, join their folders"
        return Finding(finding.path, Verdict.FAIL, reason, remedy)
    reason = "; ".join(filter(None, [finding.reason, f"the patient has this image twice{where}"]))
    remedy = "; ".join(filter(None, [finding.remedy, "keep one copy"]))
    return Finding(finding.path, Verdict.WARN, reason, remedy)
