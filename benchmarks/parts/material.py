"""What the benchmark of families is made of: plans, figures, training in a process."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import time
import tomllib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w
import torch
from parts.cohort import ROOT, Cohort, Told, Volumes, task_of
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family
from voxfed.models.fitting import fit
from voxfed.models.quality.contrast import train_encoder
from voxfed.models.quality.evaluation import DISTRIBUTION
from voxfed.models.quality.features import Extractor
from voxfed.models.quality.intervals import Figure, compare, diversity
from voxfed.models.registry import build
from voxfed.models.state import tensors_of, to_bytes
from voxfed.models.trained import stage_parameters
from voxfed.study.plan import StudyPlan

BATCH = 8
EXAMPLES = {
    "conditional-vae": "conditional_vae_brain_t1",
    "pix2pix": "pix2pix_ct_to_dose",
    "cycle-gan": "cycle_gan_t1_to_flair",
}
"""Studies in examples/ of families that are not trained on CT alone."""
GANS = "wgan-gp", "alpha-wgan-gp", "ha-gan", "pix2pix", "cycle-gan"
RATES = {"vae": 3e-3, **dict.fromkeys(GANS, 2e-4)}
RATE = 1e-3
SHOWN = "KID", "coverage", "precision", "recall", "density", "FID"
"""Of the figures between two sets, in the table's order."""
PRELOADED = ["torch", "monai.networks.nets", "voxfed.client.training", "voxfed.models.registry"]


def plan_of(family: str, side: int, **changes: Any) -> StudyPlan:
    """Return the study in examples/ of a family at its task here, with changes to its tables."""
    name = EXAMPLES.get(family, f"{family.replace('-', '_').replace('.', '')}_head_ct")
    table = tomllib.loads((ROOT / "examples" / f"{name}.toml").read_text())
    task = task_of(family)
    table["volumes"] = task.grid(side).model_dump(mode="json")
    if task.condition is not None:
        table["condition"] = dict(task.condition)
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
    """A family to train on volumes for so long, and samples to draw.

    A family that is told something is told it of each volume, and asked it for each sample.
    """

    family: str
    volumes: Volumes
    seconds: float
    samples: int
    told: Told = None
    asked: Told = None


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
    told, asked = (
        task_of(job.family).told(each).mapped(lambda part: part.to(device))
        for each in (job.told, job.asked)
    )
    public = Batch(torch.from_numpy(job.volumes).to(device), told)
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
    samples = draw(family, job.samples, device, asked)
    return samples, {
        "steps": len(steps),
        "step_least_s": min(steps),
        "step_median_s": statistics.median(steps),
        "peak_mib": peak,
        "sample_s": (time.perf_counter() - began) / job.samples,
        "round_mib": bytes_per_round(family) / 2**20,
        "parameters": sum(p.numel() for p in family.parameters()),
    }


def draw(
    family: Family, n: int, device: torch.device, condition: Condition = NO_CONDITION
) -> Volumes:
    """Return n samples, a batch at a time, each of its row of the condition."""
    family.eval()
    generator = torch.Generator(device).manual_seed(0)
    parts = []
    for first in range(0, n, BATCH):
        rows = slice(first, min(first + BATCH, n))
        asked = condition.mapped(itemgetter(rows))
        with torch.no_grad():
            made = family.sample(rows.stop - first, condition=asked, generator=generator)
        parts.append(made.cpu().numpy())
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
