"""The patients of a site and the files of each, in one of three layouts.

    DIR/<patient>/**/*.nii.gz               one folder a patient, visits may be folders in it
    DIR/sub-*/[ses-*/]anat/*.nii.gz         BIDS (bids-specification.readthedocs.io)
    DIR/manifest.csv                        patient, path, and optional label, mask, source

An image belongs to a modality when the last underscore-separated token of its name is the
modality's, as in BIDS: `sub-01_T1w.nii.gz` is "T1w", `okbp-001_ct.nii.gz` is "ct". The mask or
source of a study lies in the image's folder and differs in that token alone, or in what follows
the underscore: beside `okbp-001_ct.nii.gz`, the suffix "oar" is `okbp-001_oar.nii.gz`.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..study import files
from ..study.condition import ConditionSettings
from ..study.errors import VolumeError
from .dicom import conversion, is_dicom
from .finding import Finding, Verdict, shown
from .layout import NAMING, anat_folders, beside, folder_links, image_files, is_safe, modality_of
from .nifti import SUFFIXES

MANIFEST = "manifest.csv"
COLUMNS = ("patient", "path", "label", "mask", "source")
SHARED_FOLDERS = frozenset({"images", "labels", "imagestr", "imagests", "labelstr", "labelsts"})


@dataclass(frozen=True)
class Image:
    """One image of a patient with the files that go with it, all absolute paths."""

    path: Path
    label: Path | None = None
    mask: Path | None = None
    source: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then the label, mask and source that it has."""
        return tuple(p for p in (self.path, self.label, self.mask, self.source) if p is not None)

    def beside(self, condition: ConditionSettings | None) -> Path | None:
        """The mask, else the label, or the source, as the condition asks; None where it has not."""
        if condition is not None and condition.kind == "mask":
            return self.mask or self.label
        return self.source if condition is not None and condition.kind == "source" else None


@dataclass(frozen=True)
class Cohort:
    """The images of every patient in a folder.

    Attributes:
        folder: the resolved folder that holds every file.
        patients: name to images, sorted by name, images sorted by path; each has at least one.
        findings: what in the layout could not be used; the voxels are judged by `check_cohort`.
    """

    folder: Path
    patients: Mapping[str, tuple[Image, ...]]
    findings: tuple[Finding, ...] = ()


def read_cohort(
    folder: Path, modality: str = "", condition: ConditionSettings | None = None
) -> Cohort:
    """Reads the patients of a folder without opening an image.

    Args:
        folder: the cohort, in one of the three layouts.
        modality: the last token of the names that are wanted, in any case; "" takes every image.
        condition: of a mask or a source, an image without one is left out.

    Raises:
        VolumeError: there is no such folder, or not one patient in it.
    """
    cohort = survey(folder, modality, condition)
    if not cohort.patients:
        first = cohort.findings[0]
        raise VolumeError(first.reason, got=first.path, hint=first.remedy)
    return cohort


