"""The demonstration's cohorts: split by patient, never by volume."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxfed.client.cohort import read_cohort
from voxfed.demo.cohorts import NAMES, make_cohorts
from voxfed.models.phantoms import PUBLIC, write_cohort
from voxfed.study.errors import UsageError


def test_real_scans_are_split_by_patient(tmp_path: Path, real_data: Path) -> None:
    """No patient may lie in two hospitals, or the audit's non-members would be members."""
    cohorts = make_cohorts(tmp_path, real_data / "openkbp_ct")
    owned = [set(read_cohort(cohorts.folders[name]).patients) for name in NAMES]
    assert sum(len(patients) for patients in owned) == cohorts.patients >= 60
    assert not owned[0] & owned[1] | owned[1] & owned[2] | owned[0] & owned[2]
    assert 'modality = "ct"' in cohorts.volumes
    assert not cohorts.pseudo_patients


def test_loose_volumes_are_pseudo_patients(tmp_path: Path, real_data: Path) -> None:
    """Where nobody knows whose volumes they are, the table must not speak of patients."""
    cohorts = make_cohorts(tmp_path, real_data / "msd_hippocampus")
    assert cohorts.pseudo_patients
    assert sum(len(read_cohort(f).patients) for f in cohorts.folders.values()) == cohorts.patients


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    """A demonstration on a handful of patients would show an audit without any power."""
    write_cohort(tmp_path / "few", 6, PUBLIC, seed=0)
    with pytest.raises(UsageError, match="too few patients"):
        make_cohorts(tmp_path / "split", tmp_path / "few")
