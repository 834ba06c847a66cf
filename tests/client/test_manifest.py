"""Manifest: the cohort of the day of approval, and the split that cannot be redrawn."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from voxfed.client import manifest as module
from voxfed.client.cohort import read_cohort
from voxfed.client.manifest import Manifest, check_unchanged, freeze
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import CohortChanged, Refusal, VerificationError
from voxfed.study.files import digest


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Ten patients; the first came twice."""
    for number in range(10):
        for visit in range(2 if number == 0 else 1):
            folder = tmp_path / "cohort" / f"p{number}"
            folder.mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(100 * number + visit).normal(size=(9, 9, 9))
            image = nib.Nifti1Image(values.astype(np.float32), np.eye(4))
            nib.save(image, folder / f"v{visit}_T1w.nii.gz")
    return tmp_path / "cohort"


@pytest.fixture
def coins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other coin falls heads."""
    monkeypatch.setattr(module.sampling, "flip", lambda n: [i % 2 == 0 for i in range(n)])


def test_the_split(cohort: Path) -> None:
    """Patients who flipped no coin train; heads train, tails never do, nobody is both."""
    for _ in range(20):
        frozen = freeze(read_cohort(cohort), "", 0.6)
        assert set(frozen.audited_members) | set(frozen.held_out) == set(frozen.flipped)
        assert set(frozen.members) | set(frozen.held_out) == set(frozen.patients)
        assert not set(frozen.members) & set(frozen.held_out)


def test_each_patient_is_drawn_alone(cohort: Path) -> None:
    """One patient more must not push another out of the audit: the number flipped varies."""
    sizes = {len(freeze(read_cohort(cohort), "", 0.5).flipped) for _ in range(60)}
    assert len(sizes) > 2


@pytest.mark.usefixtures("coins")
def test_files_are_known_by_digest(cohort: Path, tmp_path: Path) -> None:
    """Each file of each patient stands there with its SHA-256, and the file round-trips."""
    frozen = freeze(read_cohort(cohort), "", 1.0)
    assert len(frozen.patients["p0"]) == 2
    for files in frozen.patients.values():
        for file in files:
            assert file.sha256 == digest(cohort / file.path)
    (tmp_path / "manifest.json").write_text(frozen.model_dump_json())
    assert Manifest.read(tmp_path / "manifest.json") == frozen


def test_a_cohort_too_small_for_the_split(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size alone decides, before a coin falls: coins are not flipped until they please."""
    monkeypatch.setattr(module.sampling, "flip", None)
    with pytest.raises(Refusal, match="too small for the audit's split"):
        freeze(read_cohort(cohort), "", 0.3)


@pytest.mark.usefixtures("coins")
@pytest.mark.parametrize("kind", ["changed", "same size and time", "gone", "replaced"])
def test_a_changed_file_is_named(cohort: Path, kind: str) -> None:
    """Whatever was done to a file, also with its size and time put back, it is found."""
    frozen = freeze(read_cohort(cohort), "", 1.0)
    known: dict[str, Any] = {}
    check_unchanged(frozen, cohort, frozen.patients, known)
    path = cohort / "p3" / "v0_T1w.nii.gz"
    content, times = path.read_bytes(), os.stat(path)
    if kind == "gone":
        path.unlink()
    elif kind == "replaced":
        path.unlink()
        path.write_bytes((cohort / "p4" / "v0_T1w.nii.gz").read_bytes())
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if kind == "same size and time":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CohortChanged, match=r"p3/v0_T1w\.nii\.gz"):
        check_unchanged(frozen, cohort, frozen.patients, known)
    others = [patient for patient in frozen.patients if patient != "p3"]
    check_unchanged(frozen, cohort, others, known)


@pytest.mark.usefixtures("coins")
def test_the_same_bytes_put_back_are_the_same_file(cohort: Path) -> None:
    """A backup restored with new times is no change; new patients wait for the next study."""
    frozen = freeze(read_cohort(cohort), "", 1.0)
    path = cohort / "p3" / "v0_T1w.nii.gz"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    (cohort / "p99").mkdir()
    (cohort / "p99" / "v0_T1w.nii.gz").write_bytes(content)
    known: dict[str, Any] = {}
    check_unchanged(frozen, cohort, frozen.patients, known)
    assert "p3/v0_T1w.nii.gz" in known
    assert "p99" not in frozen.patients


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_lost_manifest_cannot_be_redrawn(tmp_path: Path, content: bytes | None) -> None:
    """A second flip would make members of non-members: the file is restored or the study ends."""
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(VerificationError, match="gone or garbled"):
        Manifest.read(tmp_path / "manifest.json")


