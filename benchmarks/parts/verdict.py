"""What the benchmark of families asks of its rows: who loses to the baseline, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PCA, COPIES = "probabilistic PCA", "noisy copies"
LOSERS = 3


def case_of(name: str, told: str) -> str:
    """Return what the row of a family or a baseline is called, e.g. "pix2pix, CT to dose"."""
    return f"{name}, {told}" if told else name


def why_lost(row: Mapping[str, Any], pca: Mapping[str, Any]) -> str:
    """Return why a family is worse than PCA on both KID and coverage; nothing where it is not.

    Worse is an interval that lies wholly on the worse side of PCA's: a tie is a tie. A family that
    failed has lost.
    """
    if "failed" in row:
        return f"failed: {row['failed']}"
    ours, theirs = row["figures"], pca["figures"]
    kid, other_kid = ours["KID"]["low"], theirs["KID"]["high"]
    coverage, other_coverage = ours["coverage"]["high"], theirs["coverage"]["low"]
    if kid <= other_kid or coverage >= other_coverage:
        return ""
    return (
        f"KID from {kid:.2f} where PCA's ends at {other_kid:.2f}, coverage up to {coverage:.2f} "
        f"where PCA's begins at {other_coverage:.2f}, after {row['steps']:.0f} steps"
    )


def reached(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached; each family is held against PCA of the volumes it draws."""
    by_case = {row["case"]: row for row in rows}
    baselines = {case_of(name, row["told"]) for row in rows for name in (PCA, COPIES)}
    lost = {
        row["case"]: why
        for row in rows
        if row["case"] not in baselines
        and (why := why_lost(row, by_case[case_of(PCA, row["told"])]))
    }
    condemned = by_case[COPIES]["copies"] == "BLOCK"
    names = "; ".join(f"{case}: {why}" for case, why in lost.items())
    return {
        f"families that lose to {PCA}": {
            "value": len(lost),
            "limit": LOSERS,
            "unit": f"families, at most ({names or 'none'})",
            "holds": len(lost) <= LOSERS,
        },
        f"{COPIES} condemned by the audit": {
            "value": int(condemned),
            "limit": 1,
            "unit": "1 if so",
            "holds": condemned,
        },
    }
