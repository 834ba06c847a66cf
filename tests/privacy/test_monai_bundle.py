"""Whoever works with MONAI opens a release with MONAI's own tools, and can still verify it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser
from voxfed.models.registry import build as build_family
from voxfed.models.state import tensors_of, to_bytes
from voxfed.privacy.bundle import add_decision
from voxfed.privacy.monai_bundle import export
from voxfed.privacy.verification import verify
from voxfed.study.errors import Refusal, UsageError, VerificationError


@pytest.fixture
def released(scene: Any, plan: Any) -> tuple[Any, Path]:
    """A release of a real VAE that an officer approved."""
    people = scene(weights=to_bytes(tensors_of(build_family(plan(side=16)))))
    bundle = people.bundle(plan(side=16))
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    return people, bundle


def test_monai_reads_the_configurations_and_builds_the_released_model(
    released: tuple[Any, Path], plan: Any, tmp_path: Path
) -> None:
    """MONAI's parser gives the very weights; the release in it verifies as before."""
    people, bundle = released
    folder = export(bundle, tmp_path / "monai")
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    parser["bundle_root"] = str(folder)
    network = parser.get_parsed_content("network_def")
    expected = tensors_of(build_family(plan(side=16)))
    assert all(torch.equal(x, expected[name]) for name, x in tensors_of(network).items())
    outputs = parser["_meta_"]["network_data_format"]["outputs"]["pred"]
    drawn = network.sample(1, generator=torch.Generator().manual_seed(0))
    assert list(drawn.shape) == [1, outputs["num_channels"], *outputs["spatial_shape"]]
    assert drawn.abs().max() <= outputs["value_range"][1]
    assert verify(folder / "models", **people.cards)
    assert "invented" in (folder / "docs" / "README.md").read_text()


def test_monai_runs_it(released: tuple[Any, Path], tmp_path: Path) -> None:
    """What `python -m monai.bundle run` calls; its words go through the package fire."""
    folder = export(released[1], tmp_path / "monai")
    call = "monai.bundle.run(config_file='configs/inference.json', count=2)"
    done = subprocess.run(
        [sys.executable, "-c", f"import monai.bundle; {call}"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    volumes = sorted((folder / "synthetic").glob("*.nii.gz"))
    assert [nib.load(path).shape for path in volumes] == [(16, 16, 16)] * 2


def test_a_blocked_a_changed_and_a_second_export_are_refused(
    released: tuple[Any, Path], scene: Any, plan: Any, copies: Any, tmp_path: Path
) -> None:
    people, bundle = released
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(bundle, tmp_path / "there")
    (bundle / "model.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match=r"model\.json was changed"):
        export(bundle, tmp_path / "monai")
    bundle.rename(tmp_path / "old")
    blocked = scene(weights=people.weights, copies=copies(10, 0)).bundle(plan(side=16))
    with pytest.raises(Refusal, match="blocked this release"):
        export(blocked, tmp_path / "monai")
    assert (
        sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "m"))) == []
    )
