"""What one patient's update gives away: the patient drawn from it, without privacy and with.

For each victim a site's update is made of that patient alone; the attacker knows the weights, the
draws of the loss and 300 public phantoms, and does not know which of the other patients it was.
Without privacy the update is the plain gradient; with it, what the privacy engine releases at
epsilon 8, the patient being drawn for sure, attacked by two matchings.

    python benchmarks/gradient_inversion.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from parts.cohort import read_volumes
from parts.material import plan_of
from scipy.stats import norm
from torch import Tensor
from voxfed.models.base import Batch, Step
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.models.registry import build
from voxfed.privacy.audit.gradient_inversion import (
    Likeness,
    Matching,
    as_one,
    by_tensor,
    compare,
    gradient,
    invert,
    learn_prior,
)
from voxfed.privacy.calibration import calibrate_sigma
from voxfed.privacy.engine import StepSettings, private_gradient
from voxfed.privacy.gradients.patients import PatientGradients

FAMILIES: dict[str, dict[str, Any]] = {
    "vae": {"channels": [8, 16]},
    "wgan-gp": {"critic_channels": [16, 32]},
}
PATIENTS, PUBLIC = 51, 300
"""One victim among 50 others; and the phantoms that the attacker knows."""
EPSILON, DELTA, CLIP_NORM = 8.0, 1e-5, 0.1
RATE, STEPS = 0.25, 225
"""The study that the noise is calibrated for: 12 of 48 patients a step, 75 rounds of 3 steps."""
CHANCE = 0.001
"""Below this p-value, ranks are no chance."""


class Length(NamedTuple):
    """How much is measured: data, a side in voxels, victims in the open and private, turns."""

    data: tuple[str, ...]
    side: int
    in_the_open: int
    private: int
    turns: int


FULL = Length(("phantoms", "patients"), 16, 6, 8, 100)
QUICK = Length(("phantoms",), 8, 2, 3, 50)


class Target(NamedTuple):
    """A step, the weights that its update is made at, and the engine's way to its gradients."""

    step: Step
    parameters: list[Tensor]
    gradients: PatientGradients


def target(family: str, side: int) -> Target:
    """Return a fresh model's first turn that reads patients."""
    torch.manual_seed(0)
    model = build(plan_of(family, side, trained="all", settings=FAMILIES[family]))
    step = next(one for one in model.steps(model.stages[0]) if one.reads_patients)
    named = dict(model.named_parameters())
    parameters = [named[name] for name in step.parameters]
    nobody = Batch(draw_phantoms(2, (side,) * 3, np.random.default_rng(2)))
    return Target(step, parameters, PatientGradients(model, step, parameters, nobody))


def plain(aim: Target, volume: Tensor) -> list[Tensor]:
    """Return the update of one patient as training without privacy makes it."""
    return gradient(aim.step, aim.parameters, Batch(volume), seed=0)


def private(aim: Target, volume: Tensor, sigma: float) -> list[Tensor]:
    """Return the update of one patient as the privacy engine releases it."""
    settings = StepSettings(1.0, 1.0, CLIP_NORM, sigma, 1, 1)
    generator = torch.Generator().manual_seed(0)
    return private_gradient(
        aim.gradients, ["victim"], lambda _: [Batch(volume)], settings, generator
    )


def volumes_of(data: str, side: int) -> tuple[Tensor, str]:
    """Return 51 patients, (51, 1, D, H, W), and where they are from."""
    if data == "phantoms":
        return draw_phantoms(PATIENTS, (side,) * 3, np.random.default_rng(1)), data
    cohort = read_volumes(side)
    return torch.from_numpy(cohort.volumes[:PATIENTS]).float(), cohort.source


def rank_p_value(ranks: Sequence[int], patients: int) -> float:
    """Return how often ranks drawn blindly have so low a mean, by the normal law."""
    spread = math.sqrt((patients**2 - 1) / 12 / len(ranks))
    return float(norm.cdf((statistics.mean(ranks) - (patients + 1) / 2) / spread))