MASK = ConditionSettings(kind="mask", suffix="seg", structures=2)
SEX = ConditionSettings(kind="class", column="sex", values=("F", "M"))


@pytest.fixture
def masked(cohort: Path) -> Path:
    """The ten patients with a mask beside each image."""
    for number, path in enumerate(sorted(cohort.rglob("*_T1w.nii.gz"))):
        mask = np.zeros((9, 9, 9), np.uint8)
        mask[number % 9] = 1
        name = path.name.replace("_T1w", "_seg")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), path.with_name(name))
    return cohort


@pytest.mark.usefixtures("coins")
def test_each_mask_is_frozen_with_its_image(masked: Path, tmp_path: Path) -> None:
    """By digest, in the file that is kept; a study without conditions freezes the images alone."""
    frozen = freeze(read_cohort(masked, "T1w", MASK), "T1w", 1.0, condition=MASK)
    for images in frozen.patients.values():
        for image in images:
            assert image.beside is not None
            assert image.beside.path == image.path.replace("_T1w", "_seg")
            assert image.beside.sha256 == digest(masked / image.beside.path)
    (tmp_path / "manifest.json").write_text(frozen.model_dump_json())
    assert Manifest.read(tmp_path / "manifest.json") == frozen
    plain = freeze(read_cohort(masked, "T1w"), "T1w", 1.0)
    assert all(image.beside is None for images in plain.patients.values() for image in images)


@pytest.mark.usefixtures("coins")
@pytest.mark.parametrize("kind", ["changed", "gone"])
def test_a_changed_mask_is_named(masked: Path, kind: str) -> None:
    """A mask is what the patient's gradient is taken of too; put back, it is the approved one."""
    frozen = freeze(read_cohort(masked, "T1w", MASK), "T1w", 1.0, condition=MASK)
    known: dict[str, Any] = {}
    check_unchanged(frozen, masked, frozen.patients, known)
    path = masked / "p3" / "v0_seg.nii.gz"
    content = path.read_bytes()
    path.unlink()
    if kind == "changed":
        path.write_bytes((masked / "p4" / "v0_seg.nii.gz").read_bytes())
    with pytest.raises(CohortChanged, match=r"p3/v0_seg\.nii\.gz"):
        check_unchanged(frozen, masked, frozen.patients, known)
    path.write_bytes(content)
    check_unchanged(frozen, masked, frozen.patients, known)
    assert "p3/v0_seg.nii.gz" in known


@pytest.mark.usefixtures("coins")
def test_numbers_are_frozen_and_outlive_the_table(cohort: Path, tmp_path: Path) -> None:
    """A table that is corrected later changes the next study; the floats round-trip to the bit."""
    ages = {f"p{n}": 30 + 7 * n / 3 for n in range(10)}
    rows = [f"{name}\t{'FM'[n % 2]}\t{age!r}" for n, (name, age) in enumerate(ages.items())]
    table = cohort / "participants.tsv"
    table.write_text("\n".join(["participant_id\tsex\tage", *rows, "p99\tF\t1"]))
    frozen = freeze(read_cohort(cohort), "", 1.0, condition=SEX)
    assert frozen.numbers == {f"p{n}": (n % 2,) for n in range(10)}
    told = ConditionSettings(kind="attributes", columns=("age",), ranges=((20.0, 80.0),))
    frozen = freeze(read_cohort(cohort), "", 1.0, condition=told)
    table.unlink()
    (tmp_path / "manifest.json").write_text(frozen.model_dump_json())
    assert Manifest.read(tmp_path / "manifest.json") == frozen
    check_unchanged(frozen, cohort, frozen.patients, {})
    for name, age in ages.items():
        assert frozen.numbers[name] == (2 * (age - 20.0) / 60.0 - 1,)


def test_a_patient_without_a_class_stops_before_a_coin_falls(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the table could be mended until the split pleases."""
    monkeypatch.setattr(module.sampling, "flip", None)
    with pytest.raises(Refusal, match="10 of 10 patients have no value"):
        freeze(read_cohort(cohort), "", 1.0, condition=SEX)


def test_a_manifest_of_before_conditions_is_read(tmp_path: Path) -> None:
    """Studies that run go on after an update of voxfed."""
    file = {"path": "a/x.nii.gz", "sha256": "0f", "stamp": [1, 2, 3, 4]}
    kept = {"modality": "", "patients": {"a": [file]}, "members": ["a"], "flipped": []}
    (tmp_path / "manifest.json").write_text(json.dumps(kept))
    frozen = Manifest.read(tmp_path / "manifest.json")
    assert (frozen.numbers, frozen.patients["a"][0].beside) == ({}, None)
