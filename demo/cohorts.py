"""The cohorts of the demonstration: generated phantoms, or real scans split over hospitals."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..client.cohort import Image, read_cohort
from ..client.layout import modality_of
from ..models.phantoms import HOSPITALS, write_cohort
from ..study.errors import UsageError

NAMES = ("hospital-a", "hospital-b", "hospital-c")
PHANTOM_PATIENTS = 60
LEAST_PATIENTS = 60
SHAPE = (24, 24, 24)

PHANTOM_VOLUMES = """\
spacing = [6.0, 6.0, 6.0]
modality = "phantom"
"""
CT_VOLUMES = """\
spacing = [8.0, 8.0, 8.0]
modality = "ct"
intensity = "window"
window = [0.0, 1500.0]
"""
OTHER_VOLUMES = """\
spacing = [2.0, 2.0, 2.0]
modality = "{modality}"
"""


@dataclass(frozen=True)
class Cohorts:
    """Three folders of patients and how a plan reads them.

    Attributes:
        folders: the cohort of each hospital.
        volumes: the body of the plan's [volumes] table.
        patients: patients in all.
        pseudo_patients: whether volumes stand as patients.
        source: what the table says about the data.
    """

    folders: Mapping[str, Path]
    volumes: str
    patients: int
    pseudo_patients: bool
    source: str


def make_cohorts(folder: Path, data: Path | None) -> Cohorts:
    """Write or split the cohorts below `folder`.

    Raises:
        UsageError: the data hold fewer than 60 patients.
        VolumeError: the data cannot be read as a cohort.
    """
    return _phantoms(folder) if data is None else _split(folder, data)


def _phantoms(folder: Path) -> Cohorts:
    folders = {name: folder / name for name in NAMES}
    for seed, (name, scanner) in enumerate(zip(NAMES, HOSPITALS, strict=True)):
        write_cohort(folders[name], PHANTOM_PATIENTS, scanner, seed=seed)
    return Cohorts(folders, PHANTOM_VOLUMES, 3 * PHANTOM_PATIENTS, False, "generated phantoms")


def _split(folder: Path, data: Path) -> Cohorts:
    """Copy each patient's images of one modality to one of three hospitals, in turn."""
    loose = data / "images"
    if loose.is_dir():
        patients: dict[str, tuple[Image, ...]] = {
            path.name.split(".")[0]: (Image(path),) for path in loose.glob("*.nii*")
        }
        modality, pseudo = "", True
    else:
        cohort = read_cohort(data)
        modality = _main_modality(list(cohort.patients.values()))
        patients = dict(read_cohort(data, modality).patients)
        pseudo = False
    if len(patients) < LEAST_PATIENTS:
        raise UsageError(
            f"{data} holds too few patients for the demonstration",
            got=len(patients),
            expected=f"{LEAST_PATIENTS} or more",
        )
    folders = {name: folder / name for name in NAMES}
    for number, patient in enumerate(sorted(patients)):
        target = folders[NAMES[number % len(NAMES)]]
        _copy(patient, patients[patient], target)
    for target in folders.values():
        _write_manifest(target)
    volumes = CT_VOLUMES if modality == "ct" else OTHER_VOLUMES.format(modality=modality)
    return Cohorts(folders, volumes, len(patients), pseudo, f"{data.name} {modality}".strip())


def _main_modality(patients: list[tuple[Image, ...]]) -> str:
    """Return "ct" where there is one, and the most common modality otherwise."""
    counts = Counter(modality_of(image.path) for images in patients for image in images)
    return "ct" if counts["ct"] else counts.most_common(1)[0][0]


def _copy(patient: str, images: tuple[Image, ...], target: Path) -> None:
    folder = target / patient
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        shutil.copyfile(image.path, folder / image.path.name)


def _write_manifest(folder: Path) -> None:
    """Say which folder is which patient: loose volumes have no patients of their own."""
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("patient", "path"))
        for path in sorted(folder.glob("*/*.nii*")):
            rows.writerow((path.parent.name, path.relative_to(folder)))
