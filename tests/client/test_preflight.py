"""The check names what a plan will miss while the plan still waits, and no file twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from voxfed.client.approval import receive, reject
from voxfed.client.preflight import check_data, check_folder
from voxfed.study.plan import StudyPlan

MASK = 'kind = "mask"\nsuffix = "seg"\nstructures = 3'
CLASS = 'kind = "class"\ncolumn = "sex"\nvalues = ["F", "M"]'


def told(plan: bytes, condition: str) -> bytes:
    """The plan of a conditional VAE of phantoms that is told what `condition` says."""
    plan = plan.replace(b'"vae"', b'"conditional-vae"')
    plan = plan.replace(b"[volumes]", b'[volumes]\nmodality = "phantom"')
    return plan + b"[condition]\n" + condition.encode()


def write_masks(cohort: Path) -> list[Path]:
    """A mask beside every phantom but the first; the second's has a label too many."""
    images = sorted(cohort.rglob("*_phantom.nii.gz"))
    for number, path in enumerate(images[1:]):
        image = nib.load(path)
        labels = np.zeros(image.shape, np.uint8)
        labels[4] = 3 if number == 0 else 2
        mask = path.with_name(path.name.replace("phantom", "seg"))
        nib.save(nib.Nifti1Image(labels, image.affine), mask)
    return images


def found_in(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["check"]: row["verdict"] for row in rows}


def test_a_waiting_plans_masks_are_judged(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """An image without a mask and a mask of strange labels, by name, before any approval."""
    hospital = small_hospital(told(plan_text, MASK), families=("conditional-vae",))
    first, second, *_ = write_masks(hospital.cohort)
    (first.parent / "other_t1.nii.gz").write_bytes(b"no image, and of no concern to the plan")
    files, rows = check_data(hospital.site)
    odd = {row["path"]: row for row in files if row["verdict"] != "PASS"}
    without = first.relative_to(hospital.cohort).as_posix()
    strange = second.relative_to(hospital.cohort).as_posix().replace("phantom", "seg")
    assert odd.keys() == {without, strange}
    assert odd[without]["verdict"] == "WARN"
    assert "has no mask and is left out" in odd[without]["reason"]
    assert odd[strange]["verdict"] == "FAIL"
    assert "expected whole numbers from 0 to 2" in odd[strange]["reason"]
    (row,) = [row for row in rows if row["check"] == "patients of trunks"]
    patients = len({path.parent for path in hospital.cohort.rglob("*_seg.nii.gz")})
    assert (row["verdict"], row["found"].split()[0]) == ("PASS", str(patients))
    assert found_in(rows)["step of trunks"] == "PASS"


def test_a_waiting_plans_values_are_judged(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """A patient without a class fails the check as it would the approval."""
    hospital = small_hospital(told(plan_text, CLASS), families=("conditional-vae",))
    names = sorted(path.name for path in hospital.cohort.iterdir())
    table = hospital.cohort / "participants.tsv"
    rows = ["participant_id\tsex", *(f"{name}\tF" for name in names)]
    table.write_text("\n".join(rows[:-1]))
    _, checks = check_data(hospital.site)
    (row,) = [row for row in checks if row["check"] == "patients of trunks"]
    assert row["verdict"] == "FAIL"
    assert (
        f"1 of 12 patients have no value that the plan can use (got first: {names[-1]}"
        in (row["found"])
    )
    assert "participants.tsv" in row["remedy"]
    table.write_text("\n".join(rows))
    files, checks = check_data(hospital.site)
    assert found_in(checks)["patients of trunks"] == "PASS"
    assert {row["verdict"] for row in files} == {"PASS"}


def test_two_waiting_plans_say_a_fault_once(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """What both would read is listed once; what one alone lacks is listed too."""
    hospital = small_hospital(told(plan_text, MASK), families=("conditional-vae",))
    first, *_ = write_masks(hospital.cohort)
    other = StudyPlan.from_text(plan_text.replace(b'"trunks"', b'"hearts"'))
    receive(hospital.site, "hearts", other.text, b"envelope")
    broken = max(hospital.cohort.rglob("*_phantom.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:-100])
    files, rows = check_data(hospital.site)
    reasons = [(row["path"], row["reason"]) for row in files]
    assert len(reasons) == len(set(reasons))
    name = broken.relative_to(hospital.cohort).as_posix()
    assert [row["verdict"] for row in files if row["path"] == name] == ["FAIL"]
    without = first.relative_to(hospital.cohort).as_posix()
    assert "WARN" in {row["verdict"] for row in files if row["path"] == without}
    assert {"patients of trunks", "patients of hearts"} <= found_in(rows).keys()


@pytest.mark.parametrize("decided", ["approved", "rejected"])
def test_without_a_waiting_plan_every_file_is_judged(
    request: pytest.FixtureRequest, decided: str
) -> None:
    """Once a plan is decided about, its cohort is frozen: the check is of the folder."""
    hospital = request.getfixturevalue("hospital" if decided == "approved" else "undecided")
    if decided == "rejected":
        reject(hospital.site, "trunks", "no")
    files, rows = check_data(hospital.site)
    assert files == check_folder(hospital.cohort)
    assert "patients of trunks" not in found_in(rows)
    assert ("step of trunks" in found_in(rows)) == (decided == "approved")
