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
    text = describe(undecided.site).model_dump_json()
    names = [path.name for path in undecided.cohort.rglob("*")]
    assert names
    assert [name for name in [*names, str(undecided.cohort)] if name in text] == []


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
