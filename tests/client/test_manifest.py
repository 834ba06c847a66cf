"""Manifest: the cohort of the day of approval, and the split that cannot be redrawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from voxfed.client import manifest as module
from voxfed.client.cohort import read_cohort
from voxfed.client.manifest import Manifest, check_unchanged, freeze
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
