"""The sum of clipped gradients, patient by patient in meaning and batch by batch in time.

Whole patients are packed into passes of a few volumes. A pass of several patients records every
volume's gradient (`recorder.py`); where not all of them fit into memory it takes norms alone and
clips in a second pass over the same draws. A patient alone in a pass needs no recording: plain
autograd gives the patient's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...models.base import Batch, Condition, Step
from .draws import Draws
from .performance import PerformanceSettings
from .recorder import Recorder

Weigh = Callable[[Tensor], Tensor]
Patient = Sequence[Batch]
Way = Literal["one pass", "two passes", "patient by patient"]

SHARE = 0.25
"""Part of the free memory that the gradients of all volumes of a pass may fill."""

REPLAY_MARGIN = 1e-4
"""How far below its bound a second pass aims: its gradients are rounded to float32 anew."""


class PatientGradients:
    """One step's gradients, ready to be summed; picks the cheapest exact way when it is made.

    Args:
        network: holds the layers of `parameters`.
        step: the optimiser's turn whose loss is minimised.
        parameters: the trained tensors.
        example: two volumes that are nobody's, to try the ways on; their shape is the study's.
        performance: what the site asks of the ways.
    """

    def __init__(
        self,
        network: nn.Module,
        step: Step,
        parameters: Sequence[Tensor],
        example: Batch,
        performance: PerformanceSettings | None = None,
    ) -> None:
        self.step, self.parameters = step, tuple(parameters)
        self._performance = performance or PerformanceSettings()
        self._recorder = Recorder(network, self.parameters)
        self.way: Way = self._cheapest(example)
        self.not_finite = 0  # patients that counted as zero; never leaves the site

    def weighted_sum(
        self, patients: Iterable[Patient], generator: torch.Generator, weigh: Weigh
    ) -> list[Tensor]:
        """Return the sum over patients of weight times gradient, float64, one for each parameter.

        Args:
            patients: each a sequence of batches of one volume; the patient's gradient is that of
                the mean loss over them.
            generator: all randomness of the losses.
            weigh: from the patients' gradient norms (P,), float64, to their weights (P,). A weight
                of zero leaves the patient out, whatever the gradient is.
        """
        total = [torch.zeros_like(p, dtype=torch.float64) for p in self.parameters]
        draws = Draws(generator)
        for pack in self._packed(patients):
            if len(pack) == 1:
                self._add_alone(total, pack[0], draws, weigh)
            elif self.way == "one pass":
                self._add_recorded(total, pack, draws, weigh)
            else:
                self._add_twice(total, pack, draws, weigh)
        return total

    def _cheapest(self, example: Batch) -> Way:
        wanted = self._performance.passes
        if wanted == "alone" or not self._recorder.agrees(self.step, example):
            return "patient by patient"
        if wanted == "auto":
            device = example.volumes.device
            size = sum(p.numel() * p.element_size() for p in self.parameters)
            fits = size * self._performance.volumes_at_once <= SHARE * _free_memory(device)
            wanted = "one" if fits else "two"
        if wanted == "one":
            return "one pass"
        exact = all(p.dtype in (torch.float32, torch.float64) for p in self.parameters)
        return "two passes" if exact else "patient by patient"

    def _packed(self, patients: Iterable[Patient]) -> Iterator[list[Patient]]:
        """Yield whole patients, as many together as a pass holds, one at least."""
        pack: list[Patient] = []
        size = 0
        for patient in filter(len, patients):  # without a volume there is no gradient
            full = size + len(patient) > self._performance.volumes_at_once
            if pack and (full or self.way == "patient by patient"):
                yield pack
                pack, size = [], 0
            pack.append(patient)
            size += len(patient)
        if pack:
            yield pack

    def _add_alone(self, total: list[Tensor], patient: Patient, draws: Draws, weigh: Weigh) -> None:
        """Add one patient by plain autograd, a few volumes at a time."""
        gradient = [torch.zeros_like(p) for p in self.parameters]
        most = self._performance.volumes_at_once
        for first in range(0, len(patient), most):
            part = patient[first : first + most]
            # A batch of one falls on slow kernels; a copy beside it costs less than that.
            batch = joined(part if len(part) > 1 else [*part, *part])
            loss = self.step.loss(batch, draws.generator)[: len(part)].sum() / len(patient)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            for kept, new in zip(gradient, found, strict=True):
                if new is not None:
                    kept += new
        rows = {number: one.unsqueeze(0) for number, one in enumerate(gradient)}
        self._add_rows(total, rows, weigh)

    def _add_recorded(
        self, total: list[Tensor], pack: Sequence[Patient], draws: Draws, weigh: Weigh
    ) -> None:
        rows: dict[int, Tensor] = {}
        shares = _Shares(pack)

        def keep(number: int, found: Tensor) -> None:
            rows[number] = shares.by_patient(found)

        self._recorder.record(lambda: self._losses(shares, draws), keep)
        self._add_rows(total, rows, weigh)

    def _add_twice(
        self, total: list[Tensor], pack: Sequence[Patient], draws: Draws, weigh: Weigh
    ) -> None:
        """Take norms, dropping each layer's gradients at once; then clip in a second pass."""
        shares = _Shares(pack)
        squares = torch.zeros(len(pack), dtype=torch.float64, device=self.parameters[0].device)

        def measure(_: int, found: Tensor) -> None:
            squares.add_(_norms(shares.by_patient(found)).square())

        with draws.put_back():
            self._recorder.record(lambda: self._losses(shares, draws), measure)
        if not bool(torch.isfinite(squares).all()):
            for patient in pack:  # together, one that is not finite would spoil the others' sum
                self._add_alone(total, patient, draws, weigh)
            return
        weights = self._weights(squares.sqrt(), weigh) * (1 - REPLAY_MARGIN)
        losses = self._losses(shares, draws)
        loss = (losses * shares.by_volume(weights).to(losses)).sum()
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for kept, new in zip(total, found, strict=True):
            if new is not None:
                kept += new

    def _losses(self, shares: _Shares, draws: Draws) -> Tensor:
        losses = self.step.loss(joined(shares.volumes), draws.generator)
        return losses / shares.sizes.to(losses)

    def _add_rows(self, total: list[Tensor], rows: dict[int, Tensor], weigh: Weigh) -> None:
        """Add each patient's gradient (P, *shape) times the patient's weight."""
        if not rows:
            return
        norms = torch.stack([_norms(found) for found in rows.values()])
        weights = self._weights(torch.linalg.vector_norm(norms, dim=0), weigh)
        kept = weights > 0
        everybody = bool(kept.all())
        for number in list(rows):
            found = rows.pop(number)
            part = found if everybody else found[kept]
            flat = weights[kept] @ part.flatten(1).double()
            total[number] += flat.reshape(total[number].shape)

    def _weights(self, norms: Tensor, weigh: Weigh) -> Tensor:
        self.not_finite += int((~torch.isfinite(norms)).sum())
        return weigh(norms)


