"""The verdict of the benchmark of families: who loses to probabilistic PCA, and why."""

from typing import Any

import pytest
from parts.verdict import COPIES, PCA, reached, why_lost

Ends = tuple[float, float]


def row(case: str, kid: Ends, coverage: Ends, told: str = "", copies: str = "PASS") -> Any:
    """Return a row with these intervals, trained for 76 steps."""
    pairs = {"KID": kid, "coverage": coverage}
    figures = {name: {"low": low, "high": high} for name, (low, high) in pairs.items()}
    name = f"{case}, {told}" if told else case
    return {"case": name, "told": told, "steps": 76, "figures": figures, "copies": copies}


BASE = row(PCA, (0.1, 1.4), (0.1, 0.6))


@pytest.mark.parametrize(
    ("kid", "coverage", "lost"),
    [
        ((1.5, 3.0), (0.0, 0.05), True),
        ((1.3, 3.0), (0.0, 0.05), False),  # KID overlaps
        ((1.5, 3.0), (0.0, 0.15), False),  # coverage overlaps
        ((1.4, 3.0), (0.0, 0.05), False),  # KID touches
        ((1.5, 3.0), (0.0, 0.1), False),  # coverage touches
        ((-0.5, 0.0), (0.7, 0.9), False),  # better on both
        ((-0.5, 0.0), (0.0, 0.05), False),
    ],
)
def test_losing_takes_both_intervals(kid: Ends, coverage: Ends, lost: bool) -> None:
    """A family loses only where KID and coverage both lie wholly on the worse side: ties are ties.

    The reason names the four ends that decided it, and the steps of the training.
    """
    why = why_lost(row("vae", kid, coverage), BASE)
    assert bool(why) is lost
    if lost:
        assert all(word in why for word in ("1.50", "1.40", "0.05", "0.10", "76 steps"))


def test_failing_is_losing() -> None:
    """A family that could not be trained counts as lost, with what it said."""
    failed = {"case": "vae", "told": "", "failed": "memory ran out"}
    assert why_lost(failed, BASE) == "failed: memory ran out"


def test_reach_counts_families_against_their_own_baseline() -> None:
    """A told family is held against PCA of its own task, and baselines are no families."""
    poor: tuple[Ends, Ends] = (2.0, 3.0), (0.0, 0.05)
    rows = [
        BASE,
        row(COPIES, *poor, copies="BLOCK"),
        row("vae", *poor),
        row(PCA, (5.0, 6.0), (0.0, 0.1), "CT to dose"),
        row("pix2pix", *poor, "CT to dose"),
        row("cycle-gan", (7.0, 8.0), (-0.1, -0.05), "CT to dose"),
    ]
    lost, condemned = reached(rows).values()
    assert lost["value"] == 2
    assert lost["holds"]
    assert "vae: KID from 2.00" in lost["unit"]
    assert "cycle-gan, CT to dose: KID" in lost["unit"]
    assert "pix2pix" not in lost["unit"]
    assert COPIES not in lost["unit"]
    assert condemned["holds"]


def test_reach_misses_with_four_losers_or_copies_that_pass() -> None:
    """Three families may lose and a fourth may not; copies that the audit lets pass are a miss."""
    poor = [row(name, (2.0, 3.0), (0.0, 0.05)) for name in ("a", "b", "c", "d")]
    passed = row(COPIES, (0.0, 0.1), (0.8, 1.0))
    for n, holds in ((0, True), (3, True), (4, False)):
        lost, condemned = reached([BASE, passed, *poor[:n]]).values()
        assert (lost["value"], lost["holds"]) == (n, holds)
        assert not condemned["holds"]
