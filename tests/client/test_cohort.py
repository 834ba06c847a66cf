"""Every layout gives the same patients; what cannot be used is named, never dropped unsaid."""

import os
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from voxfed.client.cohort import Cohort, digest, read_cohort, survey
from voxfed.client.finding import Verdict
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import VolumeError

MASK = ConditionSettings(kind="mask", suffix="oar", structures=2)


def touch(path: Path, content: bytes = b"scan") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(cohort: Cohort) -> dict[str, list[str]]:
    return {
        patient: [image.path.relative_to(cohort.folder).as_posix() for image in images]
        for patient, images in cohort.patients.items()
    }


def test_one_folder_a_patient_with_visits(tmp_path: Path) -> None:
    """Files of a patient are found at any depth, sorted; hidden and foreign ones are not."""
    for name in ("b/x_ct.nii.gz", "a/visit2/x_ct.nii", "a/visit1/x_ct.nii.gz", "a/.x_ct.nii.gz"):
        touch(tmp_path / name)
    touch(tmp_path / "a/notes.txt")
    touch(tmp_path / ".hidden/x_ct.nii.gz")
    cohort = read_cohort(tmp_path)
    assert names(cohort) == {
        "a": ["a/visit1/x_ct.nii.gz", "a/visit2/x_ct.nii"],
        "b": ["b/x_ct.nii.gz"],
    }
    assert cohort.findings == ()


def test_bids_tree_leaves_out_derivatives(tmp_path: Path) -> None:
    """sub-*/anat and sub-*/ses-*/anat only: func and derivatives are not patients' scans."""
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
        "sub-01/func/sub-01_bold.nii.gz",
        "derivatives/sub-01/anat/sub-01_T1w.nii.gz",
    ):
        touch(tmp_path / name)
    assert names(read_cohort(tmp_path, "T1w")) == {
        "sub-01": ["sub-01/anat/sub-01_T1w.nii.gz"],
        "sub-02": [
            "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
            "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
        ],
    }


def test_manifest_joins_label_mask_and_source(tmp_path: Path) -> None:
    """Columns in any order, a BOM from a spreadsheet, empty cells and empty lines."""
    for name in ("x_ct.nii.gz", "y_ct.nii.gz", "x_seg.nii.gz", "x_mr.nii.gz", "x_mask.nii.gz"):
        touch(tmp_path / "all" / name)
    text = "\ufeffpath,patient,source,label,mask\r\n" + "\r\n".join(
        [
            "all/x_ct.nii.gz,one,all/x_mr.nii.gz,all/x_seg.nii.gz,all/x_mask.nii.gz",
            "",
            "all/y_ct.nii.gz,two,,,",
        ]
    )
    (tmp_path / "manifest.csv").write_bytes(text.encode())
    cohort = read_cohort(tmp_path, "CT")
    folder = tmp_path / "all"
    assert [p.name for p in cohort.patients["one"][0].files] == [
        "x_ct.nii.gz",
        "x_seg.nii.gz",
        "x_mask.nii.gz",
        "x_mr.nii.gz",
    ]
    assert cohort.patients["one"][0].source == folder / "x_mr.nii.gz"
    assert cohort.patients["two"][0].files == (folder / "y_ct.nii.gz",)


def test_modality_keeps_its_images_and_names_who_has_none(tmp_path: Path) -> None:
    touch(tmp_path / "a/a_ct.nii.gz")
    touch(tmp_path / "a/a_dose.nii.gz")
    touch(tmp_path / "b/b_dose.nii.gz")
    cohort = read_cohort(tmp_path, "CT")
    assert names(cohort) == {"a": ["a/a_ct.nii.gz"]}
    (finding,) = cohort.findings
    assert (finding.path, finding.verdict) == ("b", Verdict.WARN)
    assert "no ct image" in finding.reason
    assert names(read_cohort(tmp_path))["b"] == ["b/b_dose.nii.gz"]


