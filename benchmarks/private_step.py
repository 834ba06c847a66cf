"""What privacy costs: our private step beside a plain one and beside Opacus' hooks.

Every step is forward, backward and the gradient of all parameters; the two private ones clip each
volume's gradient, add noise and divide as well. They alternate in one process; memory is measured
in a process of its own.

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
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.grad_sample.group_norm import compute_group_norm_grad_sample
from opacus.optimizers.optimizer import DPOptimizer
from torch import Tensor, nn
from voxfed.models.base import Batch, Step
from voxfed.privacy.engine import StepSettings, private_gradient
from voxfed.privacy.gradients.patients import PatientGradients

KINDS = ("plain", "private", "opacus")
TIME, SPEED, MEMORY = 1.2, 4.0, 1.2
"""Most of a plain step's time, least of Opacus' time over ours, most of a plain step's memory
once one gradient a volume is taken off."""


class Case(NamedTuple):
    """A network, a batch of patients with one volume each, and the volumes' side in voxels."""

    network: str
    patients: int
    side: int

    @property
    def name(self) -> str:
        """What the case is called in tables."""
        return f"{self.network}-{self.patients}x{self.side}"


CASES = (Case("vae", 4, 32), Case("vae", 4, 48), Case("unet", 4, 32))
GPU_CASES = tuple(Case(n, 4, side) for n in ("vae", "unet") for side in (64, 96, 128))
QUICK = (Case("vae", 4, 24), Case("unet", 4, 16))


def vae() -> nn.Module:
    """Return MONAI's AutoencoderKL of 0.74 M parameters."""
    return AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(16, 32, 64),
        latent_channels=3,
        num_res_blocks=(1, 1, 1),
        attention_levels=(False, False, False),
        norm_num_groups=16,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def unet() -> nn.Module:
    """Return MONAI's DiffusionModelUNet of 1.8 M parameters, with attention at its last level."""
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(16, 32, 64),
        attention_levels=(False, False, True),
        num_res_blocks=1,
        norm_num_groups=16,
        num_head_channels=16,
    )


def losses(network: nn.Module, volumes: Tensor) -> Tensor:
    """Return the loss of each volume, (B,); nothing is drawn, so that all kinds do the same."""
    if isinstance(network, DiffusionModelUNet):
        found = network(volumes, torch.full((len(volumes),), 500, device=volumes.device))
        return (found - volumes).square().flatten(1).mean(1)
    mean, deviation = network.encode(volumes)
    nats = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
    found = network.decode(mean + 0.5 * deviation)
    return (found - volumes).abs().flatten(1).mean(1) + 1e-3 * nats.flatten(1).mean(1)


def prepare(case: Case, kind: str) -> Callable[[], object]:
    """Return one kind of step on one case, ready to run."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = {"vae": vae, "unet": unet}[case.network]().to(device)
    shape = (case.patients, 1, case.side, case.side, case.side)
    volumes = torch.rand(shape, device=device) * 2 - 1
    step = {"plain": plain_step, "private": private_step, "opacus": opacus_step}[kind]
    run = step(network, volumes)

    def ready() -> object:
        found = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return ready


def plain_step(network: nn.Module, volumes: Tensor) -> Callable[[], object]:
    """Return the step without privacy."""
    parameters = list(network.parameters())
    return lambda: torch.autograd.grad(
        losses(network, volumes).mean(), parameters, allow_unused=True
    )


def private_step(network: nn.Module, volumes: Tensor) -> Callable[[], object]:
    """Return the step of privacy/engine.py."""
    parameters = list(network.parameters())
    names = tuple(name for name, _ in network.named_parameters())
    step = Step("step", names, True, lambda batch, generator: losses(network, batch.volumes))
    gradients = PatientGradients(network, step, parameters, Batch(volumes[:2]))
    patients = {str(n): [Batch(one.unsqueeze(0))] for n, one in enumerate(volumes)}
    settings = StepSettings(1.0, float(len(volumes)), 1.0, 1.0, 1, 1)
    generator = torch.Generator(volumes.device)

    def run() -> object:
        return private_gradient(
            gradients, list(patients), patients.__getitem__, settings, generator
        )

    return run


def opacus_step(network: nn.Module, volumes: Tensor) -> Callable[[], object]:
    """Return the step of Opacus' hooks, clipping and noise, all by its own samplers."""
    wrapped = GradSampleModule(network, loss_reduction="sum")
    optimiser = DPOptimizer(
        torch.optim.SGD(network.parameters(), lr=0.0),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(volumes),
        loss_reduction="sum",
    )
    theirs = {nn.Conv3d: compute_conv_grad_sample, nn.GroupNorm: compute_group_norm_grad_sample}

    def run() -> object:
        with patch.dict(GradSampleModule.GRAD_SAMPLERS, theirs):
            losses(network, volumes).sum().backward()
            optimiser.pre_step()
        found = [p.grad for p in wrapped.parameters()]
        optimiser.zero_grad(set_to_none=True)
        return found

    return run


