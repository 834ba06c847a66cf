"""Approval: what freezes, what is refused with both numbers, and that a refusal writes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from voxfed.client.approval import Approval, all_approvals, approve, find, receive, reject
from voxfed.privacy.terms import agree
from voxfed.study.errors import LimitRefusal, PlanError, Refusal, VerificationError


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_an_approval_freezes(hospital: Any) -> None:
    """12 patients declare 10; terms and manifest are on disk; the whole budget is reserved."""
    found = hospital.approval
    assert (found.state, found.declared) == ("approved", 10)
    assert found.terms == agree(hospital.plan, 10)
    assert len(found.manifest.patients) == 12
    account = hospital.site.ledger.accounts()["trunks"]
    assert account.reserved == found.terms.whole
    assert account.charged == ()


def test_an_approval_is_made_once(hospital: Any) -> None:
    """Asked again nothing is flipped, frozen or reserved anew."""
    before = _files(hospital.site.worker)
    approve(hospital.site, "trunks")
    assert _files(hospital.site.worker) == before
    with pytest.raises(Refusal, match="approved already"):
        reject(hospital.site, "trunks", "changed my mind")


def test_new_patients_do_not_change_the_terms(hospital: Any) -> None:
    """q, divisor and sigma stay as they were on the day of approval."""
    before = hospital.approval.terms
    (hospital.cohort / "new").mkdir()
    assert hospital.approval.terms == before


@pytest.mark.parametrize(
    ("limits", "plan", "text"),
    [
        ({"lifetime_epsilon": 5.0}, b"", "got 8.0, expected at most 5.0"),
        ({"delta": 1e-5}, b"", "got 0.001, expected at most 1e-05"),
        ({"least_noise": 50.0}, b"", "expected at least 50.0"),
        ({"families": ("gan",)}, b"", "got vae, expected gan"),
        ({}, b"enabled = false\n", "does not allow training without privacy"),
    ],
)
def test_a_looser_plan_is_refused_with_both_numbers(
    small_hospital: Callable[..., Any], plan_text: bytes, limits: Any, plan: bytes, text: str
) -> None:
    """The site's limits hold whatever the coordinator signs, and nothing is written or spent."""
    hospital = small_hospital(plan_text.replace(b"[privacy]\n", b"[privacy]\n" + plan), **limits)
    before = _files(hospital.folder)
    with pytest.raises(LimitRefusal) as caught:
        approve(hospital.site, "trunks")
    assert text in caught.value.message
    assert _files(hospital.folder) == before
    assert hospital.site.ledger.accounts() == {}


def test_a_file_that_cannot_be_used(undecided: Any) -> None:
    """A broken scan stops the approval, by name, before anything is reserved."""
    path = min((undecided.cohort / min(p.name for p in undecided.cohort.iterdir())).iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    before = _files(undecided.folder)
    with pytest.raises(Refusal, match="1 files of the cohort cannot be used") as caught:
        approve(undecided.site, "trunks")
    assert path.name in caught.value.message
    assert _files(undecided.folder) == before


def test_rejecting(undecided: Any) -> None:
    """The reason is kept, the state is rejected, and no budget is reserved."""
    reject(undecided.site, "trunks", "no resources")
    found = find(undecided.site, "trunks")
    assert (found.state, found.reason, found.declared) == ("rejected", "no resources", 0)
    assert undecided.site.ledger.accounts() == {}


def test_a_name_stands_for_one_plan(undecided: Any) -> None:
    """What the operator read is what is approved: no other plan takes its place in between."""
    for text in (undecided.plan.text + b"# changed\n", undecided.plan.text.replace(b"8.0", b"9.0")):
        with pytest.raises(Refusal, match="offered under another plan"):
            receive(undecided.site, "trunks", text, b"e")
    assert approve(undecided.site, "trunks").plan.text == undecided.plan.text


def test_a_rejection_is_final(undecided: Any) -> None:
    """The coordinator was told no, and asks no more."""
    reject(undecided.site, "trunks", "no")
    with pytest.raises(Refusal, match="was rejected"):
        approve(undecided.site, "trunks")


def test_two_approvals_at_once_flip_one_split(undecided: Any) -> None:
    """A second split would audit as held out who already trained."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: approve(undecided.site, "trunks").manifest, range(4)))
    assert found == [found[0]] * 4
    assert [row.kind for row in undecided.site.ledger.rows()] == ["reserve"]


def test_a_crash_after_the_split_keeps_it(undecided: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Approved again, the study has the coins that fell before the crash."""
    with monkeypatch.context() as patch:
        patch.setattr(Approval, "decide", _crash)
        with pytest.raises(KeyboardInterrupt):
            approve(undecided.site, "trunks")
    before = undecided.approval.manifest
    assert undecided.approval.state == "pending"
    assert approve(undecided.site, "trunks").manifest == before


def _crash(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_offers_that_are_not_what_they_say(undecided: Any) -> None:
    """A plan under another name, or a wrong one, is never written."""
    before = _files(undecided.folder)
    with pytest.raises(Refusal, match="names another study"):
        receive(undecided.site, "tracks", undecided.plan.text, b"e")
    with pytest.raises(PlanError):
        receive(undecided.site, "trunks", b"rounds = 3", b"e")
    assert _files(undecided.folder) == before


@pytest.mark.parametrize("name", ["../../keys", "", "A"])
def test_names_that_could_leave_the_folder(undecided: Any, name: str) -> None:
    """A study's name never becomes another path."""
    with pytest.raises(PlanError):
        find(undecided.site, name)


def test_unknown_study(undecided: Any) -> None:
    """The error says what was offered."""
    with pytest.raises(Refusal, match="expected one of: trunks"):
        find(undecided.site, "hearts")
    assert [a.folder.name for a in all_approvals(undecided.site)] == ["trunks"]


def test_a_garbled_decision_is_no_approval(hospital: Any) -> None:
    """A file cut short is an error and never taken for pending."""
    (hospital.approval.folder / "decision.json").write_bytes(b"{")
    with pytest.raises(VerificationError, match="garbled"):
        _ = hospital.approval.state


def _told(plan: bytes, condition: str) -> bytes:
    """The plan of a conditional VAE that is told what `condition` says."""
    plan = plan.replace(b'"vae"', b'"conditional-vae"')
    plan = plan.replace(b"[volumes]", b'[volumes]\nmodality = "phantom"')
    return plan + b"[condition]\n" + condition.encode()


def _masks(cohort: Path, labels: int) -> list[Path]:
    """Write a mask beside every phantom but the first patient's."""
    patients = sorted(path for path in cohort.iterdir() if path.is_dir())
    for path in (p for patient in patients[1:] for p in patient.rglob("*_phantom.nii.gz")):
        image = nib.load(path)
        mask = np.arange(math.prod(image.shape)).reshape(image.shape) % labels
        name = path.name.replace("phantom", "seg")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), path.with_name(name))
    return patients


