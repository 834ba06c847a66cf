"""What training and sampling take of memory, beside what `voxfed study validate` works out.

Each case is a process of its own: a private round of one step, or one sampled volume, of a family
at its default settings and a side in voxels; ten patients, all drawn. On a CPU the peak is that of
the whole process, on a GPU that of its tensors.

    python benchmarks/memory.py [--quick] [--sides SIDE ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import voxfed.client.worker  # noqa: F401, what a site's process holds beside the model
from voxfed.client.training import Trainer, prepare
from voxfed.models.base import Batch, rows_of
from voxfed.models.estimate import Sketch, bytes_of
from voxfed.models.registry import schedule_of
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.inspection import example
from voxfed.privacy.terms import terms_with
from voxfed.server.needs import PROGRAM, needs
from voxfed.study.plan import StudyPlan

FACTOR = 1.5
"""Most of the estimate over the measure, or of the measure over the estimate."""

SETTINGS: dict[str, PerformanceSettings] = {
    "plain": PerformanceSettings(),
    "bfloat16": PerformanceSettings(precision="bfloat16"),
    "checkpointing": PerformanceSettings(checkpointing=True),
    "both": PerformanceSettings(precision="bfloat16", checkpointing=True),
}
PATIENTS = tuple("abcdefghij")
PLAN = """
name = "memory"
family = "{family}"
rounds = 1
local_steps = 1
expected_patients = 10
[volumes]
shape = [{side}, {side}, {side}]
spacing = [2.0, 2.0, 2.0]
[optimiser]
learning_rate = 1e-3
[privacy]
clip_norm = 0.1
"""


class Case(NamedTuple):
    """A family, a side in voxels, and a setting to train in, or "sample"."""

    family: str
    side: int
    way: str

    @property
    def name(self) -> str:
        """What the case is called in tables."""
        return f"{self.family}-{self.side}-{self.way}"

    @property
    def plan(self) -> StudyPlan:
        """A study of one private step of each stage."""
        return StudyPlan.from_text(PLAN.format(family=self.family, side=self.side).encode())


def cases(chosen: Sequence[int], *, quick: bool, gpu: bool) -> list[Case]:
    """Return what is measured here, at the sides that were chosen, else at those that fit."""
    families = ("vae", "latent-diffusion") if quick else ("vae", "wgan-gp", "latent-diffusion")
    sides = chosen or ((32,) if quick else (64, 96, 128) if gpu else (64,))
    ways = ("plain", "both", "sample") if quick else (*SETTINGS, "sample")
    more = ("diffusion", "wavelet-diffusion") if gpu and not quick else ()
    return [Case(f, side, way) for f in (*families, *more) for side in sides for way in ways]


class Scans:
    """One random volume, every patient's."""

    def __init__(self, volume: Batch) -> None:
        self._volume = volume

    def batches(self, patient: str) -> list[Batch]:
        """Return the volume."""
        return [self._volume]


def run(case: Case) -> None:
    """Do what the case says, and print its peak in bytes and its seconds."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    began = time.perf_counter()
    plan = case.plan
    if case.way == "sample":
        family = prepare(plan, device).eval()
        family.sample(1, generator=torch.Generator(device).manual_seed(0))
    else:
        terms = terms_with(plan, len(PATIENTS), 1.0, schedule_of(plan))
        trainer = Trainer(plan, terms, device, SETTINGS[case.way])
        scans = Scans(rows_of(example(trainer.family, plan.volumes.shape), slice(1)))
        for stage in trainer.family.stages:
            trainer.train(stage, scans, PATIENTS)  # type: ignore[arg-type]
    peak = torch.cuda.max_memory_allocated() if gpu else _highest()
    print(peak, time.perf_counter() - began)


def _highest() -> int:
    """Return the most bytes that this process held, from Linux's table of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def estimate(case: Case, *, gpu: bool) -> int:
    """Return what is worked out for a case, in bytes; on a GPU without the program itself."""
    program = PROGRAM if gpu else 0
    if case.way != "sample":
        return needs(case.plan, SETTINGS[case.way]).peak - program
    sketch = Sketch(case.plan)
    weights = bytes_of([*sketch.family.parameters(), *sketch.family.buffers()])
    return PROGRAM + weights + sketch.sample(1) - program


def measure(case: Case, *, gpu: bool) -> dict[str, Any]:
    """Return peak and estimate of a case in MiB, and the seconds of all it does."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", *map(str, case)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    peak, expected = float(said[0]), estimate(case, gpu=gpu)
    return {
        "case": case.name,
        "peak_mib": peak / 2**20,
        "estimate_mib": expected / 2**20,
        "estimate_over_measured": expected / peak,
        "seconds": float(said[1]),
    }


def reached(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached, one entry a case."""
    unit = "times the measure, and no less than its inverse"
    return {
        f"estimate_over_measured/{one['case']}": {
            "value": one["estimate_over_measured"],
            "limit": FACTOR,
            "unit": unit,
            "holds": 1 / FACTOR <= one["estimate_over_measured"] <= FACTOR,
        }
        for one in found
    }


def main() -> None:
    """Run the cases and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="side 32, one minute")
    arguments.add_argument("--sides", nargs="+", type=int, default=(), help="e.g. 64 96 128")
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    arguments.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    wanted = arguments.parse_args()
    if wanted.measure:
        family, side, way = wanted.measure
        run(Case(family, int(side), way))
        return
    gpu = torch.cuda.is_available()
    found = [measure(case, gpu=gpu) for case in cases(wanted.sides, quick=wanted.quick, gpu=gpu)]
    document = {
        "device": torch.cuda.get_device_name(0) if gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("voxfed", "torch", "monai")},
        "cases": found,
        "reach": reached(found),
    }
    if wanted.json:
        print(json.dumps(document, indent=1))
        return
    print(f"{document['device']}, {document['threads']} threads")
    print(f"{'case':<32}{'peak MiB':>10}{'estimate':>10}{'ratio':>8}{'s':>8}")
    for one, line in zip(found, document["reach"].values(), strict=True):
        values = f"{one['peak_mib']:>10.0f}{one['estimate_mib']:>10.0f}"
        ratio = f"{line['value']:>8.2f}{one['seconds']:>8.1f}"
        print(f"{one['case']:<32}{values}{ratio}  {'holds' if line['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
