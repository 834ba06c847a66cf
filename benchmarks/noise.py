"""What the noise of privacy costs beside a plain step of a DiffusionModelUNet of 10 M parameters.

The step is one forward and backward pass of a batch of 4, without optimiser, clipping or noise; the
noise is that of one release of all parameters. They alternate in one process. --quick takes the
same network at side 24: an eighth of the voxels, the same noise, so eight times the limit.

    python benchmarks/noise.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from voxfed.privacy.noise import add_noise

BATCH, SIDE, QUICK_SIDE = 4, 48, 24
CHANNELS = (32, 64, 160)
SHARE = 0.05  # of the plain step at side 48


def prepare(side: int) -> tuple[int, dict[str, Callable[[], object]]]:
    """Return the number of parameters, and step and noise ready to run."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=CHANNELS,
        attention_levels=(False, False, False),
        num_res_blocks=1,
        num_head_channels=CHANNELS[-1],
        norm_num_groups=16,
    ).to(device)
    parameters = list(network.parameters())
    volumes = torch.rand((BATCH, 1, side, side, side), device=device) * 2 - 1
    timesteps = torch.arange(BATCH, device=device)
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]

    def step() -> object:
        predicted = network(volumes, timesteps)
        return torch.autograd.grad((predicted - volumes).square().mean(), parameters)

    return sum(p.numel() for p in parameters), {"step": step, "noise": lambda: add_noise(total, 1)}


def measure(side: int, repetitions: int) -> dict[str, Any]:
    """Return seconds of step and noise, least and median, and their ratio by the least."""
    parameters, parts = prepare(side)
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for repetition in range(repetitions + 1):
        for part, run in parts.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repetition:  # the first warms up
                seconds[part].append(time.perf_counter() - began)
    case: dict[str, Any] = {"case": f"unet-{BATCH}x{side}", "parameters": parameters}
    for part, found in seconds.items():
        case |= {f"{part} least s": min(found), f"{part} median s": statistics.median(found)}
    case["ratio"] = case["noise least s"] / case["step least s"]
    return case


def main() -> None:
    """Run the case and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="side 24, under a minute")
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    wanted = arguments.parse_args()
    case = measure(QUICK_SIDE if wanted.quick else SIDE, 3)
    value, limit = case["ratio"], SHARE * (8 if wanted.quick else 1)
    reach = {"value": value, "limit": limit, "unit": "of a plain step", "holds": value <= limit}
    gpu = torch.cuda.is_available()
    document = {
        "device": torch.cuda.get_device_name(0) if gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("voxfed", "torch", "monai")},
        "cases": [case],
        "reach": {"noise_over_step": reach},
    }
    if wanted.json:
        print(json.dumps(document, indent=1))
        return
    print(f"{document['device']}, {document['threads']} threads")
    print(f"{case['case']}, {case['parameters']:,} parameters")
    for part in ("step", "noise"):
        least, median = case[f"{part} least s"], case[f"{part} median s"]
        print(f"{part:<6}{least:>9.3f} s least{median:>9.3f} s median")
    print(f"noise over step {value:.3f}, limit {limit}: {'holds' if reach['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
