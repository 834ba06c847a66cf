"""What the studies of these tests are told of each phantom: a class, or a mask beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

CONDITIONED: dict[str, dict[str, Any]] = {
    "conditional-vae": {"kind": "class", "column": "sex", "values": ["F", "M"]},
    "pix2pix": {"kind": "mask", "suffix": "tissue", "structures": 3},
}
MARKER = "zz-planted-mask"
"""Stands in the header of every mask."""


def tell(cohort: Path) -> None:
    """Write a table of the patients, and beside each phantom a mask of three tissues.

    Phantoms of the class M are dark on their right: a class that can be seen.
    """
    rows = ["participant_id\tsex"]
    for number, patient in enumerate(sorted(cohort.iterdir())):
        sex = "FM"[number % 2]
        rows.append(f"{patient.name}\t{sex}")
        for path in sorted(patient.glob("*_phantom.nii.gz")):
            image = nib.as_closest_canonical(nib.load(path))
            voxels = np.asarray(image.get_fdata(), dtype=np.float32)
            tissue = np.digitize(voxels, np.quantile(voxels, [0.6, 0.9])).astype(np.int16)
            mask = nib.Nifti1Image(tissue, image.affine)
            mask.header["descrip"] = MARKER
            nib.save(mask, path.with_name(path.name.replace("phantom", "tissue")))
            if sex == "M":
                voxels[len(voxels) // 2 :] *= 0.3
            nib.save(nib.Nifti1Image(voxels, image.affine), path)
    (cohort / "participants.tsv").write_text("\n".join(rows) + "\n")
