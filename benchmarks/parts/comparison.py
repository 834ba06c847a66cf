"""What the federation and privacy cost in quality: pooled, federated, alone, and at epsilon 8.

Three sites of 16 patients each take equal steps with the trainer of the sites and the mean of the
coordinator, in one process; three seeds are three splits that test different patients. Public
weights are trained on phantoms. Volumes have 16 voxels a side, with --long, for a GPU, 32: the 20
arms at 32 take three hours of a core.

    python benchmarks/families.py --compare [--long | --quick] [--json]
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from parts.cohort import Cohort, Volumes, read_volumes
from parts.material import (
    BATCH,
    draw,
    in_the_open,
    judge,
    make_extractor,
    mean_figures,
    plan_of,
    surroundings,
)
from voxfed.client.training import Trainer, choose_device
from voxfed.models.base import Batch, Family
from voxfed.models.fitting import fit
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.quality.features import Extractor
from voxfed.models.registry import build
from voxfed.models.state import from_bytes, tensors_of, to_bytes
from voxfed.models.trained import stage_parameters
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.terms import agree, declared_size
from voxfed.server.aggregation import RunningMean

FAMILIES = ("vae", "wgan-gp", "latent-diffusion", "wavelet-diffusion")
SITES = 3
EPSILON = 8.0
EXPECTED = 4  # patients of a site in a step
POOLED, FEDERATED, ALONE = "pooled", "federated", "each site alone"
PRIVATE, FROM_PUBLIC = "epsilon 8", "epsilon 8, public weights"
ARMS = (POOLED, FEDERATED, ALONE, PRIVATE, FROM_PUBLIC)
FEDERATION_COSTS, PRIVACY_COSTS = 1.05, 2.0
"""Most of the pooled FID, of federated training and of epsilon 8 from public weights."""


class Length(NamedTuple):
    """Rounds of a stage, local steps in each, seeds, a volume's side in voxels, and samples."""

    rounds: int
    local_steps: int
    seeds: int
    side: int
    samples: int

    @property
    def steps(self) -> int:
        """Optimiser steps of a stage, in every arm."""
        return self.rounds * self.local_steps


FULL, LONG, QUICK = Length(75, 4, 3, 16, 24), Length(75, 4, 3, 32, 24), Length(1, 2, 1, 16, 8)


class Site(NamedTuple):
    """The patients of a site, one volume each, as the trainer reads them."""

    volumes: Volumes
    device: torch.device

    @property
    def members(self) -> tuple[str, ...]:
        """The patients' names."""
        return tuple(str(n) for n in range(len(self.volumes)))

    def batches(self, patient: str) -> list[Batch]:
        """Return a patient's volume."""
        return [Batch(torch.from_numpy(self.volumes[int(patient)][None]).to(self.device))]


def trainer_for(family: str, arm: str, sites: Sequence[Site], length: Length) -> Trainer:
    """Return what trains a family in one arm, for sites of one size.

    From public weights the example's own part of the family is trained, at its own rate.
    """
    changes: dict[str, Any] = {} if arm == FROM_PUBLIC else in_the_open(family)
    changes |= {
        "rounds": length.rounds,
        "local_steps": length.local_steps,
        "expected_patients": EXPECTED * SITES if arm == POOLED else EXPECTED,
        "audit_fraction": 0.01,
        "privacy": {"enabled": arm in (PRIVATE, FROM_PUBLIC), "epsilon": EPSILON},
    }
    plan = plan_of(family, length.side, **changes)
    terms = agree(plan, declared_size(len(sites[0].volumes)))
    return Trainer(plan, terms, sites[0].device, PerformanceSettings())


def federate(trainer: Trainer, weights: bytes, sites: Sequence[Site], length: Length) -> Family:
    """Return the family after all rounds of all stages, from first weights."""
    family = trainer.family
    for stage in family.stages:
        for _ in range(length.rounds):
            mean = RunningMean(weights, stage_parameters(family, stage), 1e9)
            for site in sites:
                trainer.load(from_bytes(weights))
                mean.add(to_bytes(trainer.train(stage, site, site.members)), len(site.volumes))
            weights = mean.apply()
    trainer.load(from_bytes(weights))
    return family


