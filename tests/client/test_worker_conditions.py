"""A study of each kind of condition, from the files of a cohort to a charged reply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from voxfed.client.approval import approve
from voxfed.client.worker import Worker

CONDITIONS = {
    "class": 'column = "sex"\nvalues = ["F", "M"]',
    "attributes": 'columns = ["age"]\nranges = [[0, 100]]',
    "mask": 'suffix = "seg"\nstructures = 3',
    "source": 'suffix = "t2"',
}
BESIDE = {"mask": "seg", "source": "t2"}


def _write_conditions(cohort: Path) -> None:
    """Write sex and age of each patient, and beside each image a mask and a source."""
    rows = ["participant_id\tsex\tage"]
    for n, patient in enumerate(sorted(path for path in cohort.iterdir() if path.is_dir())):
        rows.append(f"{patient.name}\t{'FM'[n % 2]}\t{20 + n}")
        for path in sorted(patient.rglob("*_phantom.nii.gz")):
            image = nib.load(path)
            seen = image.get_fdata() / image.get_fdata().max()
            for name, made in (
                ("seg", np.clip(3 * seen, 0, 2).astype(np.uint8)),
                ("t2", (1 - seen).astype(np.float32)),
            ):
                beside = path.with_name(path.name.replace("phantom", name))
                nib.save(nib.Nifti1Image(made, image.affine), beside)
    (cohort / "participants.tsv").write_text("\n".join(rows))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_conditional_study_trains_at_a_site(
    small_hospital: Callable[..., Any], plan_text: bytes, kind: str
) -> None:
    """Approved and trained; a mask or source that is gone stops the next round, a table does not.

    The table may go since its numbers were frozen at approval. The site alone is told the file.
    """
    text = plan_text.replace(b'"vae"', b'"conditional-vae"').replace(b"rounds = 2", b"rounds = 3")
    text = text.replace(b"[volumes]", b'[volumes]\nmodality = "phantom"')
    text += f'[condition]\nkind = "{kind}"\n{CONDITIONS[kind]}\n'.encode()
    hospital = small_hospital(text, families=("conditional-vae",))
    _write_conditions(hospital.cohort)
    approve(hospital.site, "trunks")
    worker = Worker(hospital.site)
    header, payload = hospital.opened(worker.answer(hospital.train_request()))
    assert header.kind == "receipt"
    assert payload
    (hospital.cohort / "participants.tsv").unlink()
    for other in set(BESIDE) - {kind}:
        _remove(hospital.cohort, BESIDE[other])
    assert hospital.opened(worker.answer(hospital.train_request(2)))[0].kind == "receipt"
    if kind not in BESIDE:
        return
    member = hospital.cohort / hospital.approval.manifest.members[0]
    gone = _remove(member, BESIDE[kind])[0]
    reply = worker.answer(hospital.train_request(3))
    assert hospital.code(reply) == "cohort-changed"
    assert gone.name.encode() not in reply
    assert gone.name in hospital.site.journal.path.read_text().splitlines()[-1]


def _remove(folder: Path, name: str) -> list[Path]:
    """Remove the images of a name, and return where they were."""
    removed = sorted(folder.rglob(f"*_{name}.nii.gz"))
    for path in removed:
        path.unlink()
    return removed
