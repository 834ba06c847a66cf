"""All scores on real families: repeatable, of one patient alone, and telling of over-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from families import NAMES, balls, batch_of, tiny
from scipy.stats import mannwhitneyu
from voxfed.models.base import Batch, Family, rows_of
from voxfed.models.fitting import fit
from voxfed.models.registry import FAMILIES
from voxfed.privacy.audit.scores.score import HALVED, Context, Threat
from voxfed.privacy.audit.scores.table import SCORES, applicable

CUBE = (8, 8, 8)
CONTEXT = Context(seed=2**62 + 1)
LEAST_AUC = 0.8


def test_every_family_has_a_score_and_every_score_a_family() -> None:
    """A family without one could never be released; a score without one says nothing."""
    taken = {name: {score.name for score in applicable(tiny(name), CONTEXT)} for name in NAMES}
    assert all(taken.values())
    needy = {score.name for score in SCORES if score.needs}
    assert set().union(*taken.values()) == {score.name for score in SCORES} - needy


def test_scores_that_need_a_reference_are_known_to_halve_those_held_out() -> None:
    """Their coins are not fair, so that they must prove nothing about epsilon."""
    assert {score.name for score in SCORES if "reference" in score.needs} == HALVED


def test_scores_are_told_apart_by_name() -> None:
    """Their histograms leave a site under it."""
    assert len({score.name for score in SCORES}) == len(SCORES)
    for score in SCORES:
        assert score.what
        assert score.paper
        assert isinstance(score.threat, Threat)


def test_a_score_is_left_out_where_what_it_needs_is_not_there() -> None:
    family, volumes = tiny("vae"), Batch(balls(2))
    without = {score.name for score in applicable(family, CONTEXT)}
    with_samples = {score.name for score in applicable(family, Context(seed=1, made=volumes))}
    assert with_samples - without == {"nearest sample", "Monte Carlo"}


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_patients_alone(name: str) -> None:
    """Finite, and the same to the bit whoever was scored before and whatever else was drawn."""
    family, batch = tiny(name).eval(), batch_of(name, 3)
    for score in applicable(family, CONTEXT):
        torch.manual_seed(1)
        measure = score.prepare(family, CONTEXT)
        found = [measure(rows_of(batch, slice(i, i + 1))) for i in range(3)]
        torch.manual_seed(2)
        again = score.prepare(family, CONTEXT)(rows_of(batch, slice(2, 3)))
        assert found[2].shape == (1,), score.name
        assert bool(torch.stack(found).isfinite().all()), score.name
        assert torch.equal(found[2], again), score.name


@dataclass(frozen=True)
class Lesson:
    """How a family learns six volumes by heart in seconds.

    Attributes:
        family: its name.
        settings: of the family.
        steps: of each stage.
        telling: the scores that must tell members.
        rate: learning rate.
    """

    family: str
    settings: dict[str, Any]
    steps: tuple[int, ...]
    telling: tuple[str, ...]
    rate: float = 1e-2


def denoiser(prediction: str) -> dict[str, Any]:
    return {"denoiser": {"channels": [8], "groups": 4, "code": 8, "prediction": prediction}}


DIFFUSION = ("denoising loss", "SecMI", "PIA", "SimA")
VAE = ("reconstruction", "likelihood bound", "importance-weighted bound")
AUTOENCODER = {"channels": [8], "groups": 4, "latent_channels": 4, "kl_weight": 0.002}
GAN = {"channels": [8], "critic_channels": [8, 16], "groups": 4, "code": 6, "critic_turns": 3}
CODES = {"codes": {"channels": [8], "groups": 4, "entries": 64}, "prior_channels": 16}
LESSONS = {
    "vae": Lesson("vae", {**AUTOENCODER, "code": 8}, (80,), VAE),
    "v": Lesson("diffusion", denoiser("v"), (150,), DIFFUSION),
    "epsilon": Lesson("diffusion", denoiser("epsilon"), (150,), (*DIFFUSION, "PIAN")),
    "critic": Lesson("wgan-gp", {**GAN, "generated": 6}, (60,), ("critic",), 3e-3),
    "codes": Lesson("vqvae", CODES, (60, 40), ("reconstruction", "likelihood bound")),
}
SLOW = {
    "flow": Lesson("wavelet-diffusion", denoiser("flow"), (300,), DIFFUSION),
    "slabs": Lesson("diffusion-2.5d", denoiser("flow"), (300,), DIFFUSION),
    "latents": Lesson(
        "latent-diffusion", {"autoencoder": AUTOENCODER, **denoiser("v")}, (80, 300), VAE
    ),
    "pixels": Lesson("pixel-cnn", {"channels": 8, "dilations": [1, 2]}, (150,), VAE[1:2]),
}
ALL = [*LESSONS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def phantoms(n: int) -> Batch:
    """Balls of different places and sizes, each with a texture of its own."""
    texture = torch.randn((n, 1, *CUBE), generator=torch.Generator().manual_seed(5))
    return Batch((balls(n, CUBE) + 0.3 * texture).clamp(-1, 1))


def untrained(lesson: Lesson) -> Family:
    entry = FAMILIES[lesson.family]
    torch.manual_seed(1)
    return entry.family(entry.spec.model_validate({**lesson.settings, "shape": CUBE})).eval()


def scores(family: Family, public: Batch, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return each wanted score of each volume."""
    found = {}
    for score in applicable(family, CONTEXT):
        if score.name in wanted:
            measure = score.prepare(family, CONTEXT)
            rows = [rows_of(public, slice(i, i + 1)) for i in range(len(public.volumes))]
            found[score.name] = np.array([float(measure(row)) for row in rows])
    assert set(found) == set(wanted)
    return found


@pytest.mark.parametrize("name", ALL)
def test_six_volumes_learned_by_heart_are_told_from_six_others(name: str) -> None:
    """A score that misses what is easiest to see says nothing where it finds nothing."""
    lesson, public = {**LESSONS, **SLOW}[name], phantoms(12)
    family, members = untrained(lesson), torch.arange(0, 12, 2)
    draws = torch.Generator().manual_seed(2)
    for stage, steps in zip(family.stages, lesson.steps, strict=True):
        known = rows_of(public, members)
        fit(family, stage, known, steps=steps, batch=6, learning_rate=lesson.rate, generator=draws)
    for score, values in scores(family.eval(), public, lesson.telling).items():
        chance = mannwhitneyu(values[::2], values[1::2]).statistic / 36
        assert chance >= LEAST_AUC, score


@pytest.mark.parametrize("name", ALL)
def test_an_untrained_model_tells_nobody_apart(name: str) -> None:
    """It knows neither group, and scores them alike (rank test, two-sided, at 1 %)."""
    lesson, public = {**LESSONS, **SLOW}[name], phantoms(24)
    for score, values in scores(untrained(lesson), public, lesson.telling).items():
        assert mannwhitneyu(values[::2], values[1::2]).pvalue > 0.01, score
