"""Members compared with non-members by every score, at each site and at all sites together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..evidence import TOGETHER, LowerBound, Membership, Rate
from . import guesses
from .scores.score import HALVED
from .statistics import LEVEL, BinnedScores, smallest_leak, stratified_auc, true_positive_rate

SURE = 0.01  # the false positive rate at which members are surely found


def compare(
    scores: Mapping[str, Mapping[str, BinnedScores]], limit: float
) -> tuple[Membership, ...]:
    """Returns the AUCs of every score, the highest corrected lower bound first.

    Guarantee:
        Where no score tells members from non-members, any of the corrected lower bounds lies above
        0.5 in at most 2.5 % of audits (Bonferroni). So a family of scores that is judged by another
        limit, such as the blind baseline by 0.5, is compared on its own and adds its own 2.5 %.
    Assumes:
        Coins were flipped independently of all that the scores see.

    Args:
        scores: histograms, by the score's name and then the site's.
        limit: the AUC that a lower bound is judged by, for the power that is stated.
    """
    level, found = _level(scores), []
    for score, site, group in _groups(scores):
        leak = smallest_leak(group, limit, level=level)
        corrected = stratified_auc(group, level=level)
        found.append(Membership(site, score, stratified_auc(group), corrected, leak))
    return tuple(sorted(found, key=lambda m: -m.corrected.low))


def compare_rates(scores: Mapping[str, Mapping[str, BinnedScores]]) -> tuple[Rate, ...]:
    """Returns the members that each score surely finds, where there are patients enough.

    Scores that were fitted to coins are left out: their patients hang together, and the interval
    takes each for itself.

    Guarantee:
        As of `compare`, for the lower ends of the rates and the rate that costs `SURE`.
    """
    scores = {name: sites for name, sites in scores.items() if not _fitted(sites)}
    level, found = _level(scores), []
    for score, site, group in _groups(scores):
        pair = true_positive_rate(group, SURE, level=level)
        if pair is not None:
            found.append(Rate(site, score, pair[0]))
    return tuple(sorted(found, key=lambda rate: -rate.found.low))


def lower_bounds(
    scores: Mapping[str, Mapping[str, BinnedScores]],
    delta: float,
    canaries: Mapping[str, Mapping[str, BinnedScores]] | None = None,
) -> tuple[LowerBound, ...]:
    """Returns what each score proves about epsilon at delta, the highest first.

    Scores that were fitted to coins prove nothing, noised counts allow no guess, and where half of
    those held out were the reference the coins of the rest are not fair.

    Guarantee:
        All of the bounds hold together with probability 95 % (Bonferroni), those of canaries too.

    Args:
        scores: histograms of patients, by the score's name and then the site's.
        delta: of the claim.
        canaries: exact histograms of canaries, who are never pooled with patients.
    """
    canaries = canaries or {}
    usable = {
        name: sites
        for name, sites in scores.items()
        if name not in HALVED and not _fitted(sites) and not any(x.noise for x in sites.values())
    }
    level, found = _level(usable, canaries), []
    patients = [(False, *one) for one in _groups(usable)]
    for added, score, site, group in [*patients, *((True, *one) for one in _groups(canaries))]:
        made = guesses.guess(group)
        proved = guesses.bounds(made, delta, level=level)
        most = guesses.cap(made.patients, delta, level=level)
        caps = most.general, most.gaussian
        found.append(LowerBound(site, score, proved.general, proved.gaussian, *caps, added))
    return tuple(sorted(found, key=lambda b: (-b.general, -b.gaussian, -b.cap)))


def _fitted(sites: Mapping[str, BinnedScores]) -> bool:
    return any(one.fitted for one in sites.values())


def _level(*families: Mapping[str, Mapping[str, BinnedScores]]) -> float:
    """Returns the confidence of each comparison with which all together have `LEVEL`."""
    comparisons = 0
    for scores in families:
        places = {site for sites in scores.values() for site in sites}
        comparisons += len(scores) * (len(places) + 1)
    return 1 - (1 - LEVEL) / max(1, comparisons)


def _groups(
    scores: Mapping[str, Mapping[str, BinnedScores]],
) -> Iterator[tuple[str, str, list[BinnedScores]]]:
    """Yields each score at each site, and at all sites together."""
    for score, sites in sorted(scores.items()):
        for name in sorted(sites):
            yield score, name, [sites[name]]
        yield score, TOGETHER, [sites[name] for name in sorted(sites)]
