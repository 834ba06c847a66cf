"""What many tests share: real volumes where they are, generated ones where they are not."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from voxfed.models.phantoms import HOSPITALS, write_cohort

sys.path.insert(0, str(Path(__file__).parent))  # for families.py and streams.py
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
BESIDE = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _steady() -> None:
    """What a test draws from torch's global state is the same in every run and in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `openkbp_ct/<patient>/<patient>_{ct,dose}.nii.gz` and `msd_hippocampus/images`.

    $VOXFED_DATA, else shared/data beside the checkout, else phantoms in the same layout.
    """
    for folder in (Path(os.environ.get("VOXFED_DATA", "/nonexistent")), BESIDE):
        if (folder / "openkbp_ct").is_dir() and (folder / "msd_hippocampus").is_dir():
            return folder
    folder = tmp_path_factory.mktemp("data")
    write_cohort(folder / "generated", 66, HOSPITALS[0], seed=1)
    images = folder / "msd_hippocampus" / "images"
    images.mkdir(parents=True)
    for number, patient in enumerate(sorted((folder / "generated").iterdir()), start=1):
        source = min(patient.iterdir())
        name = f"okbp-{number:03d}"
        (folder / "openkbp_ct" / name).mkdir(parents=True)
        for modality in ("ct", "dose"):
            shutil.copy(source, folder / "openkbp_ct" / name / f"{name}_{modality}.nii.gz")
        shutil.copy(source, images / f"hippocampus_{number:03d}.nii.gz")
    shutil.rmtree(folder / "generated")
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's path may hold 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="vx-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
