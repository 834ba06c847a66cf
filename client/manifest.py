"""Manifest: the cohort as it was on the day of approval, with the coin flips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..privacy import sampling
from ..study.condition import ConditionSettings
from ..study.errors import CohortChanged, Refusal, VerificationError, VolumeError
from .canaries import Canaries, draw_canaries
from .cohort import Cohort, Image, digest
from .participants import condition_numbers, read_participants

Progress = Callable[[int, int], None]
LEAST_HELD_OUT = 2


class FrozenFile(BaseModel):
    """One file below the cohort: its SHA-256, and a stamp that shows that it is the same.

    Attributes:
        path: relative to the cohort.
        sha256: of its bytes.
        stamp: size, times and inode.
        beside: the mask or source that is read with an image, in a study that asks for one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    sha256: str
    stamp: tuple[int, int, int, int]
    beside: FrozenFile | None = None


class Manifest(BaseModel):
    """Patients, files and coin flips of one study; it never leaves the site.

    Attributes:
        modality: the modality that was read.
        patients: the files of each patient.
        members: patients that train.
        flipped: patients that flipped a coin; heads are members, tails are held out.
        numbers: the class or the attributes of each patient, in a study that asks for them.
        canaries: phantoms beside the patients, who are none of them; they only train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    modality: str
    patients: dict[str, tuple[FrozenFile, ...]]
    members: tuple[str, ...]
    flipped: tuple[str, ...]
    numbers: dict[str, tuple[float, ...]] = {}
    canaries: Canaries = Canaries()

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; raise VerificationError where it is gone or garbled."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise VerificationError(
                f"{path} is gone or garbled", hint="restore it from a backup; it cannot be redrawn"
            ) from None

    @property
    def audited_members(self) -> list[str]:
        """Patients whose coin fell heads: they train, and are scored as members."""
        members = set(self.members)
        return [patient for patient in self.flipped if patient in members]

    @property
    def held_out(self) -> list[str]:
        """Patients whose coin fell tails: they never train, and are scored as non-members."""
        members = set(self.members)
        return [patient for patient in self.flipped if patient not in members]


def freeze(
    cohort: Cohort,
    modality: str,
    audit_fraction: float,
    progress: Progress | None = None,
    *,
    condition: ConditionSettings | None = None,
    canaries: int = 0,
) -> Manifest:
    """Read every file's digest and each patient's condition, and flip the coins of the audit.

    Raises:
        Refusal: a patient's class or attributes cannot be used; a patient is named like a canary;
            or so few patients that fewer than
            2 would be held out on average. The number alone decides: a refusal after the flips
            would let them be repeated until they please.
        VolumeError: the table of participants cannot be read.
    """
    expected = len(cohort.patients) * audit_fraction / 2
    if expected < LEAST_HELD_OUT:
        raise Refusal(
            "the cohort is too small for the audit's split",
            got=f"{len(cohort.patients)} patients, {expected:g} held out on average",
            expected=f"{LEAST_HELD_OUT} or more held out",
            hint="add patients, or ask the coordinator for another audit_fraction",
        )
    numbers: dict[str, tuple[float, ...]] = {}
    if condition is not None and condition.kind in ("class", "attributes"):
        numbers = condition_numbers(read_participants(cohort.folder), cohort.patients, condition)
    added = draw_canaries(canaries, cohort.patients)
    files: dict[str, tuple[FrozenFile, ...]] = {}
    for done, (patient, images) in enumerate(cohort.patients.items(), start=1):
        files[patient] = tuple(_frozen(cohort.folder, image, condition) for image in images)
        if progress is not None:
            progress(done, len(cohort.patients))
    names = sorted(files)
    # Drawn one by one: with a fixed number, one patient more would push another out of the audit.
    flipped = sampling.poisson(names, audit_fraction)
    heads = dict(zip(flipped, sampling.flip(len(flipped)), strict=True))
    members = tuple(name for name in names if heads.get(name, True))
    return Manifest(
        modality=modality,
        patients=files,
        members=members,
        flipped=tuple(flipped),
        numbers=numbers,
        canaries=added,
    )


def check_unchanged(
    manifest: Manifest, folder: Path, patients: Iterable[str], known: dict[str, tuple[int, ...]]
) -> None:
    """Raise CohortChanged naming the first file of `patients` that is not the approved one.

    A file whose size, times and inode are those last seen with the right digest is not read again;
    `known` holds these between calls.
    """
    for patient in patients:
        images = manifest.patients[patient]
        for file in (*images, *(image.beside for image in images if image.beside)):
            path = folder / file.path
            try:
                stamp = _stamp(path)
                if stamp in (file.stamp, known.get(file.path)):
                    continue
                found = digest(path)
            except (OSError, VolumeError):
                raise CohortChanged(
                    f"{file.path} is gone or cannot be read", hint="restore it, then go on"
                ) from None
            if found != file.sha256:
                raise CohortChanged(
                    f"{file.path} changed since the study was approved",
                    got=f"sha256 {found[:12]}",
                    expected=file.sha256[:12],
                    hint="restore the file; new scans wait for the next study",
                )
            known[file.path] = stamp


def _frozen(folder: Path, image: Image, condition: ConditionSettings | None) -> FrozenFile:
    path = image.beside(condition)
    beside = None if path is None else _frozen_file(folder, path, None)
    return _frozen_file(folder, image.path, beside)


def _frozen_file(folder: Path, path: Path, beside: FrozenFile | None) -> FrozenFile:
    return FrozenFile(
        path=str(path.relative_to(folder)), sha256=digest(path), stamp=_stamp(path), beside=beside
    )


def _stamp(path: Path) -> tuple[int, int, int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
