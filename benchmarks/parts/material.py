"""What the benchmark of families is made of: volumes, plans, figures, training in a process."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
import tomllib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tomli_w
import torch
from voxfed.client.cohort import read_cohort
from voxfed.client.volumes import preprocess
from voxfed.models.base import Batch, Family
from voxfed.models.fitting import fit
from voxfed.models.quality.contrast import draw_phantoms, train_encoder
from voxfed.models.quality.evaluation import DISTRIBUTION
from voxfed.models.quality.features import Extractor
from voxfed.models.quality.intervals import Figure, compare, diversity
from voxfed.models.registry import build
from voxfed.models.state import tensors_of, to_bytes
from voxfed.models.trained import stage_parameters
from voxfed.study.plan import StudyPlan, VolumeSettings

Volumes = npt.NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[2]
PATIENTS, TEST = 72, 24
FIELD = 256.0  # mm along each axis
WINDOW = (0.0, 1500.0)  # these CTs are stored as about HU + 1000
BATCH = 8
RATES = {"vae": 3e-3, "wgan-gp": 2e-4, "alpha-wgan-gp": 2e-4, "ha-gan": 2e-4, "stylegan2": 1e-3}
RATE = 1e-3
SHOWN = "KID", "coverage", "precision", "recall", "density", "FID"
"""Of the figures between two sets, in the table's order."""
PRELOADED = ["torch", "monai.networks.nets", "voxfed.client.training", "voxfed.models.registry"]


class Cohort(NamedTuple):
    """The volumes of all patients, (72, 1, D, H, W) in [-1, 1], one each, and where from."""

    volumes: Volumes
    source: str

    def fold(self, number: int) -> tuple[Volumes, Volumes]:
        """Return 48 patients to train and 24 to test; the three folds' tests are disjoint."""
        order = np.random.default_rng(0).permutation(len(self.volumes))
        tested = order[number * TEST : (number + 1) * TEST]
        return self.volumes[np.setdiff1d(order, tested)], self.volumes[tested]


def read_volumes(side: int) -> Cohort:
    """Return 72 CT volumes through the package's own preprocessing, or phantoms where none are."""
    for folder in (
        Path(os.environ.get("VOXFED_DATA", "/nonexistent")),
        ROOT.parent / "shared/data",
    ):
        if (folder / "openkbp_ct").is_dir():
            settings = volume_settings(side)
            patients = read_cohort(folder / "openkbp_ct", "ct").patients.values()
            volumes = [preprocess(owned[0].path, settings) for owned in patients]
            return Cohort(np.stack(volumes)[:PATIENTS], "openkbp_ct")
    phantoms = draw_phantoms(PATIENTS, (side,) * 3, np.random.default_rng(1))
    return Cohort(phantoms.numpy(), "phantoms, for want of openkbp_ct")


def volume_settings(side: int) -> VolumeSettings:
    """Return the grid of a field of 256 mm and the window of these CTs."""
    return VolumeSettings(
        shape=(side,) * 3,
        spacing=(FIELD / side,) * 3,
        modality="ct",
        intensity="window",
        window=WINDOW,
    )


def plan_of(family: str, side: int, **changes: Any) -> StudyPlan:
    """Return the study in examples/ of a family on another grid, with changes to its tables."""
    name = family.replace("-", "_").replace(".", "")
    table = tomllib.loads((ROOT / "examples" / f"{name}_head_ct.toml").read_text())
    table["volumes"] = volume_settings(side).model_dump(mode="json")
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    return StudyPlan.from_text(tomli_w.dumps(table).encode())


def in_the_open(family: str) -> dict[str, Any]:
    """Return the changes to a plan with which a family is trained without privacy."""
    rate = RATES.get(family, RATE)
    return {
        "trained": "all",
        "optimiser": {"learning_rate": rate},
        "privacy": {"enabled": False},
    }


def make_extractor(side: int, steps: int) -> Extractor:
    """Return the encoder whose features all figures use, trained by contrast on phantoms."""
    generator = torch.Generator().manual_seed(0)
    return train_encoder((side,) * 3, steps=steps, generator=generator)


