"""Rules on copies of patients among synthetic volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..audit.statistics import excess_chance
from ..evidence import TOGETHER, Copied, Evidence, SiteEvidence
from ..finding import Finding, Verdict

FALSE_ALARM = 0.025  # one-sided, of each family of tests over the sites: 5 % for both families
ENOUGH = 10  # synthetic volumes for each patient who trained
FEWEST = 200  # synthetic volumes, however few trained


class Copies:
    """Memorised members do not exceed memorised non-members beyond chance; else BLOCK.

    Fisher's exact one-sided test of the two counts among equal numbers, at the usual and the strict
    threshold, by each likeness, for each site and for all sites together, at 2.5 % divided among
    these tests. Not a paired test: members and non-members are different patients. A copy of a
    member that two likenesses confirm blocks by itself where none of a non-member is confirmed, and
    otherwise where the same test finds more than chance; a confirmed non-member is a WARN, as is a
    site that made no search.
    """

    name = "copies of patients"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the smallest p-value with 2.5 % / tests, and confirmed copies with none."""
        found = {
            (site.name, likeness): copied
            for site in evidence.sites
            for likeness, copied in site.copied.items()
        }
        if not found:
            return Finding(self.name, Verdict.WARN, None, None, "no site searched for copies")
        for likeness in sorted({likeness for _, likeness in found}):
            found[TOGETHER, likeness] = _sum([c for (_, x), c in found.items() if x == likeness])
        chances, limit = weigh(found)
        worst = min(chances, key=chances.__getitem__)
        copied, chance = found[worst], chances[worst]
        confirmed = [s.name for s in evidence.sites if _beyond_chance(s, limit)]
        twice = [s.name for s in evidence.sites if s.confirmed_held_out]
        unseen = [site.name for site in evidence.sites if not site.copied]
        blocked = chance <= limit or bool(confirmed)
        warned = Verdict.WARN if unseen or twice else Verdict.PASS
        verdict = Verdict.BLOCK if blocked else warned
        detail = (
            f"{'the model hands out' if blocked else 'no proof of'} copies of its patients: "
            f"by {worst[1]} {copied.members} of {copied.compared} members and "
            f"{copied.non_members} of {copied.compared} non-members at {worst[0]} (got p = "
            f"{chance:.2g}, expected above {limit:.2g})"
        )
        if confirmed:
            detail += f"; two likenesses confirm a copy at {', '.join(confirmed)}"
        if twice:
            detail += f"; two likenesses confirm a copy of a non-member at {', '.join(twice)}"
        if unseen:
            detail += f"; not searched at {', '.join(unseen)}"
        return Finding(self.name, verdict, chance, limit, detail, _smallest_copying(found, limit))


class EnoughSamples:
    """Ten synthetic volumes or more were searched for each patient who trained; else WARN.

    With M volumes and no copy among them, up to 3 in M volumes may still be copies.
    """

    name = "enough samples"

    def check(self, evidence: Evidence) -> Finding:
        """Compares volumes for each patient with 10."""
        searched = [site for site in evidence.sites if site.copied]
        if not searched:
            detail = "no synthetic volume was searched for copies"
            return Finding(self.name, Verdict.WARN, None, ENOUGH, detail)
        most = sum(site.trained or 0 for site in evidence.sites)
        fewest = min(site.samples for site in searched)
        share = fewest / max(most, FEWEST / ENOUGH)
        unknown = [site.name for site in evidence.sites if site.trained is None]
        seen = f"copies in more than {3 / fewest:.2%} of the samples (3 / M)"
        detail = (
            f"{fewest} synthetic volumes for {most} patients who trained "
            f"({share:.1f} for each, expected {ENOUGH} or more)"
        )
        if unknown:
            detail += f"; unknown how many trained at {', '.join(unknown)}"
        verdict = Verdict.PASS if share >= ENOUGH and not unknown else Verdict.WARN
        return Finding(self.name, verdict, share, ENOUGH, detail, seen)


def weigh(found: Mapping[tuple[str, str], Copied]) -> tuple[dict[tuple[str, str], float], float]:
    """Returns the p-value of each site and likeness, and what blocks at or under: 2.5 % / tests.

    Each is the smaller of two tests, at the usual and at the strict threshold. `found` has one or
    more.
    """
    chances = {place: _chance(copied) for place, copied in found.items()}
    return chances, FALSE_ALARM / (2 * len(found))


def _beyond_chance(site: SiteEvidence, limit: float) -> bool:
    """Returns whether copies of members that two likenesses confirm are more than chance."""
    if not site.confirmed_held_out:
        return site.confirmed > 0
    n = max((c.compared for c in site.copied.values()), default=0)
    return excess_chance(site.confirmed, site.confirmed_held_out, n) <= limit


def _chance(copied: Copied) -> float:
    return min(
        excess_chance(copied.members, copied.non_members, copied.compared),
        excess_chance(copied.strict_members, copied.strict_non_members, copied.compared),
    )


def _sum(found: Sequence[Copied]) -> Copied:
    """Returns the counts of all sites; sites that differ only make the test more careful."""
    return Copied(
        sum(c.samples for c in found),
        sum(c.compared for c in found),
        sum(c.members for c in found),
        sum(c.non_members for c in found),
        sum(c.strict_members for c in found),
        sum(c.strict_non_members for c in found),
    )


def _smallest_copying(found: Mapping[tuple[str, str], Copied], limit: float) -> str:
    n = max(copied.compared for copied in found.values())
    for members in range(1, n + 1):
        if excess_chance(members, 0, n) <= limit:
            return f"{members} memorised members of {n}, with no memorised non-member"
    return "none: with so few patients not even copies of all of them would be beyond chance"
