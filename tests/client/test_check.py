"""The check sees every file, and a copy of an image under two patients however it was saved."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxfed.client.check import as_json, check_cohort, unreadable_by
from voxfed.client.finding import Finding, Verdict
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import VolumeError

GENERATOR = np.random.default_rng(0)


def scan(path: Path, voxels: np.ndarray | None = None, spacing: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = GENERATOR.integers(0, 900, size=(9, 10, 11)).astype(np.int16)
    image = nib.Nifti1Image(drawn if voxels is None else voxels, np.diag([1, 1, spacing, 1]))
    nib.save(image, path)
    return path


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.path: finding.verdict.value for finding in findings}


def test_a_sound_cohort_passes_with_progress(tmp_path: Path) -> None:
    """Each file is reported once, and progress counts to their number."""
    write_cohort(tmp_path, 3, HOSPITALS[0], seed=0)
    steps: list[tuple[int, int]] = []
    findings = check_cohort(tmp_path, progress=lambda done, n: steps.append((done, n)))
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.nii.gz"))
    assert [finding.path for finding in findings] == files
    assert {finding.verdict for finding in findings} == {Verdict.PASS}
    assert steps == [(n, len(files)) for n in range(1, len(files) + 1)]


def test_faults_and_doubts_carry_reason_and_remedy(tmp_path: Path) -> None:
    """One cohort with one file of each kind, as the JSON that the command prints."""
    scan(tmp_path / "a/good.nii.gz")
    scan(tmp_path / "b/constant.nii.gz", np.zeros((9, 9, 9), np.int16))
    scan(tmp_path / "c/thick.nii.gz", spacing=6.0)
    scan(tmp_path / "d/small.nii.gz", GENERATOR.normal(size=(4, 20, 20)).astype(np.float32))
    path = scan(tmp_path / "e/lost.nii")
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    (tmp_path / "f").mkdir()
    document = json.loads(json.dumps(as_json(check_cohort(tmp_path))))
    found = {row["path"]: row for row in document["files"]}
    assert {path: row["verdict"] for path, row in found.items()} == {
        "a/good.nii.gz": "PASS",
        "b/constant.nii.gz": "FAIL",
        "c/thick.nii.gz": "WARN",
        "d/small.nii.gz": "WARN",
        "e/lost.nii": "WARN",
        "f": "WARN",
    }
    for path, row in found.items():
        assert set(row) == {"path", "verdict", "reason", "remedy"}
        assert bool(row["reason"]) == bool(row["remedy"]) == (path != "a/good.nii.gz")
    assert "orientation" in found["e/lost.nii"]["reason"]


def test_one_image_under_two_patients_fails_at_both(tmp_path: Path) -> None:
    """Compressed anew, stored in another type and turned, it is still the same image."""
    voxels = GENERATOR.integers(0, 900, size=(9, 10, 11)).astype(np.int16)
    scan(tmp_path / "a/x.nii.gz", voxels)
    scan(tmp_path / "c/z.nii.gz")
    turned = nib.Nifti1Image(voxels[:, ::-1].astype(np.float32), np.diag([1, -1, 1, 1]))
    (tmp_path / "b").mkdir()
    nib.save(turned, tmp_path / "b/y.nii")
    findings = check_cohort(tmp_path)
    assert verdicts(findings) == {"a/x.nii.gz": "FAIL", "b/y.nii": "FAIL", "c/z.nii.gz": "PASS"}
    assert "b/y.nii" in findings[0].reason


def test_one_image_twice_under_one_patient_warns(tmp_path: Path) -> None:
    """It would count double in the patient's mean; no privacy is lost."""
    path = scan(tmp_path / "a/x.nii.gz")
    (tmp_path / "a/y.nii.gz").write_bytes(path.read_bytes())
    assert verdicts(check_cohort(tmp_path)) == {"a/x.nii.gz": "WARN", "a/y.nii.gz": "WARN"}


def test_one_file_named_twice_in_a_manifest(tmp_path: Path) -> None:
    """By one patient a warning, by two a failure, though only one file is listed."""
    scan(tmp_path / "x.nii.gz")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("patient,path\na,x.nii.gz\na,x.nii.gz\n")
    assert verdicts(check_cohort(tmp_path)) == {"x.nii.gz": "WARN"}
    manifest.write_text("patient,path\na,x.nii.gz\nb,x.nii.gz\n")
    assert verdicts(check_cohort(tmp_path)) == {"x.nii.gz": "FAIL"}


def test_labels_are_read_too_but_may_be_alike(tmp_path: Path) -> None:
    """A damaged label fails; equal masks of two patients are no copy of a scan."""
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[4] = 1
    for name in "ab":
        scan(tmp_path / f"{name}.nii.gz")
        scan(tmp_path / f"{name}_mask.nii.gz", mask)
    (tmp_path / "bad.nii.gz").write_bytes(b"bad")
    rows = "a,a.nii.gz,a_mask.nii.gz,bad.nii.gz\nb,b.nii.gz,b_mask.nii.gz,\n"
    (tmp_path / "manifest.csv").write_text("patient,path,mask,label\n" + rows)
    found = verdicts(check_cohort(tmp_path))
    assert found.pop("bad.nii.gz") == "FAIL"
    assert set(found.values()) == {"PASS"}
    assert len(found) == 4


