"""A release as a folder that MONAI's own bundle tools open.

The release bundle lies in it untouched, so that its signatures can still be checked; the two
configurations of the MONAI bundle specification stand beside it. They need voxfed itself: the model
is built by this package from the plan, never by what a file says.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..models.base import Family
from ..study.files import new_folder, write
from ..study.plan import StudyPlan
from .bundle import CARD, bundle_digest
from .model_card import HALLUCINATION, INTENDED_USE
from .samples import draw_samples, open_model

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
MODELS = "models"
HERE = "voxfed.privacy.monai_bundle"
INFERENCE = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/synthetic'",
    "count": 4,
    "seed": 0,
    "release": f"$@bundle_root + '/{MODELS}'",
    "network_def": {"_target_": f"{HERE}.network", "release": "@release"},
    "drawn": {
        "_target_": f"{HERE}.draw",
        "release": "@release",
        "n": "@count",
        "folder": "@output_dir",
        "seed": "@seed",
    },
    "run": ["$@drawn"],
}


def network(release: str) -> Family:
    """Return the model of a release; what `network_def` of the configuration calls."""
    return open_model(Path(release))[1]


def draw(release: str, n: int, folder: str, seed: int) -> list[Path]:
    """Write `n` synthetic volumes as NIfTI; what `run` of the configuration calls."""
    return draw_samples(Path(release), n, Path(folder), seed=seed)


def export(bundle: Path, folder: Path) -> Path:
    """Writes a release as a MONAI bundle, whole or not at all, and returns its folder.

    Raises:
        VerificationError: a file of the release was changed, or it was revoked.
        Refusal: its audit blocked it.
        UsageError: the folder exists.
        DiskError: it cannot be written.
    """
    plan, _ = open_model(bundle)
    with new_folder(folder) as draft:
        shutil.copytree(bundle, draft / MODELS)
        documents = {"metadata": _metadata(plan, bundle_digest(bundle)), "inference": INFERENCE}
        for name, document in documents.items():
            text = json.dumps(document, indent=4).encode() + b"\n"
            write(draft / "configs" / f"{name}.json", text)
        write(draft / "docs" / "README.md", (bundle / CARD).read_bytes())
    return folder


def _metadata(plan: StudyPlan, digest: str) -> dict[str, Any]:
    """Returns what the MONAI bundle specification asks to be known of a model."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"release {digest}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"voxfed": __version__, "nibabel": version("nibabel")},
        "name": plan.name,
        "task": f"synthesis of 3D volumes ({plan.family})",
        "description": HALLUCINATION.replace("**", ""),
        "authors": f"the hospitals of the study {plan.name}",
        "copyright": "see docs/README.md",
        "intended_use": INTENDED_USE,
        "network_data_format": {
            "inputs": {},
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": plan.volumes.modality or "n/a",
                    "num_channels": 1,
                    "spatial_shape": list(plan.volumes.shape),
                    "dtype": "float32",
                    "value_range": [-1, 1],
                    "is_patch_data": False,
                    "channel_def": {"0": "image"},
                }
            },
        },
    }