def judge(extractor: Extractor, train: Volumes, test: Volumes, samples: Volumes) -> list[Figure]:
    """Return the figures of samples against the test patients, beside those of train patients."""
    rows = [extractor.features(torch.from_numpy(each)) for each in (train, test, samples)]
    known = {figure[0]: figure for figure in DISTRIBUTION}
    generator = np.random.default_rng(0)
    figures = [
        compare(
            name,
            statistic,
            list(rows[1][:, None]),
            rows[2],
            list(rows[0][:, None]),
            better=better,
            limits=limits,
            generator=generator,
        )
        for name, statistic, better, limits in (known[shown] for shown in SHOWN)
    ]
    figures.append(diversity(list(test[:, None]), samples, generator=generator))
    return [figure for figure in figures if figure is not None]


class Job(NamedTuple):
    """A family to train on volumes for so long, and samples to draw."""

    family: str
    volumes: Volumes
    seconds: float
    samples: int


def run_alone(job: Job) -> tuple[Volumes, dict[str, float]]:
    """Train a family in a process of its own; return its samples and what it took."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(train, job).result()


def train(job: Job) -> tuple[Volumes, dict[str, float]]:
    """Train a family's stages, each for its share of the time, and draw samples.

    Memory is the peak of training: of the GPU where there is one, else what the process grew by.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = reset_peak()
    plan = plan_of(job.family, job.volumes.shape[-1], **in_the_open(job.family))
    family = build(plan).to(device)
    public = Batch(torch.from_numpy(job.volumes).to(device))
    steps: list[float] = []
    for stage in family.stages:
        ends = [time.perf_counter()]
        fit(
            family,
            stage,
            public,
            steps=1_000_000,
            batch=BATCH,
            learning_rate=plan.optimiser.learning_rate,
            generator=torch.Generator().manual_seed(0),
            seconds=job.seconds / len(family.stages),
            progress=lambda *_, ends=ends: ends.append(time.perf_counter()),
        )
        steps += np.diff(ends).tolist()
    peak = peak_mib(before)
    began = time.perf_counter()
    samples = draw(family, job.samples, device)
    return samples, {
        "steps": len(steps),
        "step_least_s": min(steps),
        "step_median_s": statistics.median(steps),
        "peak_mib": peak,
        "sample_s": (time.perf_counter() - began) / job.samples,
        "round_mib": bytes_per_round(family) / 2**20,
        "parameters": sum(p.numel() for p in family.parameters()),
    }


def draw(family: Family, n: int, device: torch.device) -> Volumes:
    """Return n samples, a batch at a time."""
    family.eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        parts = [
            family.sample(min(BATCH, n - first), generator=generator).cpu().numpy()
            for first in range(0, n, BATCH)
        ]
    return np.concatenate(parts)


def bytes_per_round(family: Family) -> int:
    """Return the weights that a site gets and the update that it sends, of the largest stage."""
    tensors = tensors_of(family)
    updates = [
        to_bytes({name: tensors[name] for name in stage_parameters(family, stage)})
        for stage in family.stages
    ]
    return len(to_bytes(tensors)) + max(map(len, updates))


def reset_peak() -> float:
    """Set the process' peak of memory back and return what it holds now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, back to VmRSS
    return _resident("VmRSS")


def peak_mib(before: float) -> float:
    """Return the peak since `reset_peak`: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def surroundings(cohort: Cohort, extractor: Extractor) -> dict[str, Any]:
    """Return what every document says of device, versions, data and extractor."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("voxfed", "torch", "monai")},
        "data": f"{cohort.source}, {len(cohort.volumes)} patients, {cohort.volumes.shape[2:]}",
        "extractor": extractor.name,
    }


def mean_figures(folds: list[list[Figure]]) -> dict[str, Mapping[str, Any]]:
    """Return each figure's mean over folds, with the mean of its interval's ends.

    Folds train on many of the same patients, so that the interval is not narrowed by them.
    """
    found = {}
    for figures in zip(*folds, strict=True):
        mean = {
            key: statistics.mean(getattr(figure, key) for figure in figures)
            for key in ("value", "low", "high", "real")
        }
        found[figures[0].name] = {**mean, "n": figures[0].n, "better": figures[0].better}
    return found
