"""Scans hand the trainer each volume with exactly what was frozen and lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from families import tiny_plan
from voxfed.client import scans as module
from voxfed.client.alignment import align, preprocess_beside
from voxfed.client.cohort import read_cohort
from voxfed.client.conditions import asked
from voxfed.client.manifest import freeze
from voxfed.client.scans import Scans
from voxfed.client.volumes import preprocess
from voxfed.models.conditioning import Conditioning
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import CohortChanged, VolumeError
from voxfed.study.plan import VolumeSettings

SETTINGS = VolumeSettings(shape=(8, 9, 10), spacing=(16.0, 14.0, 12.0), modality="phantom")
CONDITIONS = {
    "class": ConditionSettings(kind="class", column="sex", values=("F", "M", "O")),
    "attributes": ConditionSettings(
        kind="attributes", columns=("age", "kg"), ranges=((0.0, 100.0), (0.0, 200.0))
    ),
    "mask": ConditionSettings(kind="mask", suffix="seg", structures=4),
    "source": ConditionSettings(kind="source", suffix="t2"),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms with a mask, a darker source on a coarser grid, sex, age and weight."""
    folder = tmp_path_factory.mktemp("scans") / "cohort"
    write_cohort(folder, 6, HOSPITALS[0], seed=2)
    rows = ["participant_id\tsex\tage\tkg"]
    for n, patient in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        rows.append(f"{patient.name}\t{'FMO'[n % 3]}\t{10 * n}\t{50 + n}")
        for path in sorted(patient.rglob("*_phantom.nii.gz")):
            image = nib.load(path)
            seen = image.get_fdata()
            coarse = image.affine @ np.diag([2, 2, 2, 1])
            source = nib.Nifti1Image((seen.max() - seen)[::2, ::2, ::2].astype(np.float32), coarse)
            nib.save(source, path.with_name(path.name.replace("phantom", "t2")))
            levels = np.clip(4 * seen / seen.max(), 0, 3).astype(np.uint8)
            seg = path.with_name(path.name.replace("phantom", "seg"))
            nib.save(nib.Nifti1Image(levels, image.affine), seg)
    (folder / "participants.tsv").write_text("\n".join(rows))
    return folder


def scans_of(cohort: Path, cache: Path, kind: str) -> tuple[Scans, Any]:
    told = CONDITIONS.get(kind)
    frozen = freeze(read_cohort(cohort, "phantom", told), "phantom", 1.0, condition=told)
    device = torch.device("cpu")
    return Scans(frozen, cohort, cache, SETTINGS, device, told), frozen


@pytest.mark.parametrize("kind", ["none", *CONDITIONS])
def test_a_batch_holds_the_volume_and_its_condition(
    cohort: Path, tmp_path: Path, kind: str
) -> None:
    """Of the very kind, type and shape that families take, read twice the same."""
    scans, frozen = scans_of(cohort, tmp_path, kind)
    told = CONDITIONS.get(kind)
    classes, attributes = (told.classes, told.attributes) if told else (2, 1)
    takes = Conditioning(kind, classes, attributes, SETTINGS.shape)  # type: ignore[arg-type]
    for n, patient in enumerate(sorted(frozen.patients)):
        batches = scans.batches(patient)
        assert len(batches) == len(frozen.patients[patient]) >= 1
        for batch, again, file in zip(
            batches, scans.batches(patient), frozen.patients[patient], strict=True
        ):
            path = cohort / file.path
            if file.beside is None:
                exact = preprocess(path, SETTINGS)
            else:
                exact = preprocess_beside(path, cohort / file.beside.path, SETTINGS, told)
            np.testing.assert_array_equal(batch.volumes[0].numpy(), exact)
            takes.told(batch.condition, 1)  # refuses what does not fit
            given = batch.condition
            if kind == "class":
                assert torch.equal(given.label, torch.tensor([n % 3]))
            elif kind == "attributes":
                scaled = [[2 * n / 10 - 1, 2 * (50 + n) / 200 - 1]]
                torch.testing.assert_close(given.attributes, torch.tensor(scaled))
            elif told is not None:
                beside = align(cohort / file.beside.path, SETTINGS, told)
                value = getattr(given, kind)
                np.testing.assert_array_equal(value[0].numpy(), beside)
                assert len(torch.unique(value)) > 2
                assert torch.equal(value, getattr(again.condition, kind))
            assert torch.equal(batch.volumes, again.volumes)


