"""What a private step costs: patient by patient with clipping and noise, beside a plain step.

Both take the gradient of the same VAE over the same patients with one volume each; the plain step
takes them as one batch. They alternate in one process; memory is measured in a process of its own.

    python benchmarks/private_step.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from voxfed.models.base import Batch
from voxfed.models.vae import Vae, VaeSpec
from voxfed.privacy.engine import StepSettings, open_gradient, private_gradient

CASES = ((24, 4), (24, 12), (32, 4), (32, 12), (48, 4))
QUICK = ((24, 4), (24, 12))
RATIO = 5.0  # what Opacus costs over a plain step on 3D networks
KINDS = {"plain": open_gradient, "private": private_gradient}


def prepare(side: int, patients: int) -> dict[str, Callable[[], object]]:
    """Return both steps on `patients` volumes of `side` voxels a side, ready to run."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family = Vae(VaeSpec(channels=(8, 16, 32), groups=8, shape=(side, side, side))).to(device)
    (step,) = family.steps("autoencoder")
    parameters = list(family.parameters())
    volumes = {
        f"p{i}": [Batch(torch.rand(1, 1, side, side, side, device=device) * 2 - 1)]
        for i in range(patients)
    }
    settings = StepSettings(
        rate=1.0,
        divisor=float(patients),
        clip_norm=1.0,
        sigma=1.0,
        volumes_per_patient=1,
        noise_multiplicity=1,
    )

    def ready(gradient: Callable[..., object]) -> Callable[[], object]:
        def run() -> object:
            found = gradient(
                step, parameters, list(volumes), volumes.__getitem__, settings, torch.Generator()
            )
            if device.type == "cuda":
                torch.cuda.synchronize()
            return found

        return run

    return {kind: ready(gradient) for kind, gradient in KINDS.items()}


def measure(side: int, patients: int, repetitions: int) -> dict[str, Any]:
    """Return seconds of both steps, least and median, and peak memory in MiB."""
    steps = prepare(side, patients)
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for repetition in range(repetitions + 1):
        for kind, run in steps.items():
            began = time.perf_counter()
            run()
            if repetition:  # the first warms up
                seconds[kind].append(time.perf_counter() - began)
    case: dict[str, Any] = {"case": f"{side}^3, {patients} patients"}
    for kind, found in seconds.items():
        case |= {f"{kind} least s": min(found), f"{kind} median s": statistics.median(found)}
        case[f"{kind} peak MiB"] = peak_memory(kind, side, patients)
    case["ratio"] = case["private least s"] / case["plain least s"]
    return case


def peak_memory(kind: str, side: int, patients: int) -> float:
    """Return the peak of two steps in MiB above the loaded libraries, in a process of its own."""
    command = [sys.executable, __file__, "--memory", kind, str(side), str(patients)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(kind: str, side: int, patients: int) -> None:
    """Print the peak of two steps in MiB: of the GPU where there is one, else of the process."""
    run = prepare(side, patients)[kind]
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, back to VmRSS
    for _ in range(2):
        run()
    gpu = torch.cuda.is_available()
    print(torch.cuda.max_memory_allocated() / 2**20 if gpu else _status("VmHWM") - before)


def _status(name: str) -> float:
    """Return a figure of this process in MiB, from Linux's table of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    """Run the cases and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="small cases, one minute")
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    arguments.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    wanted = arguments.parse_args()
    if wanted.memory:
        kind, side, patients = wanted.memory
        print_memory(kind, int(side), int(patients))
        return
    cases = [
        measure(*case, 3 if wanted.quick else 7) for case in (QUICK if wanted.quick else CASES)
    ]
    worst = max(case["ratio"] for case in cases)
    reach = {"value": worst, "limit": RATIO, "unit": "times a plain step", "holds": worst <= RATIO}
    gpu = torch.cuda.is_available()
    document = {
        "device": torch.cuda.get_device_name(0) if gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("voxfed", "torch", "monai")},
        "cases": cases,
        "reach": {"private step": reach},
    }
    if wanted.json:
        print(json.dumps(document, indent=1))
        return
    print(f"{document['device']}, {document['threads']} threads")
    print(
        f"{'case':<20}{'plain s':>10}{'private s':>11}{'ratio':>8}{'plain MiB':>11}{'private':>9}"
    )
    for case in cases:
        print(
            f"{case['case']:<20}{case['plain least s']:>10.3f}{case['private least s']:>11.3f}"
            f"{case['ratio']:>8.2f}{case['plain peak MiB']:>11.0f}{case['private peak MiB']:>9.0f}"
        )
    print(f"worst ratio {worst:.2f}, limit {RATIO}: {'holds' if reach['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