def measure(case: Case, repetitions: int) -> dict[str, Any]:
    """Return seconds of each kind, least and median, and peak memory in MiB.

    Memory is the least of three processes, one in quick runs: the C library's allocator varies.
    """
    steps = {kind: prepare(case, kind) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repetition in range(repetitions + 1):
        for kind, run in steps.items():
            began = time.perf_counter()
            run()
            if repetition:  # the first warms up
                seconds[kind].append(time.perf_counter() - began)
    found: dict[str, Any] = {"case": case.name}
    for kind in KINDS:
        compared = repetitions > 3 and kind != "opacus"  # nothing is to be reached by Opacus
        peak, parameters = peak_memory(case, kind, 3 if compared else 1)
        found |= {
            f"{kind}_least_s": min(seconds[kind]),
            f"{kind}_median_s": statistics.median(seconds[kind]),
            f"{kind}_peak_mib": peak,
            "gradients_mib": case.patients * parameters * 4 / 2**20,
        }
    found["time_over_plain"] = found["private_least_s"] / found["plain_least_s"]
    found["opacus_over_time"] = found["opacus_least_s"] / found["private_least_s"]
    own = found["private_peak_mib"] - found["gradients_mib"]
    found["memory_over_plain"] = own / found["plain_peak_mib"]
    return found


def peak_memory(case: Case, kind: str, processes: int) -> tuple[float, int]:
    """Return the peak in MiB above the loaded model, least of some processes, and parameters."""
    command = [sys.executable, __file__, "--memory", case.network]
    command += [str(case.patients), str(case.side), kind]
    found = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        for _ in range(processes)
    ]
    return min(float(peak) for peak, _ in found), int(found[0][1])


def print_memory(case: Case, kind: str) -> None:
    """Print the peak of two steps in MiB: of the GPU where there is one, else of the process."""
    network = {"vae": vae, "unet": unet}[case.network]()
    gpu = torch.cuda.is_available()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, back to VmRSS
    run = prepare(case, kind)  # counts too: our step tries its ways when it is made
    for _ in range(2):
        run()
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else _status("VmHWM") - before
    print(peak, sum(p.numel() for p in network.parameters()))


def _status(name: str) -> float:
    """Return a figure of this process in MiB, from Linux's table of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def reached(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached, one entry for each figure and case."""
    found = {}
    for case in cases:
        for name, limit, unit in (
            ("time_over_plain", TIME, "times a plain step, at most"),
            ("opacus_over_time", SPEED, "times as fast as Opacus' hooks, at least"),
            ("memory_over_plain", MEMORY, "times a plain step's memory, at most"),
        ):
            value = case[name]
            holds = value >= limit if name == "opacus_over_time" else value <= limit
            what = f"{name}/{case['case']}"
            found[what] = {"value": value, "limit": limit, "unit": unit, "holds": holds}
    return found


def main() -> None:
    """Run the cases and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--quick", action="store_true", help="smaller cases of other names, one minute"
    )
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    arguments.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    wanted = arguments.parse_args()
    # Opacus' hooks fire on volumes that need no gradient, as they should.
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    if wanted.memory:
        network, patients, side, kind = wanted.memory
        print_memory(Case(network, int(patients), int(side)), kind)
        return
    gpu = torch.cuda.is_available()
    chosen = QUICK if wanted.quick else GPU_CASES if gpu else CASES
    cases = [measure(case, 3 if wanted.quick else 5) for case in chosen]
    document = {
        "device": torch.cuda.get_device_name(0) if gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("voxfed", "torch", "monai", "opacus")},
        "cases": cases,
        "reach": reached(cases),
    }
    if wanted.json:
        print(json.dumps(document, indent=1))
        return
    print(f"{document['device']}, {document['threads']} threads")
    columns = [f"{kind} {what}" for what in ("s", "MiB") for kind in KINDS]
    print(f"{'case':<12}" + "".join(f"{x:>13}" for x in columns))
    for case in cases:
        values = [f"{case[f'{kind}_least_s']:.3f}" for kind in KINDS]
        values += [f"{case[f'{kind}_peak_mib']:.0f}" for kind in KINDS]
        print(f"{case['case']:<12}" + "".join(f"{x:>13}" for x in values))
    for what, line in document["reach"].items():
        state = "holds" if line["holds"] else "MISSED"
        print(f"{what:<30}{line['value']:>8.2f}  limit {line['limit']}: {state}")


if __name__ == "__main__":
    main()