def test_a_manifests_patient_without_the_modality_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a_ct.nii.gz")
    touch(tmp_path / "b_dose.nii.gz")
    (tmp_path / "manifest.csv").write_text("patient,path\na,a_ct.nii.gz\nb,b_dose.nii.gz\n")
    (finding,) = read_cohort(tmp_path, "ct").findings
    assert "patient b has no ct image" in finding.reason


def test_a_mask_or_source_is_found_beside_its_image(tmp_path: Path) -> None:
    """In the same folder, by name; whoever has none is left out, and said so."""
    for name in ("a/v1/a_ct", "a/v1/a_oar", "a/v2/a_ct", "b/b_ct", "b/b_dose", "c/c_CT", "c/c_OAR"):
        touch(tmp_path / f"{name}.nii.gz")
    cohort = read_cohort(tmp_path, "ct", MASK)
    assert names(cohort) == {"a": ["a/v1/a_ct.nii.gz"], "c": ["c/c_CT.nii.gz"]}
    (image,) = cohort.patients["a"]
    assert image.beside(MASK) == image.mask == tmp_path / "a/v1/a_oar.nii.gz"
    assert {(f.path, f.verdict, f.reason) for f in cohort.findings} == {
        ("a/v2/a_ct.nii.gz", Verdict.WARN, "the image has no mask and is left out"),
        ("b/b_ct.nii.gz", Verdict.WARN, "the image has no mask and is left out"),
    }
    dose = ConditionSettings(kind="source", suffix="dose")
    (image,) = read_cohort(tmp_path, "ct", dose).patients["b"]
    assert image.beside(dose) == image.source == tmp_path / "b/b_dose.nii.gz"
    age = ConditionSettings(kind="attributes", columns=("age",), ranges=((0.0, 99.0),))
    assert read_cohort(tmp_path, "ct", age) == read_cohort(tmp_path, "ct")


def test_a_bids_mask_lies_in_its_images_folder(tmp_path: Path) -> None:
    """The other session's mask is not taken."""
    for name in (
        "ses-1/anat/sub-1_ses-1_T1w",
        "ses-1/anat/sub-1_ses-1_oar",
        "ses-2/anat/sub-1_T1w",
    ):
        touch(tmp_path / f"sub-1/{name}.nii.gz")
    cohort = read_cohort(tmp_path, "T1w", MASK)
    (image,) = cohort.patients["sub-1"]
    assert image.mask == tmp_path / "sub-1/ses-1/anat/sub-1_ses-1_oar.nii.gz"
    assert len(cohort.findings) == 1


def test_a_cohort_without_any_mask(tmp_path: Path) -> None:
    """Folders name none without a suffix: the error says where one is named."""
    touch(tmp_path / "a/a_ct.nii.gz")
    for suffix, remedy in (("oar", "ending in _oar"), ("", "column mask of manifest.csv")):
        asked = ConditionSettings(kind="mask", suffix=suffix, structures=2)
        with pytest.raises(VolumeError, match="has no mask") as caught:
            read_cohort(tmp_path, "ct", asked)
        assert remedy in caught.value.hint


def test_two_masks_or_one_from_elsewhere_are_refused(tmp_path: Path) -> None:
    """Nobody could say which was meant; and a link's target was never checked or mounted."""
    outside = touch(tmp_path / "outside/b_oar.nii.gz")
    cohort = tmp_path / "cohort"
    for name in ("a/a_ct.nii", "a/a_oar.nii", "a/a_oar.nii.gz", "b/b_ct.nii", "c/c_ct.nii"):
        touch(cohort / name)
    (cohort / "b/b_oar.nii.gz").symlink_to(outside)
    touch(cohort / "c/c_oar.nii")
    found = read_cohort(cohort, "ct", MASK)
    assert list(found.patients) == ["c"]
    assert [(f.path, f.verdict) for f in found.findings] == [
        ("a/a_ct.nii", Verdict.FAIL),
        ("b/b_oar.nii.gz", Verdict.FAIL),
    ]


