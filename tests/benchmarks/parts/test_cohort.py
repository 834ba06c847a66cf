"""The patients of the benchmark of families, with and without the data."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from parts.cohort import CT_TO_DOSE, ORGANS_TO_CT, TASKS, Cohort, Task, read_volumes


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title or "CT")
def test_phantoms_stand_in(task: Task, phantoms: None) -> None:
    """Without data every task is served by phantoms, told something of the kind it asks for."""
    found = read_volumes(16, task)
    assert found.volumes.shape == (72, 1, 16, 16, 16)
    assert "phantoms" in found.source
    told = task.told(found.beside)
    assert (told.mask is not None) == (task == ORGANS_TO_CT)
    assert (told.source is not None) == (task == CT_TO_DOSE)
    if told.mask is not None:
        assert told.mask.min() == 0
        assert told.mask.max() == 7
    if told.source is not None:
        assert np.array_equal(told.source.numpy(), -found.volumes)


def test_told_goes_with_its_volume() -> None:
    """A fold tells each patient's own source, and the tests of the three folds are disjoint."""
    volumes = np.arange(72, dtype=np.float32).reshape(72, 1, 1, 1, 1)
    all_patients = Cohort(volumes, "numbers", volumes + 100)
    tested = []
    for number in range(3):
        for of, beside in zip(all_patients.fold(number), all_patients.told(number), strict=True):
            assert beside is not None
            assert np.array_equal(of + 100, beside)
        train, test = all_patients.fold(number)
        assert not set(train.ravel()) & set(test.ravel())
        tested += test.ravel().tolist()
    assert sorted(tested) == list(range(72))


def test_the_data_are_read_in_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target and what is told of it are the patient's own, on one grid, each by its own window.

    Each dose is a fixed multiple of the CT here, so that both must come out alike.
    """
    generator = np.random.default_rng(0)
    for patient in ("a", "b"):
        folder = tmp_path / "openkbp_ct" / patient
        folder.mkdir(parents=True)
        body = np.zeros((20, 20, 20), dtype=np.float32)
        body[4:15, 5:16, 3:17] = generator.uniform(300, 1200, (11, 11, 14))
        for modality, scale in (("ct", 1.0), ("dose", 80 / 1500)):
            image = nib.nifti1.Nifti1Image(body * scale, np.diag([16.0, 16.0, 16.0, 1.0]))
            nib.loadsave.save(image, folder / f"{patient}_{modality}.nii.gz")
    monkeypatch.setenv("VOXFED_DATA", str(tmp_path))
    found = read_volumes(16, CT_TO_DOSE)
    assert found.source == "openkbp_ct"
    assert found.beside is not None
    assert found.volumes.shape == (2, 1, 16, 16, 16)
    assert np.allclose(found.volumes, found.beside, atol=1e-5)  # float32 on disk
    assert not np.allclose(found.volumes[0], found.volumes[1], atol=0.1)
