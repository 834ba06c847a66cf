"""What the benchmark of the audit plants: replays of patients, and audits where nothing leaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from voxfed.privacy.audit.attack import Attacked
from voxfed.privacy.audit.binning import quantile_bins
from voxfed.privacy.audit.copies.search import Copies, Search
from voxfed.privacy.audit.copies.spaces import EMBEDDING, LATENT, OCTANTS, VOXELS, View
from voxfed.privacy.audit.membership import histogram
from voxfed.privacy.audit.scores.fusion import fuse
from voxfed.privacy.audit.scores.score import BLIND, FUSED
from voxfed.privacy.audit.witness import evidence
from voxfed.privacy.evidence import Evidence
from voxfed.study.messages import ScoreCounts

Change = Callable[[Tensor], Tensor]
SITES, PATIENTS, SCORES, LOOKS = 3, 30, 6, 20
"""Of a simulated audit: sites, patients of each group, scores, and features of an image."""


def noisy(deviation: float) -> Change:
    """Return what adds noise, of intensities in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return lambda x: (x + deviation * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def turned(axis: int, degrees: float) -> Change:
    """Return what turns volumes about an axis."""
    view = View(turn=(axis, degrees))
    return lambda x: view.seen(x + 1, x.shape[2:]).reshape(x.shape) - 1


def moved(step: int) -> Change:
    """Return what moves volumes by so many voxels along each axis; air comes in."""

    def change(volumes: Tensor) -> Tensor:
        made = torch.full_like(volumes, -1.0)
        made[:, :, step:, step:, step:] = volumes[:, :, :-step, :-step, :-step]
        return made

    return change


def cropped(share: float) -> Change:
    """Return what keeps a share of each side, from every corner in turn, and zeros beside it."""

    def change(volumes: Tensor) -> Tensor:
        made = torch.zeros_like(volumes)
        kept = round(share * volumes.shape[-1])
        corners = itertools.cycle(itertools.product((0, volumes.shape[-1] - kept), repeat=3))
        for one, source, corner in zip(made, volumes, corners, strict=False):
            block = (0, *(slice(x, x + kept) for x in corner))
            one[block] = source[block]
        return made

    return change


REPLAYS: dict[str, Change] = {
    **{f"noise {deviation}": noisy(deviation) for deviation in (0.05, 0.1, 0.2)},
    **{f"cropped to {share:.0%} of a side": cropped(share) for share in (0.75, 0.9)},
    **{f"mirrored, axis {axis}": lambda x, axis=axis: x.flip(axis + 2) for axis in range(3)},
    **{f"turned {x:g} degrees": turned(0, x) for x in (2.0, 5.0, 10.0)},
    **{f"moved {step} voxels": moved(step) for step in (1, 2)},
    "10 % brighter": lambda x: ((x + 1) * 1.1 - 1).clamp(-1, 1),
}
"""Strengths at which replayed patients must be caught."""


def null_audit(generator: np.random.Generator) -> Evidence:
    """Return the evidence of an audit of three sites where members differ from nobody.

    Scores go together as those of one model do; the fused score and the blind baseline are really
    fitted, and patients look copied at random, a twentieth of them by each likeness.
    """
    return evidence({f"site-{n}": _found(generator) for n in range(SITES)}, PATIENTS)


def _found(generator: np.random.Generator) -> Attacked:
    members = generator.permutation(np.arange(2 * PATIENTS) < PATIENTS)
    own = generator.standard_normal((2 * PATIENTS, 1))
    table = (own + generator.standard_normal((2 * PATIENTS, SCORES))) / np.sqrt(2)
    looks = generator.standard_normal((2 * PATIENTS, LOOKS))
    seed = int(generator.integers(2**31))
    values = {f"score {n}": column for n, column in enumerate(table.T)}
    values[FUSED] = fuse(table, members, seed, permutations=0).scores
    values[BLIND] = fuse(looks, members, seed, permutations=0).scores
    scores = {}
    for name, found in values.items():
        edges = quantile_bins(found[members], found[~members])
        counts = (histogram(found[group], edges) for group in (members, ~members))
        scores[name] = ScoreCounts(
            edges=edges, **dict(zip(("members", "non_members"), counts, strict=True))
        )
    spaces = {name: _copies(generator) for name in (VOXELS, OCTANTS, EMBEDDING, LATENT)}
    return Attacked(scores, Search(spaces, 0, 0, ()), {})


def _copies(generator: np.random.Generator) -> Copies:
    """Return counts of copies that know no groups, at the usual and the strict threshold."""
    pairs = [generator.binomial(PATIENTS, share, size=2).tolist() for share in (0.05, 0.002)]
    counts = [count for pair in pairs for count in (*pair, *pair)]
    return Copies(10 * PATIENTS, PATIENTS, 0.5, 0.6, *counts)