def test_sources_are_judged_as_scans(tmp_path: Path) -> None:
    """A patient's visits may share one; two patients may not, and a constant one shows nothing."""
    for name in ("a", "b", "c", "shared", "other"):
        scan(tmp_path / f"{name}.nii.gz")
    scan(tmp_path / "empty.nii.gz", np.zeros((9, 9, 9), np.int16))
    header = "patient,path,source\n"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(header + "p,a.nii.gz,shared.nii.gz\np,b.nii.gz,shared.nii.gz\n")
    assert set(verdicts(check_cohort(tmp_path)).values()) == {"PASS"}
    rows = "p,a.nii.gz,shared.nii.gz\nq,b.nii.gz,shared.nii.gz\nr,c.nii.gz,empty.nii.gz\n"
    manifest.write_text(header + rows + "s,other.nii.gz,a.nii.gz\n")
    found = verdicts(check_cohort(tmp_path))
    assert {path for path, verdict in found.items() if verdict == "FAIL"} == {
        "a.nii.gz",
        "empty.nii.gz",
        "shared.nii.gz",
    }


def test_what_a_plan_reads_beside_images_is_judged(tmp_path: Path) -> None:
    """Other labels than the plan's, and a mask that lies elsewhere, are found before approval."""
    masks = {name: np.zeros((9, 10, 11), np.uint8) for name in "abcd"}
    masks["a"][4], masks["b"][4], masks["d"][4] = 2, 3, 1
    for name, mask in masks.items():
        scan(tmp_path / f"{name}/{name}_ct.nii.gz")
        scan(tmp_path / f"{name}/{name}_oar.nii.gz", mask)
    far = np.eye(4)
    far[0, 3] = 500.0
    nib.save(nib.Nifti1Image(masks["d"], far), tmp_path / "d/d_oar.nii.gz")
    asked = ConditionSettings(kind="mask", suffix="oar", structures=3)
    findings = check_cohort(tmp_path, "ct", condition=asked)
    assert verdicts(findings) == {
        **{f"{name}/{name}_ct.nii.gz": "PASS" for name in "abcd"},
        "a/a_oar.nii.gz": "PASS",
        "b/b_oar.nii.gz": "FAIL",
        "c/c_oar.nii.gz": "PASS",  # a patient without the structure
        "d/d_oar.nii.gz": "FAIL",
    }
    reasons = {finding.path: finding.reason for finding in findings}
    assert "0 to 3, expected whole numbers from 0 to 2" in reasons["b/b_oar.nii.gz"]
    assert "another place" in reasons["d/d_oar.nii.gz"]
    assert verdicts(check_cohort(tmp_path, "ct")).keys() == {f"{n}/{n}_ct.nii.gz" for n in "abcd"}


def test_missing_files_and_no_patients_are_findings(tmp_path: Path) -> None:
    """The check of a folder that cannot train still answers with a list; no folder is an error."""
    assert verdicts(check_cohort(tmp_path)) == {".": "FAIL"}
    (tmp_path / "manifest.csv").write_text("patient,path\na,gone.nii.gz\n")
    assert verdicts(check_cohort(tmp_path)) == {"gone.nii.gz": "FAIL"}
    with pytest.raises(VolumeError):
        check_cohort(tmp_path / "gone")


def test_real_ct_passes(real_data: Path) -> None:
    """Seventy real patients of one modality: no file is refused, no two are called copies."""
    findings = check_cohort(real_data / "openkbp_ct", "CT")
    assert len(findings) >= 10
    assert {finding.verdict for finding in findings} == {Verdict.PASS}


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "readable"),
    [
        (0o600, 501, 20, True),
        (0o600, 502, 20, False),
        (0o640, 502, 20, True),
        (0o640, 502, 21, False),
        (0o604, 502, 21, True),
        (0o044, 501, 20, False),  # the owner's bits bind the owner
        (0o000, 0, 0, True),  # root
    ],
)
def test_unreadable_files_follow_the_kernels_rule(
    tmp_path: Path, mode: int, uid: int, gid: int, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class of bits decides: owner, else group, else others (POSIX.1, 4.7)."""
    tmp_path.chmod(0o755)
    path = scan(tmp_path / "a/x.nii.gz")
    path.parent.chmod(0o755)
    path.chmod(mode)
    stat = Path.stat

    def owned(self: Path, **_: object) -> os.stat_result:
        values = list(stat(self))
        values[4:6] = [501, 20]
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", owned)
    assert unreadable_by(tmp_path, uid, gid) == ([] if readable else ["a/x.nii.gz"])


def test_a_closed_folder_is_named_once(tmp_path: Path) -> None:
    """Its files cannot be reached, so the folder is what to open; a broken link is named too."""
    tmp_path.chmod(0o755)
    scan(tmp_path / "a/x.nii.gz")
    (tmp_path / "a").chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    stranger = os.getuid() + 1
    assert unreadable_by(tmp_path, stranger, os.getgid() + 1) == ["link", "a"]
