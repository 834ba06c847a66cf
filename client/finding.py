"""What a check says about one file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Verdict(StrEnum):
    """PASS trains, WARN trains but should be looked at, FAIL never trains."""

    PASS = "PASS"  # noqa: S105, a verdict and no password
    WARN = "WARN"
    FAIL = "FAIL"


def shown(path: Path, folder: Path) -> str:
    """Returns a path relative to the cohort that any terminal can print."""
    text = path.relative_to(folder).as_posix()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Finding:
    """One file or folder, judged; `path` is relative to the cohort."""

    path: str
    verdict: Verdict
    reason: str = ""
    remedy: str = ""
