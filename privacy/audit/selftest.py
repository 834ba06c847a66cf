"""The self-test: instruments on the engine and on the audit, and faults that they must see.

Each instrument must find nothing wrong with the engine as it is, or with an honest generator, and
must find each fault that is planted for it. The canaries have no power at half of the noise, where
the true epsilon is 2.15: that is what the noise residual is for. A sound engine fails by chance in
at most 3 of 10^6 runs of the whole: 2e-6 for the residual's two p-values, 1e-6 for the canaries; a
planted fault is missed far less often. The neighbour replay and the audit's instruments draw
nothing at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from ...models.base import Batch
from .. import engine, sampling
from ..clipping import clip_weights
from ..gradients.patients import Patient, PatientGradients, Weigh
from ..noise import Keystream, add_noise
from . import canaries, replay, residual, witness
from .specimen import Reading

SHIPPED = "as shipped"
SOUND = (SHIPPED, witness.HONEST)
Report = Callable[[int, int, str], None]
Plant = Callable[[], AbstractContextManager[object]]

INSTRUMENTS: dict[str, Callable[[], Reading]] = {
    "neighbour replay": replay.read,
    "noise residual": residual.read,
    "canaries": canaries.read,
    **witness.INSTRUMENTS,
}


@dataclass(frozen=True)
class Finding:
    """What an instrument said of what is sound, or of a planted fault.

    Attributes:
        instrument: which one.
        engine: "as shipped", "an honest generator", or the fault's name.
        reading: what it measured.
        holds: whether that is as it must be: an alarm for a fault, and none for what is sound.
    """

    instrument: str
    engine: str
    reading: Reading
    holds: bool

    @property
    def part(self) -> str:
        """What was tested: the engine or the audit."""
        return "audit" if self.instrument in witness.INSTRUMENTS else "engine"

    @property
    def verdict(self) -> str:
        """What the finding means, in words."""
        if self.holds:
            return f"{self.instrument} is right about {self.engine}"
        if self.engine == SHIPPED:
            return f"{self.instrument} finds the engine faulty: {self.reading.detail}"
        if self.engine == witness.HONEST:
            return f"{self.instrument} accuses {self.engine}: {self.reading.detail}"
        return f"{self.instrument} is blind: it does not see {self.engine}"


def run(report: Report | None = None) -> list[Finding]:
    """Measure what is sound, then each planted fault, and return all findings.

    Guarantee:
        None for a model: it examines this engine and this audit on this machine, on patients that
        are nobody. That these leaks are seen does not say that smaller ones would be.
    Assumes:
        Nothing else in the process runs the engine or this test meanwhile: faults are planted.

    Args:
        report: told how many of all measurements are done, and which is next.

    Raises:
        VerificationError: the engine did not take the passes that were to be measured.
    """
    plants: dict[tuple[str, str], Plant] = {
        (name, _sound(name)): nullcontext for name in INSTRUMENTS
    }
    plants |= FAULTS
    findings = []
    for done, ((instrument, name), plant) in enumerate(plants.items()):
        if report:
            report(done, len(plants), f"{instrument}: {name}")
        with plant():
            reading = INSTRUMENTS[instrument]()
        findings.append(Finding(instrument, name, reading, reading.alarm == (name not in SOUND)))
    return findings


def _sound(instrument: str) -> str:
    return witness.HONEST if instrument in witness.INSTRUMENTS else SHIPPED


def _generator(part: str, replaced: Callable[..., Tensor]) -> Plant:
    return lambda: patch.object(witness, part, replaced)


def _weights(weigh: Callable[[Tensor, float], Tensor]) -> Plant:
    return lambda: patch.object(engine, "clip_weights", weigh)


def _noise(noised: Callable[[Sequence[Tensor], float], list[Tensor]]) -> Plant:
    return lambda: patch.object(engine, "add_noise", noised)


def _by_batch(norms: Tensor, bound: float) -> Tensor:
    """Shrink all patients of a pass alike, until their sum is below the bound."""
    return torch.full_like(norms, min(1.0, bound / max(float(norms.sum()), 1e-300)))


def _keeping_the_broken(norms: Tensor, bound: float) -> Tensor:
    return torch.where(torch.isfinite(norms), clip_weights(norms, bound), 1.0)


def _scaled(share: float) -> Plant:
    return _noise(lambda total, deviation: add_noise(total, share * deviation))


def _volumes_as_patients() -> AbstractContextManager[object]:
    whole = PatientGradients.weighted_sum

    def split(
        gradients: PatientGradients,
        patients: Iterable[Patient],
        generator: torch.Generator,
        weigh: Weigh,
    ) -> list[Tensor]:
        volumes = ([volume] for patient in patients for volume in patient)
        return whole(gradients, volumes, generator, weigh)

    return patch.object(PatientGradients, "weighted_sum", split)


def _realised_divisor() -> AbstractContextManager[object]:
    real = engine.private_gradient

    def divided(
        gradients: PatientGradients,
        patients: Sequence[str],
        load: Callable[[str], Sequence[Batch]],
        settings: engine.StepSettings,
        generator: torch.Generator,
    ) -> list[Tensor]:
        drawn = sampling.poisson(patients, settings.rate)
        realised = replace(settings, divisor=float(max(1, len(drawn))), rate=1.0)
        return real(gradients, drawn, load, realised, generator)

    return patch.object(engine, "private_gradient", divided)


_NO_NOISE = _noise(lambda total, deviation: [part.float() for part in total])
_SAME_KEY = _noise(
    lambda total, deviation: add_noise(total, deviation, keystream=Keystream(bytes(32)))
)

FAULTS: dict[tuple[str, str], Plant] = {
    ("neighbour replay", "clipping off"): _weights(
        lambda norms, bound: torch.isfinite(norms).to(norms)
    ),
    ("neighbour replay", "a broken gradient kept"): _weights(_keeping_the_broken),
    ("neighbour replay", "clipping per batch"): _weights(_by_batch),
    ("neighbour replay", "volumes counted as patients"): _volumes_as_patients,
    ("neighbour replay", "division by the realised batch"): _realised_divisor,
    ("noise residual", "noise off"): _NO_NOISE,
    ("noise residual", "half of the noise"): _scaled(0.5),
    ("noise residual", "a seed used twice"): _SAME_KEY,
    ("canaries", "noise off"): _NO_NOISE,
    ("canaries", "a quarter of the noise"): _scaled(0.25),
    ("search for copies", "members replayed with noise"): _generator("samples", witness.replaying),
    ("membership scores", "a model that memorises"): _generator("lessons", witness.memorising),
    ("blind baseline", "non-members of another scanner"): _generator("held_out", witness.shifted),
}
"""The faults, by the instrument that must catch each: the real thing, with one part replaced."""
