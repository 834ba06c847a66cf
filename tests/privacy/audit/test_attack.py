"""One site's whole attack finds what is planted, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import balls, tiny
from torch import Tensor
from voxfed.models.base import Batch, Family, Reconstructs
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.privacy.audit.attack import Attacked, Groups, attack
from voxfed.privacy.audit.copies.spaces import VOXELS
from voxfed.privacy.audit.scores.score import BLIND, FUSED
from voxfed.privacy.audit.statistics import BinnedScores, auc
from voxfed.study.errors import VolumeError

SHAPE = (16, 16, 16)
N = 16


class Memory(Family):
    """Gives back what it saw bit by bit, and everything else with an error."""

    stages = ("memory",)

    def __init__(self, seen: Tensor, gap: float) -> None:
        super().__init__()
        self.seen, self.gap = seen, gap
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def steps(self, stage: str) -> tuple[()]:
        return ()

    def reconstruct(self, batch: Batch) -> Tensor:
        known = (batch.volumes == self.seen).flatten(1).all(1).any()
        error = 0.1 + 0.02 * float(batch.volumes.mean()) + self.gap * (not known)
        return batch.volumes + error

    def sample(self, n: int, **_: object) -> Tensor:
        return self.seen[:n]


def run(seen: int, made: Tensor, gap: float = 0.5, shift: float = 0.0) -> Attacked:
    """Attack a model that knows the first `seen` of the members."""
    volumes = draw_phantoms(2 * N, SHAPE, np.random.default_rng(0))
    volumes[N:] = (volumes[N:] + shift).clamp(-1, 1)
    names = [f"{n:02d}" for n in np.random.default_rng(1).permutation(2 * N)]
    table = {name: [Batch(volume[None])] for name, volume in zip(names, volumes, strict=True)}
    family = Memory(volumes[:seen], gap)
    groups = Groups(
        {name: table[name] for name in names[:N]},
        {name: table[name] for name in names[N:]},
        frozenset(names[N : N + N // 2]),
    )
    assert isinstance(family, Reconstructs)
    return attack(family, groups, Batch(made), seed=7, extract=None)


def area(found: Attacked, score: str) -> float:
    counts = found.scores[score]
    return auc(BinnedScores(counts.members, counts.non_members)).value


STRANGERS = draw_phantoms(40, SHAPE, np.random.default_rng(5))


def test_a_model_that_knows_its_members_is_found() -> None:
    """The positive control: what it gives back tells who trained; so do all scores together."""
    found = run(N, STRANGERS)
    assert area(found, "reconstruction") > 0.95
    assert area(found, FUSED) > 0.8
    assert {"nearest sample", "Monte Carlo", BLIND} <= set(found.scores)


def test_a_model_that_knows_nobody_is_not() -> None:
    """The negative control: alike for both groups, and no patient looks copied beyond chance."""
    found = run(0, STRANGERS)
    assert 0.25 < area(found, "reconstruction") < 0.75
    copied = found.found.spaces["voxels"]
    assert abs(copied.memorised_members - copied.memorised_non_members) <= 4


def test_samples_that_are_members_are_copies() -> None:
    """Of every member who is drawn the own volume is found, and nobody else matches exactly.

    Who is compared is drawn anew each time. A sample of a member who was not drawn is near to
    somebody else, and may by chance be nearer than real patients are: that is no exact match.
    """
    volumes = draw_phantoms(2 * N, SHAPE, np.random.default_rng(0))[:N]
    found = run(N, volumes).found
    copies = found.spaces[VOXELS]
    assert copies.compared == N // 2  # the reference is not compared
    assert copies.strict_memorised_members == N // 2
    exact = [x for x in found.pairs if x.space == VOXELS and x.similarity > 0.999]
    assert len({x.patient for x in exact}) == N // 2
    assert all(x.member for x in exact)


def test_groups_that_differ_are_told_apart_blindly() -> None:
    assert area(run(0, STRANGERS, shift=0.3), BLIND) > 0.8


def test_no_patient_and_no_score_of_one_is_in_what_leaves() -> None:
    """Bins hold four patients or more, and every histogram has everybody once."""
    found = run(N, STRANGERS)
    for name, counts in found.scores.items():
        both = np.add(counts.members, counts.non_members)
        assert both.min() >= 4, name
        calibrated = name in ("calibrated inversion", "DOMIAS")
        assert sum(counts.members) == N
        assert sum(counts.non_members) == (N // 2 if calibrated else N)


def test_the_same_weights_and_patients_give_the_same_histograms() -> None:
    assert run(3, STRANGERS).scores == run(3, STRANGERS).scores


def test_a_score_that_is_not_finite_names_itself() -> None:
    with pytest.raises(VolumeError, match="reconstruction: a score that is not finite"):
        run(0, STRANGERS, gap=float("nan"))


def test_a_family_of_the_registry_passes_whole() -> None:
    """An autoencoder's likelihoods, gradients and latent are all asked for."""
    family = tiny("vae", SHAPE).eval()
    volumes = balls(12, SHAPE)
    table = {f"{n:02d}": [Batch(volume[None])] for n, volume in enumerate(volumes)}
    groups = Groups(
        {name: table[name] for name in list(table)[::2]},
        {name: table[name] for name in list(table)[1::2]},
        frozenset(),
    )
    found = attack(family, groups, Batch(balls(4, SHAPE, seed=3)), seed=7, extract=None)
    assert {"likelihood bound", "importance-weighted bound", "gradient norm"} <= set(found.scores)
    assert "latent" in found.found.spaces