def test_a_manifest_names_masks_or_leaves_them_to_the_suffix(tmp_path: Path) -> None:
    """Without a suffix the column mask, else label; with one the file beside, whatever it says."""
    for name in ("x_ct", "x_seg", "x_oar", "y_ct", "y_seg", "z_ct"):
        touch(tmp_path / f"{name}.nii.gz")
    rows = "a,x_ct.nii.gz,x_seg.nii.gz,x_oar.nii.gz\nb,y_ct.nii.gz,y_seg.nii.gz,\nc,z_ct.nii.gz,,\n"
    (tmp_path / "manifest.csv").write_text("patient,path,label,mask\n" + rows)
    asked = ConditionSettings(kind="mask", structures=2)
    cohort = read_cohort(tmp_path, "ct", asked)
    taken = {name: image.beside(asked) for name, (image,) in cohort.patients.items()}
    assert taken == {"a": tmp_path / "x_oar.nii.gz", "b": tmp_path / "y_seg.nii.gz"}
    assert [f.path for f in cohort.findings] == ["z_ct.nii.gz"]
    assert list(read_cohort(tmp_path, "ct", MASK).patients) == ["a"]


ROWS = {
    "missing file": ("a,gone.nii.gz,", "gone.nii.gz", "does not exist"),
    "missing label": ("a,a.nii.gz,gone.nii.gz", "gone.nii.gz", "does not exist"),
    "outside": ("a,../b.nii.gz,", "manifest.csv:2", "outside"),
    "absolute": ("a,/etc/hostname,", "manifest.csv:2", "outside"),
    "no path": ("a,,", "manifest.csv:2", "no image"),
    "no patient": (",a.nii.gz,", "manifest.csv:2", "name cannot be used"),
    "a path as patient": ("../a,a.nii.gz,", "manifest.csv:2", "name cannot be used"),
    "too few cells": ("a,a.nii.gz", "manifest.csv:2", "cells"),
    "too many cells": ("a,a.nii.gz,,,", "manifest.csv:2", "cells"),
    "open quote": ('"a,a.nii.gz,', "manifest.csv", "not CSV"),
}


@pytest.mark.parametrize(("row", "path", "reason"), ROWS.values(), ids=ROWS.keys())
def test_a_wrong_row_is_named_and_its_image_left_out(
    tmp_path: Path, row: str, path: str, reason: str
) -> None:
    touch(tmp_path / "a.nii.gz")
    touch(tmp_path.parent / "b.nii.gz")
    (tmp_path / "manifest.csv").write_text(f"patient,path,label\n{row}")
    cohort = survey(tmp_path)
    first = cohort.findings[0]
    assert (first.path, first.verdict) == (path, Verdict.FAIL)
    assert reason in first.reason
    assert not cohort.patients
    with pytest.raises(VolumeError, match=reason):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    "header",
    [b"patient,file\n", b"patient,path,colour\n", b"patient,path,path\n", b"", b"\xff\xfe\0p"],
)
def test_a_manifest_with_another_first_line_is_refused(tmp_path: Path, header: bytes) -> None:
    touch(tmp_path / "manifest.csv", header)
    with pytest.raises(VolumeError, match=r"first line is wrong|not CSV"):
        read_cohort(tmp_path)


def test_dicom_is_answered_with_the_command(tmp_path: Path) -> None:
    """By magic number without a suffix, and by suffix; a patient's name with a blank is quoted."""
    touch(tmp_path / "ann b/series/IM0001", bytes(128) + b"DICM" + b"DOE^JANE")
    touch(tmp_path / "carl/1.dcm", b"")
    touch(tmp_path / "dora/dora_ct.nii.gz")
    first, second = read_cohort(tmp_path, "ct").findings
    assert first.path == "ann b"
    assert "dcm2niix -z y -b n -f 'ann b_%s_ct' -o 'nifti/ann b' 'ann b'" in first.remedy
    assert "dcm2niix" in second.remedy
    assert "DOE" not in first.reason + first.remedy
    with pytest.raises(VolumeError, match="DICOM") as caught:
        read_cohort(tmp_path / "carl")
    assert "dcm2niix" in caught.value.hint


