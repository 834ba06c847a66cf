"""The demonstration: what it cannot show is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxfed.demo.plans import FAMILY
from voxfed.demo.tour import run_demo
from voxfed.models.registry import names
from voxfed.study.errors import UsageError


@pytest.mark.parametrize("family", [*(name for name in names() if name != FAMILY), "gan", ""])
def test_another_family_is_refused_and_nothing_is_made(tmp_path: Path, family: str) -> None:
    """Clip norm and steps were tried out for one family: with others it would show nothing."""
    folder = tmp_path / "demo"
    with pytest.raises(UsageError, match=f"expected {FAMILY}") as caught:
        run_demo(folder, data=None, family=family, private=True)
    assert "examples/" in caught.value.hint
    assert not folder.exists()
