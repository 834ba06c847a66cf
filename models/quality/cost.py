"""What a sample costs: seconds, floating point operations and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..base import NO_CONDITION, Condition, Family

REPEATS = 3
LEFT_OUT = (
    "FLOPs are those of convolutions, matrix products and attention, a multiplication and its "
    "addition being two; normalisation, activations, resampling and random draws are left out"
)


@dataclass(frozen=True)
class Cost:
    """What drawing one volume takes.

    Attributes:
        device: the GPU's name, or "cpu".
        seconds: the median of a few draws, s.
        flops: floating point operations; `LEFT_OUT` says which are not in it.
        memory: the weights and what a draw adds to them at its peak, bytes; None where the system
            does not tell.
    """

    device: str
    seconds: float
    flops: int
    memory: int | None


def cost_of_sample(
    family: Family,
    *,
    condition: Condition = NO_CONDITION,
    repeats: int = REPEATS,
    generator: torch.Generator,
) -> Cost:
    """Measure one sample of a family, on the generator's device.

    On a GPU, memory is what torch held there at most, without CUDA's own share. On a CPU it is by
    how much the process grew (Linux only): memory that the process had in reserve from earlier
    work does not show, and what its other threads do meanwhile does. A new process tells most.

    Args:
        family: in evaluation mode, on the generator's device.
        condition: of one row, where the family needs one.
        repeats: draws whose median time is told, 1 or more; two more are made.
        generator: of all draws.

    Raises:
        PlanError: as `family.sample`.
    """
    device = generator.device

    def run() -> None:
        family.sample(1, condition=condition, generator=generator)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    weights = sum(x.numel() * x.element_size() for x in family.state_dict().values())
    grown = growth(run, device)  # first, which also builds kernels
    seconds = statistics.median(_seconds(run) for _ in range(repeats))
    return Cost(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        seconds=seconds,
        flops=flops(run),
        memory=None if grown is None else weights + grown,
    )


def flops(run: Callable[[], None]) -> int:
    """Return the floating point operations of a call, less those that `LEFT_OUT` names."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def growth(run: Callable[[], None], device: torch.device) -> int | None:
    """Return by how many bytes a call raises memory at its peak, or None where none can tell.

    On a CPU the peak is Linux's VmHWM, set back before the call.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except OSError:
        run()
        return None
    run()
    return max(_resident("VmHWM") - before, 0)


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _resident(name: str) -> int:
    """Return a figure of this process in bytes, from Linux's table of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