def test_loose_images_and_shared_folders_are_not_patients(real_data: Path, tmp_path: Path) -> None:
    """MSD's images/ would otherwise be one patient with 160 volumes."""
    touch(tmp_path / "loose_ct.nii.gz")
    touch(tmp_path / "a/a_ct.nii.gz")
    (finding,) = read_cohort(tmp_path).findings
    assert (finding.path, finding.verdict) == ("loose_ct.nii.gz", Verdict.FAIL)
    with pytest.raises(VolumeError) as caught:
        read_cohort(real_data / "msd_hippocampus")
    assert "manifest.csv" in caught.value.hint


def test_links_out_of_the_cohort_are_refused(tmp_path: Path) -> None:
    """A file or a folder link, in folders and in a manifest; a link within the cohort is fine."""
    outside = touch(tmp_path / "outside/x_ct.nii.gz")
    cohort = tmp_path / "cohort"
    inside = touch(cohort / "a/a_ct.nii.gz")
    (cohort / "a/b_ct.nii.gz").symlink_to(inside)
    (cohort / "a/c_ct.nii.gz").symlink_to(outside)
    (cohort / "d").symlink_to(outside.parent)
    found = read_cohort(cohort)
    assert names(found) == {"a": ["a/a_ct.nii.gz", "a/b_ct.nii.gz"]}
    assert [f.path for f in found.findings] == ["a/c_ct.nii.gz", "d/x_ct.nii.gz"]
    (cohort / "manifest.csv").write_text("patient,path\na,a/c_ct.nii.gz\n")
    with pytest.raises(VolumeError, match="leaves the cohort"):
        read_cohort(cohort)


def test_names_that_no_terminal_can_print(tmp_path: Path) -> None:
    """A name with an escape sequence or bytes that are not UTF-8 is shown escaped."""
    touch(tmp_path / "a\x1b[31m/x_ct.nii.gz")
    os.makedirs(os.fsencode(tmp_path) + b"/b\xff")
    touch(tmp_path / "c/x_ct.nii.gz")
    cohort = read_cohort(tmp_path)
    assert list(cohort.patients) == ["c"]
    assert [f.path for f in cohort.findings] == ["a\\x1b[31m", "b\\udcff"]


def test_no_cohort_at_all(tmp_path: Path) -> None:
    """A missing folder, a file, an empty folder: one error with a remedy."""
    for folder in (tmp_path / "gone", touch(tmp_path / "file"), tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        with pytest.raises(VolumeError) as caught:
            read_cohort(folder)
        assert caught.value.hint


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One closed folder does not hide the other patients; planted, since root reads everything."""
    touch(tmp_path / "a/a_ct.nii.gz")
    touch(tmp_path / "b/b_ct.nii.gz")
    scandir = os.scandir

    def deny(path: str) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "no")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    cohort = read_cohort(tmp_path)
    assert list(cohort.patients) == ["b"]
    assert [f.path for f in cohort.findings] == ["a"]


def test_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    """Published value of FIPS 180-2 for "abc"; a missing file is an error with a remedy."""
    path = touch(tmp_path / "x", b"abc")
    assert digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(VolumeError):
        digest(tmp_path / "gone")


def test_real_patients(real_data: Path, tmp_path: Path) -> None:
    """Real CT: each patient has one image of the modality, and nothing is found wrong."""
    for patient in sorted((real_data / "openkbp_ct").glob("okbp-*"))[:4]:
        shutil.copytree(patient, tmp_path / patient.name)
    cohort = read_cohort(tmp_path, "ct")
    assert len(cohort.patients) == 4
    assert all(len(images) == 1 for images in cohort.patients.values())
    assert cohort.findings == ()
    assert nib.load(cohort.patients[min(cohort.patients)][0].path).ndim == 3
