"""Shadow models: references that a site trains on halves of its audited patients, and drops.

They are made as the audited model was, but by one site alone and without privacy, so they never
leave: nothing of them is written down, and each is forgotten once it has told how well it knows
every patient (Shokri et al., S&P 2017; Carlini et al., S&P 2022).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...models.base import Batch, Family, joined
from ...models.fitting import fit
from ...models.registry import schedule_of
from ...study.errors import UsageError
from ...study.plan import StudyPlan
from ..sampling import choose
from .reference import Flags, Values, offline_lira, rmia
from .scores.score import LIRA, RMIA

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Lessons:
    """How each reference model is trained.

    Attributes:
        models: how many.
        fresh: returns the family with the study's first weights, on the device of the volumes.
        steps: local steps of each stage, in the stages' order.
        batch: volumes drawn for a step.
        learning_rate: of Adam, at the first step.
    """

    models: int
    fresh: Callable[[], Family]
    steps: Mapping[str, int]
    batch: int
    learning_rate: float


def lessons_of(plan: StudyPlan, fresh: Callable[[], Family]) -> Lessons:
    """Return how a plan trains its references: for as long as a site trains in the study."""
    return Lessons(
        plan.privacy.reference_models,
        fresh,
        local_steps(plan),
        plan.expected_patients,
        plan.optimiser.learning_rate,
    )


def local_steps(plan: StudyPlan) -> dict[str, int]:
    """Return the local steps that a site takes in the whole study, by stage."""
    stages = schedule_of(plan).stages
    return {stage.name: stage.rounds * plan.local_steps for stage in stages if stage.rounds}


def halves(n: int, models: int, *, random_bytes: Callable[[int], bytes] = os.urandom) -> Flags:
    """Draw which patients each reference trains on, (R, n).

    References come in pairs that share out the patients, so that each patient is inside of one and
    outside of the other; an odd last one has a half of its own.

    Args:
        n: patients, 2 at least.
        models: R, 2 at least.
        random_bytes: tests only; n -> n random bytes.

    Raises:
        UsageError: too few patients or models.
    """
    if n < 2 or models < 2:
        raise UsageError(
            "reference models cannot be trained",
            got=f"{n} patients, {models} models",
            expected="2 patients and 2 models, or more",
        )
    trained = np.zeros((models, n), dtype=bool)
    for number in range(0, models, 2):
        trained[number, choose(n, n // 2, random_bytes=random_bytes)] = True
        if number + 1 < models:
            trained[number + 1] = ~trained[number]
    return trained


def reference_scores(
    target: Values,
    patients: Sequence[Sequence[Batch]],
    known: Callable[[Family], Values],
    lessons: Lessons,
    seed: int,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
    progress: Progress = lambda *_: None,
) -> dict[str, Values]:
    """Train the references and return each patient's RMIA and LiRA score, (n,), by name.

    RMIA compares each patient with all others instead of those held out: the order of patients is
    the same, and no score depends on another patient's coin. LiRA needs two references that
    never met the same patient, which 3 references have and 2 have not.

    Args:
        target: how well the audited model knows each patient, (n,), higher for members.
        patients: each one's volumes, members and held-out alike, in an order no coin has set.
        known: the same of any model in evaluation mode, (n,).
        lessons: how to train.
        seed: of the training's draws.
        random_bytes: tests only; draws the halves.
        progress: told after each step what is done, of how many, and of which reference.

    Guarantee:
        None: references have no privacy, and no epsilon covers a score that is drawn from them.
    Assumes:
        Neither references nor scores leave the site, but as histograms of many patients.

    Raises:
        UsageError: fewer than 2 patients or models.
        ProcessError: a reference's training diverged.
    """
    trained = halves(len(patients), lessons.models, random_bytes=random_bytes)
    rows = []
    for number, inside in enumerate(trained):
        given = joined([x for own, met in zip(patients, inside, strict=True) if met for x in own])
        name = f"reference model {number + 1} of {lessons.models}"
        rows.append(known(_train(lessons, given, (seed + number) % 2**63, name, progress)))
    references = np.stack(rows)
    found = {RMIA: rmia(target, references, trained, np.ones(len(target), dtype=bool))}
    if (~trained).sum(0).max() > 1:
        found[LIRA] = offline_lira(target, references, trained)
    return found


def _train(lessons: Lessons, given: Batch, seed: int, name: str, progress: Progress) -> Family:
    """Return a reference in evaluation mode."""
    family, generator = lessons.fresh(), torch.Generator().manual_seed(seed)
    family.train()
    for stage, steps in lessons.steps.items():
        fit(
            family,
            stage,
            given,
            steps=steps,
            batch=lessons.batch,
            learning_rate=lessons.learning_rate,
            generator=generator,
            progress=lambda step, of, _: progress(step, of, name),
        )
    return family.eval()
