"""The models that the benchmark of the audit attacks: over-trained ones, and ones at epsilon 3."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from parts.comparison import Length, Site, federate
from parts.material import plan_of
from torch import Tensor
from voxfed.client.training import Trainer
from voxfed.models.base import Batch, Family
from voxfed.models.fitting import fit
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.registry import build
from voxfed.models.state import tensors_of, to_bytes
from voxfed.privacy.audit.attack import Groups
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.terms import agree, declared_size

SIDE, PATIENTS = 16, 20
EPSILON, LOCAL_STEPS = 3.0, 10


class Pupil(NamedTuple):
    """A family's settings, learning rate, steps after which it is attacked, and models at each."""

    settings: dict[str, Any]
    rate: float
    steps: tuple[int, ...]
    models: int


PUPILS = {
    "vae": Pupil({"channels": [8, 16], "kl_weight": 0.002}, 1e-2, (20, 60, 200), 3),
    "diffusion": Pupil(
        {"denoiser": {"channels": [16, 32], "sampling_steps": 20}}, 3e-3, (100, 200, 600), 1
    ),
}


def coins(volumes: Tensor, seed: int) -> tuple[Groups, Tensor]:
    """Return patients of whom half are members by fair coins, and the members' volumes."""
    order = np.random.default_rng(seed).permutation(len(volumes))
    half = len(volumes) // 2
    groups = [
        {f"{n:03d}": [Batch(volumes[n : n + 1])] for n in chosen}
        for chosen in (order[:half], order[half:])
    ]
    return Groups(*groups, frozenset()), volumes[order[:half]]


def overtrain(name: str, steps: int, seed: int) -> tuple[Family, Groups]:
    """Return a model that took so many steps on its 20 members."""
    settings, rate = PUPILS[name][:2]
    plan = plan_of(name, SIDE, name=f"seed-{seed}", trained="all", settings=settings)
    volumes = draw_phantoms(2 * PATIENTS, (SIDE,) * 3, np.random.default_rng(seed))
    groups, members = coins(volumes, seed)
    family = build(plan)
    for stage in family.stages:
        fit(
            family,
            stage,
            Batch(members),
            steps=steps,
            batch=8,
            learning_rate=rate,
            generator=torch.Generator().manual_seed(seed),
        )
    return family, groups


def privately(name: str, rounds: int, seed: int) -> tuple[Family, Groups]:
    """Return a model trained on its 20 members by a site's trainer at epsilon 3."""
    settings, rate = PUPILS[name][:2]
    plan = plan_of(
        name,
        SIDE,
        trained="all",
        settings=settings,
        rounds=rounds,
        local_steps=LOCAL_STEPS,
        expected_patients=4,
        audit_fraction=0.01,
        optimiser={"learning_rate": rate},
        privacy={"epsilon": EPSILON, "audit_counts": "exact"},
    )
    volumes = draw_phantoms(2 * PATIENTS, (SIDE,) * 3, np.random.default_rng(seed))
    groups, members = coins(volumes, seed)
    training = Length(rounds, LOCAL_STEPS, 1, SIDE, 0)
    site = Site(members.numpy(), torch.device("cpu"))
    terms = agree(plan, declared_size(PATIENTS))
    trainer = Trainer(plan, terms, site.device, PerformanceSettings())
    weights = to_bytes(tensors_of(trainer.family))
    return federate(trainer, weights, [site], training), groups
