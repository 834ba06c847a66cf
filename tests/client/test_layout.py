"""What an image's name says: its modality, and which file lies beside it."""

from pathlib import Path

import pytest
from voxfed.client.layout import beside, is_safe, modality_of


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("sub-01_T1w.nii.gz", "t1w"),
        ("okbp-001_ct.nii.gz", "ct"),
        ("okbp_001_CT.nii", "ct"),
        ("ct.nii.gz", "ct"),
        ("a_ct.b.nii.gz", "ct.b"),
    ],
)
def test_modality_is_the_last_token(name: str, modality: str) -> None:
    """As in BIDS, in any case of letters."""
    assert modality_of(Path(name)) == modality


@pytest.mark.parametrize(
    ("name", "suffix", "found"),
    [
        ("a_ct.nii.gz", "oar", ["a_oar.nii.gz"]),
        ("a_b_ct.nii.gz", "OAR", ["a_b_Oar.nii"]),
        ("a_ct.nii.gz", "ct_lung", ["a_ct_lung.nii.gz"]),
        ("ct.nii.gz", "oar", ["oar.nii.gz"]),
        ("a_b_ct.nii.gz", "dose", []),
        ("a_ct.nii.gz", "two", ["a_two.nii", "a_two.nii.gz"]),
        ("a_ct.nii.gz", "notes", []),
    ],
)
def test_what_lies_beside_is_called_alike(
    tmp_path: Path, name: str, suffix: str, found: list[str]
) -> None:
    """All of the name counts but its end: another visit's or patient's mask is never taken."""
    for made in ("a_ct", "a_oar", "a_b_ct", "a_ct_lung", "ct", "oar", "aa_dose", "a_b_c_dose"):
        (tmp_path / f"{made}.nii.gz").touch()
    for made in ("a_b_Oar.nii", "a_two.nii", "a_two.nii.gz", "a_notes.txt"):
        (tmp_path / made).touch()
    assert [path.name for path in beside(tmp_path / name, suffix)] == found


@pytest.mark.parametrize("name", ["", ".a", "a/b", "a\\b", "a\x1b", "a" * 129])
def test_names_that_are_no_patients(name: str) -> None:
    """A name becomes part of paths and of what terminals show."""
    assert not is_safe(name)
    assert is_safe("sub-01 b")
