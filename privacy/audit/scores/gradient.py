"""The length of the gradient: a model has little left to learn from a patient it trained on.

The gradient is the one that training clips: that of the mean loss over a few draws, of all turns of
the last stage that read patients (a norm without reference models, after Pang et al., GSA, 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Family, Step
    from .score import Measure

DRAWS = 4


def gradient_norm(
    step: Step, parameters: Sequence[Tensor], batch: Batch, generator: torch.Generator
) -> Tensor:
    """Returns the L2 norm of the gradient of a volume's mean loss over DRAWS draws, float64.

    Args:
        step: the turn whose loss it is.
        parameters: what the gradient is taken by.
        batch: one volume, (1, C, D, H, W).
        generator: all randomness of the loss.
    """
    total = [torch.zeros_like(p) for p in parameters]
    for _ in range(DRAWS):
        with torch.enable_grad():
            loss = step.loss(batch, generator).sum() / DRAWS
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for kept, new in zip(total, found, strict=True):
            if new is not None:
                kept += new
    return _length([kept.flatten() for kept in total])


def _length(parts: Sequence[Tensor]) -> Tensor:
    lengths = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(lengths))
    return whole


def _reading(family: Family) -> list[Step]:
    """Returns the last stage's turns that see patients."""
    turns = family.steps(family.stages[-1])
    return [step for step in turns if step.reads_patients and step.parameters]


def _prepare(family: Family, context: Context) -> Measure:
    named = dict(family.named_parameters())
    turns = [(step, [named[name] for name in step.parameters]) for step in _reading(family)]

    def measure(batch: Batch) -> Tensor:
        draws = context.draws()
        lengths = [gradient_norm(step, parameters, batch, draws) for step, parameters in turns]
        return -_length(lengths).reshape(1)

    return measure


SCORES = (
    Score(
        "gradient norm",
        Threat.WEIGHTS,
        "how little the model would still change to fit the scan",
        "after Pang et al., GSA, PoPETs 2025",
        lambda family: bool(_reading(family)),
        _prepare,
    ),
)
