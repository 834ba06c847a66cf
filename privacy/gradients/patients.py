"""The sum of clipped gradients, patient by patient in meaning and batch by batch in time.

Whole patients are packed into passes of a few volumes, and every volume's gradient is recorded
(`recorder.py`). Where not all of them fit into memory, a first pass takes norms alone and a second
one, over the same draws, records again and adds layer by layer. Where a network cannot be recorded,
patients go one by one through plain autograd. How a patient's gradient is taken never depends on
who else was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...models.base import Batch, Step, joined
from .draws import Draws
from .performance import PerformanceSettings
from .precision import in_precision, refuse_far, sound_kernels
from .recorder import Recorder

Weigh = Callable[[Tensor], Tensor]
Patient = Sequence[Batch]
Passes = Literal["one", "two", "alone"]

SHARE = 0.25
"""Part of the free memory that the gradients of all volumes of a pass may fill."""


class PatientGradients:
    """One step's gradients, ready to be summed; picks the cheapest exact passes when it is made.

    Args:
        network: holds the layers of `parameters`.
        step: the optimiser's turn whose loss is minimised.
        parameters: the trained tensors.
        example: two volumes that are nobody's, to try the recorder on; their shape is the study's.
        performance: what the site asks for.

    Raises:
        Refusal: the precision asked for breaks the step's gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        step: Step,
        parameters: Sequence[Tensor],
        example: Batch,
        performance: PerformanceSettings | None = None,
    ) -> None:
        self._performance = performance or PerformanceSettings()
        precision = self._performance.precision
        refuse_far(network, step, parameters, example, precision)
        self.step, self.parameters = in_precision(step, precision), tuple(parameters)
        # on a CPU, in float32, a batch of one falls on slow kernels
        self._copies = precision == "float32" and example.volumes.device.type == "cpu"
        self._recorder = Recorder(network, self.parameters)
        self.passes: Passes = self._cheapest(example)
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
            if self.passes == "alone" or len(pack[0]) > self._performance.volumes_at_once:
                with sound_kernels(self._performance.precision, total[0].device):
                    self._add_alone(total, pack[0], draws, weigh)
            elif self.passes == "one":
                self._add_recorded(total, pack, draws, weigh)
            else:
                self._add_twice(total, pack, draws, weigh)
        return total

    def _cheapest(self, example: Batch) -> Passes:
        wanted = "alone" if self._performance.saves_memory else self._performance.passes
        if wanted == "alone" or not self._recorder.agrees(self.step, example):
            return "alone"
        if wanted != "auto":
            return wanted
        size = sum(p.numel() * p.element_size() for p in self.parameters)
        room = SHARE * _free_memory(example.volumes.device)
        return "one" if size * self._performance.volumes_at_once <= room else "two"

    def _packed(self, patients: Iterable[Patient]) -> Iterator[list[Patient]]:
        """Yield whole patients, as many together as a pass holds, one at least."""
        pack: list[Patient] = []
        size = 0
        for patient in filter(len, patients):  # without a volume there is no gradient
            full = size + len(patient) > self._performance.volumes_at_once
            if pack and (full or self.passes == "alone"):
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
            whole = _beside(part) if self._copies else joined(part)
            losses = self.step.loss(whole, draws.generator)[: len(part)]
            loss = losses.sum() / len(patient)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            for kept, new in zip(gradient, found, strict=True):
                if new is not None:
                    kept += new
        self._add_rows(total, {n: one.unsqueeze(0) for n, one in enumerate(gradient)}, weigh)

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
        """Take norms, dropping each layer's gradients at once; then record again and add."""
        shares = _Shares(pack)
        squares = torch.zeros(len(pack), dtype=torch.float64, device=self.parameters[0].device)

        def measure(_: int, found: Tensor) -> None:
            squares.add_(_norms(shares.by_patient(found)).square())

        with draws.put_back():
            self._recorder.record(lambda: self._losses(shares, draws), measure)
        weights = self._weights(squares.sqrt(), weigh)

        def add(number: int, found: Tensor) -> None:
            total[number] += _weighted(shares.by_patient(found), weights)

        self._recorder.record(lambda: self._losses(shares, draws), add)

    def _losses(self, shares: _Shares, draws: Draws) -> Tensor:
        """Return the losses of a pass, each divided by the number of its patient's volumes."""
        losses = self.step.loss(_beside(shares.volumes), draws.generator)
        return losses[: len(shares.volumes)] / shares.sizes.to(losses)

    def _add_rows(self, total: list[Tensor], rows: dict[int, Tensor], weigh: Weigh) -> None:
        """Add each patient's gradient (P, *shape) times the patient's weight."""
        if not rows:
            return
        norms = torch.stack([_norms(found) for found in rows.values()])
        weights = self._weights(torch.linalg.vector_norm(norms, dim=0), weigh)
        for number in list(rows):
            total[number] += _weighted(rows.pop(number), weights)

    def _weights(self, norms: Tensor, weigh: Weigh) -> Tensor:
        self.not_finite += int((~torch.isfinite(norms)).sum())
        return weigh(norms)


class _Shares:
    """Which volume of a pass is whose."""

    def __init__(self, pack: Sequence[Patient]) -> None:
        self.volumes = [volume for patient in pack for volume in patient]
        self._patients = len(pack)
        counts = torch.tensor([len(patient) for patient in pack])
        self._one_each = bool((counts == 1).all())
        self._owner = torch.repeat_interleave(torch.arange(len(pack)), counts)
        self.sizes = counts[self._owner]

    def by_patient(self, rows: Tensor) -> Tensor:
        """Add up the rows (B, *shape) of each patient to (P, *shape); a copy's row is dropped."""
        rows = rows[: len(self.volumes)]
        if self._one_each:
            return rows
        found = rows.new_zeros((self._patients, *rows.shape[1:]))
        return found.index_add_(0, self._owner.to(rows.device), rows)


def _beside(volumes: Sequence[Batch]) -> Batch:
    """Join volumes; a lone one has a copy beside it, since a batch of one falls on slow kernels."""
    return joined(volumes if len(volumes) > 1 else [*volumes, *volumes])


def _weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of rows (P, *shape) times weights (P,), in float64; weight 0 drops a row."""
    kept = weights > 0
    part = rows if bool(kept.all()) else rows[kept]
    found = weights[kept] @ part.double().reshape(len(part), rows[0].numel())
    return found.reshape(rows.shape[1:])


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
