"""Curve: the picture is whole, of the format asked for, and shows the numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from voxfed.client.curve import draw_curves
from voxfed.study.errors import DiskError, UsageError


def document(studies: int = 2) -> dict[str, Any]:
    """Two studies whose rounds take turns."""
    curves = [
        [
            {
                "row": studies * n + s + 3,
                "stage": "autoencoder",
                "round": n + 1,
                "epsilon": 0.7 * (n + 1) ** 0.5 * (s + 1),
                "lifetime": 1.1 * (studies * n + s + 1) ** 0.6,
            }
            for n in range(12)
        ]
        for s in range(studies)
    ]
    return {
        "studies": [
            {"study": f"study-{s}", "bounded": True, "reserved": 3.0 * (s + 1), "curve": curve}
            for s, curve in enumerate(curves)
        ],
        "lifetime": {"limit": 10.0, "spent": 0.0, "delta": 1e-5, "bounded": True},
    }


def test_a_picture(tmp_path: Path) -> None:
    """A PNG with curves: more than one colour, and more ink than an empty ledger's."""
    draw_curves(document(), tmp_path / "full.png")
    draw_curves(document(studies=0), tmp_path / "empty.png")
    full, empty = (imread(tmp_path / f"{name}.png")[..., :3] for name in ("full", "empty"))
    assert full.shape == empty.shape
    assert (full < 1).any(axis=-1).sum() > 1.2 * (empty < 1).any(axis=-1).sum()
    assert (np.ptp(full, axis=-1) > 0.3).sum() > 500


def test_a_drawing_names_its_studies(tmp_path: Path) -> None:
    """An SVG replaces the one before; a study without privacy is marked."""
    path = tmp_path / "curve.svg"
    path.write_text("old")
    draw_curves(document(), path)
    bounded = path.read_text()
    assert "<svg" in bounded
    found = document()
    found["studies"][1]["bounded"] = found["lifetime"]["bounded"] = False
    draw_curves(found, path)
    assert "NO BOUND" in path.read_text()
    assert "NO BOUND" not in bounded
    assert os.listdir(tmp_path) == ["curve.svg"]


@pytest.mark.parametrize("name", ["curve.jpg", "curve", "curve.pdf", "png"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    """Before anything is drawn, and with the endings that work."""
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        draw_curves(document(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the folder's place is one clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        draw_curves(document(), tmp_path / "file" / "curve.png")