def survey(folder: Path, modality: str = "", condition: ConditionSettings | None = None) -> Cohort:
    """Reads the patients of a folder; a cohort without any carries findings that say why.

    Raises:
        VolumeError: there is no such folder, or it may not be read.
    """
    if not folder.is_dir():
        hint = "give the folder that holds the patients"
        raise VolumeError("the cohort is not a folder", got=folder, hint=hint)
    survey = _Survey(folder.resolve(), modality.lower())
    try:
        if (survey.folder / MANIFEST).is_file():
            survey.read_manifest()
        else:
            survey.read_folders()
        if condition is not None and condition.kind in ("mask", "source"):
            survey.keep_those_with(condition)
    except OSError:
        hint = "give this user read permission on it and every folder in it (chmod, chown)"
        raise VolumeError("the cohort cannot be read", got=folder, hint=hint) from None
    return survey.cohort()


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        VolumeError: the file is missing or may not be read.
    """
    try:
        return files.digest(path)
    except OSError:
        hint = "restore the file, or give this user read permission"
        raise VolumeError("the file cannot be read", hint=hint) from None


@dataclass
class _Survey:
    """What was found so far."""

    folder: Path
    modality: str
    images: dict[str, list[Image]] = field(default_factory=lambda: defaultdict(list))
    findings: list[Finding] = field(default_factory=list)

    def cohort(self) -> Cohort:
        if not self.images and not self.findings:
            self.fail(
                ".",
                "the folder holds no patient",
                "make one folder a patient with .nii.gz files, a BIDS tree, or a manifest.csv",
            )
        patients = {
            name: tuple(sorted(images, key=lambda image: image.path))
            for name, images in sorted(self.images.items())
            if images
        }
        return Cohort(self.folder, patients, tuple(self.findings))

    def fail(self, path: Path | str, reason: str, remedy: str) -> None:
        where = path if isinstance(path, str) else shown(path, self.folder)
        self.findings.append(Finding(where, Verdict.FAIL, reason, remedy))

    def warn_left_out(self, path: str, patient: str) -> None:
        image = f"{self.modality} image" if self.modality else "image"
        remedy = "add a file whose name ends in _<modality>.nii.gz, or leave the patient out"
        reason = f"patient {patient} has no {image} and is left out"
        self.findings.append(Finding(path, Verdict.WARN, reason, remedy))

    def keep_those_with(self, condition: ConditionSettings) -> None:
        """Leave out each image that has no mask or source, whichever is asked for."""
        for patient, images in self.images.items():
            found = [self.with_beside(image, condition) for image in images]
            self.images[patient] = [image for image in found if image is not None]

    def with_beside(self, image: Image, condition: ConditionSettings) -> Image | None:
        kind, suffix, where = condition.kind, condition.suffix, shown(image.path, self.folder)
        if suffix:
            named = beside(image.path, suffix)
            if len(named) > 1:
                self.fail(image.path, f"{len(named)} files beside it end in _{suffix}", "keep one")
                return None
            other = named[0] if named else None
            asked = (other, None) if kind == "mask" else (None, other)
            image = Image(image.path, None, *asked)
            remedy = f"put a file beside it whose name differs only in ending in _{suffix}"
        else:
            remedy = f"name it in the column {kind} of manifest.csv"
        path = image.beside(condition)
        if path is None:
            reason = f"the image has no {kind} and is left out"
            self.findings.append(Finding(where, Verdict.WARN, reason, remedy))
        return image if path is not None and self.is_inside(path) else None

    def read_folders(self) -> None:
        entries = [p for p in sorted(self.folder.iterdir()) if not p.name.startswith(".")]
        folders = [p for p in entries if p.is_dir() and not p.name.endswith(SUFFIXES)]
        bids = [p for p in folders if p.name.startswith("sub-") and anat_folders(p)]
        for path in entries:
            if path.name.endswith(SUFFIXES):
                self.fail(
                    path,
                    "the image lies in no patient's folder",
                    "move it into the folder of its patient, or write manifest.csv",
                )
        if not folders and is_dicom(self.folder):
            self.fail(self.folder, "this is a DICOM folder", conversion(self.folder, self.modality))
        for path in folders:
            if bids and not path.name.startswith("sub-"):
                continue  # derivatives, sourcedata and code of a BIDS tree are not patients
            if path.name.lower() in SHARED_FOLDERS:
                self.fail(
                    path,
                    "the folder's name is not a patient's: images of many seem to lie in it",
                    "write manifest.csv with the columns patient and path",
                )
                continue
            if not is_safe(path.name):
                self.fail(path, "the patient's name cannot be used", NAMING)
                continue
            self.read_patient(path, anat_folders(path) if bids else [path])

    def read_patient(self, folder: Path, parts: list[Path]) -> None:
        try:
            found = [p for part in parts for p in image_files(part)]
        except PermissionError:
            self.fail(
                folder, "the folder may not be read", "give this user read permission (chmod)"
            )
            return
        for link in (p for part in parts for p in folder_links(part)):
            self.fail(link, "a link to a folder is not followed", "put the folder itself here")
        kept = [p for p in found if self.modality in ("", modality_of(p))]
        for path in kept:
            if self.is_inside(path):
                self.images[folder.name].append(Image(path))
        if not found and is_dicom(folder):
            self.fail(folder, "this is a DICOM folder", conversion(folder, self.modality))
        elif not kept:
            self.warn_left_out(shown(folder, self.folder), folder.name)

    def is_inside(self, path: Path) -> bool:
        """A link out of the cohort would train on what nobody checked or mounted."""
        if Path(os.path.realpath(path)).is_relative_to(self.folder):
            return True
        self.fail(path, "the link leaves the cohort's folder", "copy the file into the cohort")
        return False

    def read_manifest(self) -> None:
        try:
            with (self.folder / MANIFEST).open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                columns = [name or "" for name in reader.fieldnames or ()]
                if not self.accept_columns(columns):
                    return
                for row in reader:
                    self.read_row(row, reader.line_num)
        except (UnicodeDecodeError, csv.Error):
            self.fail(MANIFEST, "the manifest is not CSV in UTF-8", "save it again as CSV UTF-8")
        for patient, images in self.images.items():
            if not images:
                self.warn_left_out(MANIFEST, patient)

    def accept_columns(self, columns: list[str]) -> bool:
        missing = [name for name in COLUMNS[:2] if name not in columns]
        unknown = sorted(set(columns) - set(COLUMNS))
        if missing or unknown or len(set(columns)) < len(columns):
            self.fail(
                MANIFEST,
                f"the first line is wrong (got {columns},"
                f" expected {', '.join(COLUMNS[:2])}, optional {', '.join(COLUMNS[2:])})",
                "correct the first line of manifest.csv",
            )
            return False
        return True

    def read_row(self, row: dict[str, str], line: int) -> None:
        where = f"{MANIFEST}:{line}"
        if None in row or None in row.values():
            self.fail(where, "the row has too many or too few cells", "correct the row")
            return
        patient = row["patient"].strip()
        if not is_safe(patient):
            self.fail(where, "the patient's name cannot be used", NAMING)
            return
        cells = {name: row.get(name, "").strip() for name in COLUMNS[1:]}
        if not cells["path"]:
            self.fail(where, "the row names no image", "fill in the column path")
            return
        if self.modality not in ("", modality_of(Path(cells["path"]))):
            self.images[patient] += []  # the patient is known, so that having no image is a finding
            return
        named = {name: self.named_file(cell, where) for name, cell in cells.items() if cell}
        path = named.pop("path")
        if path is not None and None not in named.values():
            self.images[patient].append(Image(path, **named))

    def named_file(self, cell: str, where: str) -> Path | None:
        path = Path(os.path.normpath(self.folder / cell))
        if "\0" in cell or not path.is_relative_to(self.folder):
            self.fail(where, "the row names a file outside the cohort", "copy it into the cohort")
        elif not path.exists():
            self.fail(
                path, f"the file named in {where} does not exist", "restore it or drop the row"
            )
        elif self.is_inside(path):
            return path
        return None
