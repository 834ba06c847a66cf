"""The synthetic set that every site searches: made once, and checked by each site.

Samples are drawn four at a time, which takes a third of the time of one by one. Each such handful
comes from a generator that is seeded by the weights' digest and the handful's number, so that a
site can make any of them again from the weights it audits. A coordinator that shows the volumes of
another model is found.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....models.base import Batch, Condition, Family, joined_conditions
from ....models.conditioning import Conditioning
from ....models.state import from_bytes, to_bytes
from ....study.errors import PlanError, VerificationError, WireError
from ...sampling import choose

FEWEST, MOST_A_PATIENT = 200, 10
NAME = "volumes"
HANDFUL = 4
CHECKED = 0.01
FEWEST_CHECKED = 2
TOLERANCE, SHARE = 0.02, 0.01
"""A voxel agrees within 0.02 of [-1, 1]; a volume where at most 1 % of its voxels do not."""


@dataclass(frozen=True)
class SyntheticSet:
    """Volumes as they are sent.

    Attributes:
        content: safetensors, float16 (M, 1, D, H, W).
        digest: SHA-256 of it, in hexadecimal.
    """

    content: bytes
    digest: str


def affordable(seconds_per_sample: float, budget_s: float, members: int) -> int:
    """Return how many volumes to make: what the time allows, from 200 to ten a training patient.

    Args:
        seconds_per_sample: s, above 0.
        budget_s: s that may go into making them.
        members: patients who trained; for fewer than 20 it is 200 all the same.
    """
    fitting = int(budget_s / seconds_per_sample)
    return max(FEWEST, min(fitting, MOST_A_PATIENT * members))


def draw(family: Family, takes: Conditioning, weights_digest: str, handful: int) -> Batch:
    """Return the volumes of a handful, (4, 1, D, H, W), and what the model was told, on the CPU.

    Raises:
        PlanError: the family is told an image, which only a site has.
    """
    generator = _generator(weights_digest, handful)
    told = takes.prior(HANDFUL, generator)
    with torch.no_grad():
        volumes = family.sample(HANDFUL, condition=told, generator=generator)
    return Batch(volumes.float().cpu(), told)


def make(
    family: Family,
    takes: Conditioning,
    weights_digest: str,
    n: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSet:
    """Return a set of `n` volumes; of the last handful only what is needed.

    Args:
        family: the model in evaluation mode, with the weights of that digest.
        takes: what it is told.
        weights_digest: SHA-256 of the weights' bytes, in hexadecimal.
        n: how many, 1 or more.
        progress: called after each handful with what is done and the total.

    Raises:
        PlanError: as in `draw`; then a site makes the set itself, from its own patients' images.
        WireError: the model drew a value that is not finite.
    """
    made = []
    for first in range(0, n, HANDFUL):
        made.append(draw(family, takes, weights_digest, first // HANDFUL).volumes.half())
        if progress is not None:
            progress(min(first + HANDFUL, n), n)
    content = to_bytes({NAME: torch.cat(made)[:n].contiguous()})
    return SyntheticSet(content, hashlib.sha256(content).hexdigest())


def read(
    received: SyntheticSet, takes: Conditioning, weights_digest: str, shape: Sequence[int]
) -> Batch:
    """Return the volumes of a set, float32, and what the model was told, which the seeds tell.

    Args:
        received: the set as it came.
        takes: what the family is told.
        weights_digest: of the weights that the site audits.
        shape: of a volume, (1, D, H, W).

    Raises:
        VerificationError: the digest is another, or these are no volumes of that shape in [-1, 1].
    """
    digest = hashlib.sha256(received.content).hexdigest()
    if digest != received.digest:
        raise VerificationError(
            "the synthetic set is not the one that was named", got=digest, expected=received.digest
        )
    try:
        tensors = from_bytes(received.content)
    except WireError as fault:
        raise VerificationError(f"the synthetic set cannot be read: {fault.what}") from None
    volumes = tensors.get(NAME, torch.empty(0))
    fits = set(tensors) == {NAME} and volumes.dtype == torch.float16
    if not fits or not len(volumes) or tuple(volumes.shape[1:]) != tuple(shape):
        raise VerificationError(
            "the synthetic set holds no volumes of the study",
            got=f"{tuple(volumes.shape)} {volumes.dtype}",
            expected=f"(M, {', '.join(map(str, shape))}) torch.float16",
        )
    if volumes.abs().max() > 1:
        raise VerificationError("synthetic volumes leave [-1, 1]", got=float(volumes.abs().max()))
    return Batch(volumes.float(), _told(takes, weights_digest, len(volumes)))


def check(
    family: Family,
    takes: Conditioning,
    weights_digest: str,
    received: Batch,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> int:
    """Make a random 1 % of a set again, with the rest of each handful, and return how many.

    At least 2 handfuls are made where there are 2.

    Guarantee:
        A set of which a share s of the handfuls is of another model passes with a chance of about
        (1 - s)^k, k the handfuls: a set of another model as a whole is found.
    Assumes:
        The coordinator does not know which volumes a site will choose.

    Raises:
        VerificationError: one disagrees.
        PlanError: as in `draw`.
    """
    volumes = received.volumes
    total = -(-len(volumes) // HANDFUL)
    count = min(total, max(FEWEST_CHECKED, round(CHECKED * len(volumes))))
    checked = 0
    for handful in choose(total, count, random_bytes=random_bytes):
        made = draw(family, takes, weights_digest, handful).volumes
        there = volumes[handful * HANDFUL :][:HANDFUL]
        for number, (one, other) in enumerate(zip(made, there, strict=False)):
            outside = disagreement(one, other)
            if outside > SHARE:
                raise VerificationError(
                    f"volume {handful * HANDFUL + number} of the synthetic set is not of the"
                    " weights that are audited",
                    got=f"{outside:.1%} of its voxels off by more than {TOLERANCE}",
                    expected=f"at most {SHARE:.0%}",
                    hint="the coordinator must make the set from the weights it sends",
                )
        checked += len(there)
    return checked


def disagreement(made: Tensor, received: Tensor) -> float:
    """Return the share of voxels of two volumes that differ by more than `TOLERANCE`."""
    return float(((made.cpu().half().float() - received.float()).abs() > TOLERANCE).float().mean())


def made_by_coordinator(takes: Conditioning) -> bool:
    """Return whether a coordinator can make the set: the family is told no image."""
    return not takes.planes


def _told(takes: Conditioning, weights_digest: str, n: int) -> Condition:
    if not made_by_coordinator(takes):
        raise PlanError(
            "a synthetic set cannot be told images",
            got=takes.kind,
            expected="a class, attributes or nothing",
            hint="the site makes the set itself",
        )
    handfuls = range(-(-n // HANDFUL))
    told = [takes.prior(HANDFUL, _generator(weights_digest, handful)) for handful in handfuls]
    return joined_conditions(told).mapped(lambda x: x[:n])


def _generator(weights_digest: str, handful: int) -> torch.Generator:
    """Return a handful's own generator, on the CPU: its draws are alike everywhere."""
    seed = hashlib.sha256(f"{weights_digest} {handful}".encode()).hexdigest()
    return torch.Generator().manual_seed(int(seed[:15], 16))
