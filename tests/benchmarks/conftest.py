"""The benchmarks are scripts beside the package: their parts are found in their folder."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data are to be found."""
    from parts import cohort

    monkeypatch.delenv("VOXFED_DATA", raising=False)
    monkeypatch.setattr(cohort, "ROOT", tmp_path / "checkout")