def first_weights(name: str, seed: int, length: Length, device: torch.device) -> Family:
    """Return the family that all arms of a seed start from."""
    return build(plan_of(name, length.side, name=f"seed-{seed}", **in_the_open(name))).to(device)


def teach_phantoms(name: str, family: Family, length: Length) -> None:
    """Train a family on phantoms for as many steps: what it then knows is public."""
    phantoms = draw_phantoms(200, (length.side,) * 3, np.random.default_rng(2))
    for stage in family.stages:
        fit(
            family,
            stage,
            Batch(phantoms.to(next(family.parameters()).device)),
            steps=length.steps,
            batch=BATCH,
            learning_rate=in_the_open(name)["optimiser"]["learning_rate"],
            generator=torch.Generator().manual_seed(0),
        )


def train(name: str, arm: str, volumes: Volumes, seed: int, length: Length) -> list[Volumes]:
    """Return samples of the models that an arm ends with: one, or one a site where alone."""
    device = choose_device("auto")
    first = first_weights(name, seed, length, device)
    if arm == FROM_PUBLIC:
        teach_phantoms(name, first, length)
    weights = to_bytes(tensors_of(first))
    parts = [Site(part, device) for part in np.array_split(volumes, SITES)]
    groups = {POOLED: [[Site(volumes, device)]], ALONE: [[part] for part in parts]}
    found = []
    for sites in groups.get(arm, [parts]):
        model = federate(trainer_for(name, arm, sites, length), weights, sites, length)
        found.append(draw(model, length.samples, device))
    return found


def measure(
    name: str, arm: str, cohort: Cohort, extractor: Extractor, length: Length
) -> dict[str, Any]:
    """Return the row of a family in one arm: its figures over seeds and models."""
    figures, distances = [], []
    for seed in range(length.seeds):
        fold = cohort.fold(seed)
        found = [judge(extractor, *fold, x) for x in train(name, arm, fold[0], seed, length)]
        figures += found
        distances.append(statistics.mean(f.value for one in found for f in one if f.name == "FID"))
    return {"case": f"{name}, {arm}", "fid_by_seed": distances, "figures": mean_figures(figures)}


def reached(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is to be reached: the FID of two arms over that of the pooled one."""
    fids = {row["case"]: row["figures"]["FID"]["value"] for row in rows}
    found = {}
    for name in FAMILIES:
        for arm, limit in ((FEDERATED, FEDERATION_COSTS), (FROM_PUBLIC, PRIVACY_COSTS)):
            value = fids[f"{name}, {arm}"] / fids[f"{name}, {POOLED}"]
            unit = "times the pooled FID, at most"
            line = {"value": value, "limit": limit, "unit": unit, "holds": value <= limit}
            found[f"{name}, {arm}"] = line
    return found


def compare_all(length: Length, *, document: bool) -> None:
    """Run every family in every arm and print a table, or one JSON document."""
    cohort = read_volumes(length.side)
    extractor = make_extractor(min(length.side, 24), 30 if length == QUICK else 300)
    found: dict[str, Any] = {**surroundings(cohort, extractor), "length": length._asdict()}
    if not document:
        print(f"{found['device']}, {found['threads']} threads; {found['data']}; {length}")
        print(f"{'':<46}{'KID':>8}{'coverage':>10}{'FID (real)':>18}  FID by seed")
    found["cases"] = []
    for name, arm in itertools.product(FAMILIES, ARMS):
        row = measure(name, arm, cohort, extractor, length)
        found["cases"].append(row)
        if not document:
            print(show(row), flush=True)
    found["reach"] = reached(found["cases"])
    if document:
        print(json.dumps(found, indent=1))
        return
    for what, line in found["reach"].items():
        state = "holds" if line["holds"] else "MISSED"
        print(f"{what:<46}{line['value']:>8.2f}  limit {line['limit']}: {state}")


def show(row: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    figures = row["figures"]
    kid, coverage, fid = (figures[name]["value"] for name in ("KID", "coverage", "FID"))
    beside = f"{fid:.1f} ({figures['FID']['real']:.1f})"
    seeds = " ".join(f"{value:.1f}" for value in row["fid_by_seed"])
    return f"{row['case']:<46}{kid:>8.2f}{coverage:>10.2f}{beside:>18}  {seeds}"
