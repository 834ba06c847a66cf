"""What a site says of itself: bands and ranges, never a count, a name or a path."""

from __future__ import annotations

from typing import Any

import pytest
from voxfed.client.describe import band, describe
from voxfed.study.errors import VolumeError


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "under 10"),
        (9, "under 10"),
        (10, "10 to 19"),
        (20, "20 to 49"),
        (99, "50 to 99"),
        (999, "500 to 999"),
        (1000, "1000 or more"),
        (10**6, "1000 or more"),
    ],
)
def test_bands(n: int, expected: str) -> None:
    """Every number has one band, and the message's own pattern takes it."""
    assert band(n) == expected


def test_a_description(undecided: Any) -> None:
    """12 patients are "10 to 19"; spacing is in whole mm; limits are the site's."""
    found = describe(undecided.site)
    assert found.patients == "10 to 19"
    assert found.spacing == (5.0, 5.0)
    assert (found.most_epsilon, found.without_privacy) == (40.0, False)
    assert found.device == "cpu"


def test_no_name_of_the_cohort_leaves(undecided: Any) -> None:
    """Neither a patient nor a path is in what the coordinator reads."""
    patient = min(undecided.cohort.iterdir())
    image = min(patient.glob("*.nii.gz"))
    for name in ("Mueller Hans 1957-03-02", "scan_Mueller", "1957-03-02_mueller"):
        (patient / f"{name}.nii.gz").write_bytes(image.read_bytes())
    found = describe(undecided.site)
    assert set(found.modalities) == {"phantom", "other"}
    text = found.model_dump_json().lower()
    names = {path.name.split(".")[0].lower() for path in undecided.cohort.rglob("*")}
    assert len(names) > 12
    assert [word for word in [*names, "mueller", "1957"] if word in text] == []


def test_one_broken_file_does_not_silence_the_site(undecided: Any) -> None:
    """A description needs no single file; `site check` names the broken one."""
    patient = min(undecided.cohort.iterdir())
    for path in patient.iterdir():
        path.write_bytes(b"broken")
    assert describe(undecided.site).spacing == (5.0, 5.0)


def test_no_cohort(undecided: Any) -> None:
    """A folder that is gone is one clear error."""
    undecided.cohort.rename(undecided.cohort.with_name("moved"))
    with pytest.raises(VolumeError):
        describe(undecided.site)
