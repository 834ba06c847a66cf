"""Plain training on PUBLIC volumes: no privacy, never given a patient's scan."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from ..study.errors import ProcessError
from .base import Batch, Family, Step, check_volumes, rows_of

Progress = Callable[[int, int, float], None]


def fit(
    family: Family,
    stage: str,
    public: Batch,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    generator: torch.Generator,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> float:
    """Train one stage by Adam with a cosine schedule; return the mean loss of the last tenth.

    The loss told is that of the stage's first step.

    The schedule ends after `steps`, or after `seconds` where those pass first: only then does the
    outcome depend on the machine's speed.

    Args:
        family: trained in place.
        stage: one of `family.stages`.
        public: N public volumes in [-1, 1] with what is told of them, on the family's device.
        steps: local steps, each of all the stage's turns, 1 or more.
        batch: volumes drawn for each step, with replacement.
        learning_rate: at the first step; it falls to a fiftieth.
        generator: on the CPU; draws the volumes and the losses' noise.
        seconds: the longest time, or None for no limit.
        progress: called after each step with the step, `steps` and the loss.

    Raises:
        VolumeError: the volumes are not of the family's shape.
        ProcessError: the loss is no longer finite.
    """
    check_volumes(public, family.shape)
    turns = [(step, _optimiser(family, step, learning_rate)) for step in family.steps(stage)]
    began = time.monotonic()
    losses: list[float] = []
    for number in range(1, steps + 1):
        spent = (time.monotonic() - began) / seconds if seconds else 0.0
        done = max((number - 1) / steps, spent)
        if done >= 1:
            break
        rate = learning_rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))
        told: list[float] = []
        for step, optimiser in turns:
            optimiser.param_groups[0]["lr"] = rate
            for _ in range(step.repeats):
                drawn = torch.randint(len(public.volumes), (batch,), generator=generator)
                given = rows_of(public, drawn) if step.reads_patients else None
                loss = step.loss(given, generator).mean()
                optimiser.zero_grad()
                loss.backward(inputs=optimiser.param_groups[0]["params"])
                optimiser.step()
                told.append(loss.item())
        losses.append(told[0])
        if not all(map(math.isfinite, told)):
            raise ProcessError("training diverged", got=told, hint="lower the learning rate")
        if progress is not None:
            progress(number, steps, losses[-1])
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / len(last)


def _optimiser(family: Family, step: Step, learning_rate: float) -> torch.optim.Adam:
    weights = dict(family.named_parameters())
    moved = [weights[name] for name in step.parameters]
    return torch.optim.Adam(moved, lr=learning_rate, betas=step.decays)
