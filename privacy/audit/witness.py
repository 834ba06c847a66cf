"""What the audit's self-test attacks: an honest generator of phantoms, and leaks to plant in it.

A site's whole attack runs on phantoms that are nobody, and the release gate's own rules judge what
it finds. All is drawn from fixed seeds: a run finds what every run finds, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ...models.base import Batch, Family
from ...models.fitting import fit
from ...models.quality.contrast import draw_phantoms
from ...models.vae import Vae, VaeSpec
from ...study.plan import PrivacySettings, ReleaseRules
from ..evidence import Evidence, SiteEvidence
from ..finding import Verdict
from ..release import Rule
from ..rules.copies import Copies
from ..rules.membership import BlindBaseline, WorstSiteMembership
from .attack import Attacked, Groups, attack
from .comparisons import compare, compare_rates, lower_bounds
from .report import copied_of
from .scores.score import BLIND, FITTED
from .specimen import Reading
from .statistics import BinnedScores

HONEST = "an honest generator"
PATIENTS = 20
"""Of each group; as many others teach the honest model."""
SAMPLES = 40
STEPS = 200
NOISE = 0.1
SHIFT = 0.3
"""Both of intensities in [-1, 1]."""
SPEC = VaeSpec(
    channels=(8, 16), groups=4, latent_channels=4, code=8, kl_weight=0.002, shape=(12, 12, 12)
)
RULES: dict[str, tuple[Rule, str]] = {
    "search for copies": (Copies(), "p of the excess of copied members"),
    "membership scores": (WorstSiteMembership(), "highest lower bound of an AUC"),
    "blind baseline": (BlindBaseline(), "lower bound of the AUC"),
}
"""The rules that judge what an attack finds, and what each measures, by the instrument's name."""


def lessons(members: Tensor, strangers: Tensor) -> Tensor:
    """Return the volumes that the honest model learns: none of a member."""
    return strangers


def samples(members: Tensor, fresh: Tensor) -> Tensor:
    """Return the synthetic volumes of the honest generator: people who never were."""
    return fresh


def held_out(others: Tensor) -> Tensor:
    """Return the non-members, who differ from members in nothing but their coins."""
    return others


def memorising(members: Tensor, strangers: Tensor) -> Tensor:
    """Return lessons that are the members."""
    return members


def replaying(members: Tensor, fresh: Tensor) -> Tensor:
    """Return samples of which half are members under noise."""
    draw = torch.Generator().manual_seed(1)
    noised = members + NOISE * torch.randn(members.shape, generator=draw)
    return torch.cat([noised.clamp(-1, 1), fresh[len(members) :]])


def shifted(others: Tensor) -> Tensor:
    """Return non-members of another scanner."""
    return (others + SHIFT).clamp(-1, 1)


def judge(instrument: str) -> Reading:
    """Return what one rule of the gate says of the whole attack on the generator.

    Guarantee:
        None for a model: it says that these leaks are seen, not that smaller ones would be.
    Assumes:
        Nothing: the phantoms, the training and the draws are fixed.
    """
    rule, measures = RULES[instrument]
    found = _attacked(lessons, samples, held_out)
    finding = rule.check(evidence({"phantoms": found}, PATIENTS))
    value, limit = (math.nan if x is None else x for x in (finding.value, finding.limit))
    alarm = finding.verdict in (Verdict.BLOCK, Verdict.INVALID)
    return Reading(value, limit, alarm, f"{measures} {value:.2g}")


INSTRUMENTS = {name: partial(judge, name) for name in RULES}


def evidence(
    sites: Mapping[str, Attacked], trained: int, *, epsilon: float | None = None
) -> Evidence:
    """Return what the gate would know of sites' attacks, by the limits that plans come with.

    Args:
        sites: what each site found.
        trained: patients of each site who trained.
        epsilon: what each site spent; None for a model without privacy that the plan lets go.
    """
    scores: dict[str, dict[str, BinnedScores]] = {}
    for site, found in sites.items():
        for name, counts in found.scores.items():
            binned = BinnedScores(counts.members, counts.non_members, fitted=name in FITTED)
            scores.setdefault(name, {})[site] = binned
    blind = {name: each for name, each in scores.items() if name == BLIND}
    attacks = {name: each for name, each in scores.items() if name != BLIND}
    rules, privacy = ReleaseRules(), PrivacySettings()
    return Evidence(
        private=epsilon is not None,
        allowed_without_privacy=True,
        epsilon_limit=privacy.epsilon,
        auc_block=rules.auc_block,
        auc_half_width=rules.auc_half_width,
        rate_block=rules.rate_block,
        delta=privacy.delta,
        sites=tuple(_site(name, found, trained, epsilon) for name, found in sites.items()),
        memberships=compare(attacks, rules.auc_block),
        blind=compare(blind, 0.5),
        rates=compare_rates(attacks),
        bounds=lower_bounds(attacks, privacy.delta),
        absent={},
    )


def _site(name: str, found: Attacked, trained: int, epsilon: float | None) -> SiteEvidence:
    counted = {space: copied_of(one.counts()) for space, one in found.found.spaces.items()}
    copied = {space: one for space, one in counted.items() if one}
    return SiteEvidence(
        name=name,
        epsilon=epsilon,
        copied=copied,
        confirmed=found.found.confirmed_members,
        confirmed_held_out=found.found.confirmed_non_members,
        samples=max((one.samples for one in copied.values()), default=0),
        trained=trained,
        pseudo_patients=False,
    )


@cache
def _attacked(
    lessons: Callable[[Tensor, Tensor], Tensor],
    samples: Callable[[Tensor, Tensor], Tensor],
    held_out: Callable[[Tensor], Tensor],
) -> Attacked:
    """Return what a site finds; instruments that look at one generator share it."""
    drawn = draw_phantoms(3 * PATIENTS + SAMPLES, SPEC.shape, np.random.default_rng(0))
    members, others, strangers, fresh = drawn.split([PATIENTS] * 3 + [SAMPLES])
    # names in no order of the groups, as coins leave them
    numbers = [f"{n:02d}" for n in np.random.default_rng(0).permutation(2 * PATIENTS)]
    volumes = torch.cat([members, held_out(others)]).split(1)
    patients = {number: [Batch(x)] for number, x in zip(numbers, volumes, strict=True)}
    groups = Groups(
        {name: patients[name] for name in numbers[:PATIENTS]},
        {name: patients[name] for name in numbers[PATIENTS:]},
        frozenset(),
    )
    family, made = _taught(lessons(members, strangers)), Batch(samples(members, fresh))
    return attack(family, groups, made, seed=0, extract=None)


def _taught(volumes: Tensor) -> Family:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family = Vae(SPEC)
    fit(
        family,
        *family.stages,
        Batch(volumes),
        steps=STEPS,
        batch=PATIENTS // 2,
        learning_rate=1e-2,
        generator=torch.Generator().manual_seed(0),
    )
    return family.eval()