class _Shares:
    """Which volume of a pass is whose."""

    def __init__(self, pack: Sequence[Patient]) -> None:
        self.volumes = [volume for patient in pack for volume in patient]
        self.patients = len(pack)
        counts = torch.tensor([len(patient) for patient in pack])
        self._one_each = bool((counts == 1).all())
        self._owner = torch.repeat_interleave(torch.arange(len(pack)), counts)
        self.sizes = counts[self._owner]

    def by_patient(self, rows: Tensor) -> Tensor:
        """Add up the rows (B, *shape) of each patient to (P, *shape)."""
        if self._one_each:
            return rows
        found = rows.new_zeros((self.patients, *rows.shape[1:]))
        return found.index_add_(0, self._owner.to(rows.device), rows)

    def by_volume(self, values: Tensor) -> Tensor:
        """Give each volume its patient's value: (P,) to (B,)."""
        return values[self._owner.to(values.device)]


def joined(volumes: Sequence[Batch]) -> Batch:
    """Return one batch of several, volumes and each part of their conditions."""
    parts = {}
    for field in fields(Condition):
        values = [getattr(one.condition, field.name) for one in volumes]
        parts[field.name] = None if values[0] is None else torch.cat(values)
    return Batch(torch.cat([one.volumes for one in volumes]), Condition(**parts))


def _norms(rows: Tensor) -> Tensor:
    """Return the L2 norm of each row (P, *shape), in float64; a scalar parameter has one value."""
    norms: Tensor = torch.linalg.vector_norm(
        rows.reshape(len(rows), -1), dim=1, dtype=torch.float64
    )
    return norms


def _free_memory(device: torch.device) -> float:
    """Return the bytes that are free on a device (proc(5), MemAvailable, in kB, for a CPU)."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