@pytest.mark.parametrize("kind", ["mask", "source"])
def test_a_sample_is_told_what_training_was_told(cohort: Path, tmp_path: Path, kind: str) -> None:
    """A mask or source given without its image lies where training had it, to the bit.

    The mask is emptied in one half, so that the middle of what it shows is not the body's.
    """
    folder = shutil.copytree(cohort, tmp_path / "cohort")
    for path in folder.rglob("*_seg.nii.gz"):
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        labels[: labels.shape[0] // 2] = 0
        nib.save(nib.Nifti1Image(labels, image.affine), path)
    scans, frozen = scans_of(folder, tmp_path / "cache", kind)
    plan = tiny_plan("diffusion").model_copy(
        update={"volumes": SETTINGS, "condition": CONDITIONS[kind]}
    )
    away = tmp_path / "away"
    away.mkdir()
    moved = 0
    for patient, files in frozen.patients.items():
        for file, batch in zip(files, scans.batches(patient), strict=True):
            alone = shutil.copy(folder / file.beside.path, away / "given.nii.gz")
            (row,) = asked(plan, str(alone))
            assert torch.equal(getattr(row, kind), getattr(batch.condition, kind))
            plain = preprocess(folder / file.path, SETTINGS)
            moved += not np.array_equal(plain, batch.volumes[0].numpy())
    assert moved


def test_an_empty_mask_trains_and_samples_alike(cohort: Path, tmp_path: Path) -> None:
    """A patient without a lesion is cropped round the middle of the mask's field of view."""
    folder = shutil.copytree(cohort, tmp_path / "cohort")
    for path in folder.rglob("*_seg.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    scans, frozen = scans_of(folder, tmp_path / "cache", "mask")
    plan = tiny_plan("diffusion").model_copy(
        update={"volumes": SETTINGS, "condition": CONDITIONS["mask"]}
    )
    patient = min(frozen.patients)
    file, batch = frozen.patients[patient][0], scans.batches(patient)[0]
    (row,) = asked(plan, str(folder / file.beside.path))
    assert torch.equal(row.mask, batch.condition.mask)
    assert not row.mask.any()
    assert batch.volumes.max() > 0


def test_the_table_is_of_volumes_alone(cohort: Path, tmp_path: Path) -> None:
    """What is compared with samples are images, cropped as the samples are."""
    scans, frozen = scans_of(cohort, tmp_path, "mask")
    names = sorted(frozen.patients)[:2]
    table = scans.table(names)
    for name in names:
        for batch, volume in zip(scans.batches(name), table[name], strict=True):
            np.testing.assert_array_equal(batch.volumes[0].numpy(), volume)
    assert list(table) == names
    assert {v.shape for volumes in table.values() for v in volumes} == {(1, *SETTINGS.shape)}


@pytest.mark.parametrize(("kind", "bytes_each"), [("none", 4), ("mask", 4 + 2), ("source", 4 + 4)])
def test_memory_counts_what_lies_beside(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bytes_each: int
) -> None:
    """Volumes and masks are kept up to one limit together; what is over it is read again."""
    scans, frozen = scans_of(cohort, tmp_path, kind)
    voxels = int(np.prod(SETTINGS.shape))
    names = sorted(frozen.patients)
    images = len(frozen.patients[names[0]])
    monkeypatch.setattr(module, "MEMORY_BYTES", voxels * bytes_each * images)
    scans.batches(names[0])
    first = scans.batches(names[0])
    scans.batches(names[1])
    for entry in tmp_path.rglob("*.npy"):
        entry.unlink()
    for path in cohort.rglob("*.nii.gz"):
        path.rename(path.with_suffix(".away"))
    try:
        again = scans.batches(names[0])
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one.volumes, other.volumes)
        with pytest.raises(VolumeError, match="cannot be read"):
            scans.batches(names[1])
    finally:
        for path in cohort.rglob("*.away"):
            path.rename(path.with_suffix(".gz"))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_manifest_without_conditions_serves_no_plan_with_them(
    cohort: Path, tmp_path: Path, kind: str
) -> None:
    """A round stops, with a refusal, where what was approved does not say what a volume is told."""
    frozen = freeze(read_cohort(cohort, "phantom"), "phantom", 1.0)
    device = torch.device("cpu")
    scans = Scans(frozen, cohort, tmp_path, SETTINGS, device, CONDITIONS[kind])
    with pytest.raises(CohortChanged, match="the approved cohort has no"):
        scans.batches(min(frozen.patients))