def summary(case: str, found: Sequence[Likeness], seconds: float) -> dict[str, Any]:
    """Return a row of means over victims."""
    mean = {x: statistics.mean(getattr(one, x) for one in found) for x in vars(found[0])}
    ranks = [one.rank for one in found]
    return {
        "case": case,
        "victims": len(found),
        **mean,
        "psnr_difference": mean["psnr"] - mean["other_psnr"],
        "correlation_difference": mean["correlation"] - mean["other_correlation"],
        "first": ranks.count(1) / len(ranks),
        "rank_p": rank_p_value(ranks, PATIENTS),
        "seconds": seconds / len(found),
    }


def measure(family: str, data: str, length: Length, sigma: float) -> list[dict[str, Any]]:
    """Return the rows of one family and one source of patients: in the open, then private."""
    shape = (length.side,) * 3
    patients, source = volumes_of(data, length.side)
    prior = learn_prior(draw_phantoms(PUBLIC, shape, np.random.default_rng(99)))
    aim = target(family, length.side)

    def row(
        case: str, victims: int, leave: Callable[[Tensor], list[Tensor]], matching: Matching
    ) -> dict[str, Any]:
        began, found = time.perf_counter(), []
        for n in range(victims):
            update = leave(patients[n : n + 1])
            volume = invert(
                aim.step, aim.parameters, update, prior, turns=length.turns, matching=matching
            )
            found.append(compare(volume, patients, n, prior.mean))
        return summary(f"{family}, {source}, {case}", found, time.perf_counter() - began)

    hidden = partial(private, aim, sigma=sigma)
    return [
        row("no privacy", length.in_the_open, partial(plain, aim), by_tensor),
        row(f"epsilon {EPSILON:g}", length.private, hidden, by_tensor),
        row(f"epsilon {EPSILON:g}, as one", length.private, hidden, as_one),
    ]


def reach_of(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the figures must show, and whether they do."""
    found = min(one["first"] for one in cases if "no privacy" in one["case"])
    hidden = min(one["rank_p"] for one in cases if "no privacy" not in one["case"])
    share = {"unit": "share of the victims who rank first, at least", "limit": 1.0}
    chance = {"unit": "p-value of the victims' ranks, at least", "limit": CHANCE}
    return {
        "found_without_privacy": {"value": found, "holds": found >= 1.0, **share},
        "not_found_with_privacy": {"value": hidden, "holds": hidden >= CHANCE, **chance},
    }


def main() -> None:
    """Attack, and print a table, or one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="phantoms of side 8, a minute")
    arguments.add_argument("--json", action="store_true", help="one JSON document")
    wanted = arguments.parse_args()
    length = QUICK if wanted.quick else FULL
    sigma = calibrate_sigma(rate=RATE, steps=STEPS, epsilon=EPSILON, delta=DELTA)
    cases = []
    for family in FAMILIES:
        for data in length.data:
            cases += measure(family, data, length, sigma)
            for one in () if wanted.json else cases[-3:]:
                print(
                    f"{one['case']}: {one['victims']} victims, side {length.side}; PSNR "
                    f"{one['psnr']:.1f} dB, nearest other {one['other_psnr']:.1f} "
                    f"({one['psnr_difference']:+.1f}); correlation {one['correlation']:.2f}, "
                    f"likeliest other {one['other_correlation']:.2f} "
                    f"({one['correlation_difference']:+.2f}); mean rank {one['rank']:.1f} of "
                    f"{PATIENTS}, first {one['first']:.0%}; {one['seconds']:.1f} s",
                    flush=True,
                )
    reach = reach_of(cases)
    if wanted.json:
        versions = {name: version(name) for name in ("voxfed", "torch", "monai")}
        device = platform.processor() or "cpu"
        document = {"device": device, "versions": versions, "cases": cases, "reach": reach}
        print(json.dumps(document | {"sigma": sigma}, indent=1))
        return
    print(f"sigma {sigma:.2f}, clip norm {CLIP_NORM}, epsilon {EPSILON:g}, delta {DELTA:g}")
    for what, line in reach.items():
        state = "holds" if line["holds"] else "MISSED"
        print(f"{what}: {line['value']:.3g}, {line['unit']} {line['limit']}: {state}")


if __name__ == "__main__":
    main()