def test_a_study_of_masks_freezes_who_has_one(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """12 patients, 11 with masks: the twelfth is no part of it, and 10 are declared."""
    text = _told(plan_text, 'kind = "mask"\nsuffix = "seg"\nstructures = 3')
    hospital = small_hospital(text, families=("conditional-vae",))
    first, *others = _masks(hospital.cohort, 3)
    found = approve(hospital.site, "trunks")
    assert (found.state, found.declared) == ("approved", 10)
    assert set(found.manifest.patients) == {patient.name for patient in others}
    assert first.name not in found.manifest.patients
    beside = [image.beside for images in found.manifest.patients.values() for image in images]
    assert all(file is not None and file.path.endswith("_seg.nii.gz") for file in beside)


def test_masks_that_the_plan_does_not_know_stop_an_approval(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """A mask of four labels in a study of three, before anything is frozen or reserved."""
    text = _told(plan_text, 'kind = "mask"\nsuffix = "seg"\nstructures = 3')
    hospital = small_hospital(text, families=("conditional-vae",))
    _masks(hospital.cohort, 4)
    before = _files(hospital.folder)
    with pytest.raises(Refusal, match="expected whole numbers from 0 to 2"):
        approve(hospital.site, "trunks")
    assert _files(hospital.folder) == before


def test_a_patient_without_a_class_stops_an_approval(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """How many and who, with nothing written; once the table is whole, the classes are frozen."""
    text = _told(plan_text, 'kind = "class"\ncolumn = "sex"\nvalues = ["F", "M"]')
    hospital = small_hospital(text, families=("conditional-vae",))
    names = sorted(path.name for path in hospital.cohort.iterdir())
    rows = [f"{name}\t{'FM'[n % 2]}" for n, name in enumerate(names)]
    table = hospital.cohort / "participants.tsv"
    table.write_text("\n".join(["participant_id\tsex", *rows[:-2], f"{names[-2]}\tn/a"]))
    broken = min(hospital.cohort.rglob("*.nii.gz"))
    sound = broken.read_bytes()
    broken.write_bytes(sound[:-100])  # found later: files take long to read, a table does not
    before = _files(hospital.folder)
    with pytest.raises(Refusal, match=rf"2 of 12 patients .*first: {names[-2]}.*one of F, M"):
        approve(hospital.site, "trunks")
    assert _files(hospital.folder) == before
    assert hospital.site.ledger.accounts() == {}
    table.write_text("\n".join(["participant_id\tsex", *rows]))
    with pytest.raises(Refusal, match="1 files of the cohort cannot be used"):
        approve(hospital.site, "trunks")
    broken.write_bytes(sound)
    numbers = approve(hospital.site, "trunks").manifest.numbers
    assert numbers == {name: (n % 2,) for n, name in enumerate(names)}


def test_a_source_that_shows_nothing_here_stops_an_approval(
    small_hospital: Callable[..., Any], plan_text: bytes
) -> None:
    """Flat but for a speck within the part that the plan reads: found before any budget."""
    text = _told(plan_text, 'kind = "source"\nsuffix = "T1w"\npercentiles = [40.0, 60.0]')
    hospital = small_hospital(text, families=("conditional-vae",))
    for number, path in enumerate(sorted(hospital.cohort.rglob("*_phantom.nii.gz"))):
        image = nib.load(path)
        voxels = np.zeros(image.shape, np.int16)
        voxels[0, 0, :2] = 7 + number
        beside = path.with_name(path.name.replace("phantom", "T1w"))
        nib.save(nib.Nifti1Image(voxels, image.affine), beside)
    before = _files(hospital.folder)
    with pytest.raises(Refusal, match="cannot be used in this study"):
        approve(hospital.site, "trunks")
    assert _files(hospital.folder) == before
