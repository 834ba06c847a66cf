"""AuditReport: what the coordinator makes of the sites' signed replies.

All but `created` and `versions` follows from the plan, the replies and what is said of the sites,
so that whoever holds the sites' public keys can build the report again and compare.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...study.errors import VerificationError
from ...study.identity import PublicKey
from ...study.messages import Audited, Confirmed, Defaced, ScoreCounts
from ...study.plan import StudyPlan
from ..evidence import Copied, Evidence, LowerBound, Membership, Rate, SiteEvidence
from ..finding import Finding, Verdict
from ..release import decide
from .answer import Answer, binned, check_asked_alike, read_answer, without_payload
from .comparisons import compare, compare_rates, lower_bounds
from .coverage import covered, not_covered, not_tested, notes
from .scores.score import BLIND
from .statistics import BinnedScores, Interval, true_positive_rate

FALSE_POSITIVE_RATES = (0.01, 0.05, 0.10)


class Frozen(BaseModel):
    """A frozen part of the report that forbids unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RateReport(Frozen):
    """Members found while at most `false_positive_rate` of the non-members are taken for one."""

    false_positive_rate: float
    found: Interval
    realised: Interval


class ScoreReport(Frozen):
    """One score at one site, as histograms on the reply's bins, with what follows from them."""

    edges: tuple[float, ...]
    members: tuple[float, ...]
    non_members: tuple[float, ...]
    rates: tuple[RateReport, ...]


class SiteReport(Frozen):
    """What one site answered; `request` and `reply` are base64 of the signed messages."""

    site: str
    declared_patients: int
    defaced: Defaced
    pseudo_patients: bool
    epsilon: float | None
    members: float
    non_members: float
    scores: dict[str, ScoreReport]
    copies: dict[str, dict[str, float]]
    distances: dict[str, float]
    canaries: dict[str, ScoreCounts] = {}
    confirmed: Confirmed
    checked: int
    trained: int | None
    seconds: float
    request: str
    reply: str


class AuditReport(Frozen):
    """The audit of one set of weights, worst site first."""

    format: Literal["voxfed.audit.v2"] = "voxfed.audit.v2"
    created: str
    versions: dict[str, str]
    study: str
    family: str
    plan: str
    plan_digest: str
    weights_digest: str
    private: bool
    epsilon: float | None
    epsilon_limit: float
    delta: float
    counts: Literal["noised", "exact"]
    verdict: Verdict
    findings: tuple[Finding, ...]
    sites: tuple[SiteReport, ...]
    memberships: tuple[Membership, ...]
    blind: tuple[Membership, ...]
    rates: tuple[Rate, ...]
    bounds: tuple[LowerBound, ...]
    absent: dict[str, float | None]
    covered: tuple[str, ...]
    not_covered: tuple[str, ...]
    not_tested: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def from_text(cls, text: bytes, *, what: str = "the audit report") -> AuditReport:
        """Read a report; raise VerificationError where it is not one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as fault:
            raise VerificationError(
                f"{what} cannot be read", got=f"{fault.error_count()} wrong fields"
            ) from None

    @property
    def text(self) -> bytes:
        """The report as JSON."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def facts(self) -> dict[str, Any]:
        """What follows from plan and replies alone, without wording."""
        facts = self.model_dump(
            mode="json",
            exclude={"created", "versions", "covered", "not_covered", "not_tested", "notes"},
        )
        for finding in facts["findings"]:
            del finding["detail"], finding["smallest_leak"]
        return facts

    def answers(self, keys: Mapping[str, PublicKey]) -> list[Answer]:
        """Return the sites' answers; raise VerificationError for a site whose key is not given."""
        for site in self.sites:
            if site.site not in keys:
                raise VerificationError(
                    f"the reply of {site.site} cannot be checked",
                    got="no key",
                    hint=f"ask {site.site} for its card and name it with --card",
                )
        return [
            Answer(
                site.site,
                keys[site.site],
                _bytes(site.request, site.site),
                _bytes(site.reply, site.site),
            )
            for site in self.sites
        ]


def build_report(
    plan: StudyPlan,
    answers: Sequence[Answer],
    *,
    weights_digest: str,
    absent: Mapping[str, float | None],
    versions: Mapping[str, str],
) -> AuditReport:
    """Checks every answer and returns the report on them.

    Args:
        plan: the study's plan.
        answers: one of each site that answered.
        weights_digest: SHA-256 of the weights that are to be released.
        absent: sites that trained and did not answer, with the epsilon of their last signed update.
        versions: software and its version.

    Raises:
        VerificationError: an answer is not signed by its site, or not about these weights, this
            plan or this request; or sites were asked about different synthetic volumes.
        WireError: an answer is garbled.
    """
    replies = {a.site: read_answer(a, plan, weights_digest) for a in answers}
    check_asked_alike(answers)
    scores = _scores(plan, replies)
    blind = {name: sites for name, sites in scores.items() if name == BLIND}
    attacks = {name: sites for name, sites in scores.items() if name != BLIND}
    memberships = compare(attacks, plan.release.auc_block)
    worst = {m.site: m.corrected.low for m in reversed(memberships)}
    ordered = sorted(answers, key=lambda a: (-worst.get(a.site, 0.0), a.site))
    sites = tuple(_site(answer, replies[answer.site], plan) for answer in ordered)
    epsilons = [site.epsilon for site in sites] + list(absent.values())
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    compared = {
        "memberships": memberships,
        "blind": compare(blind, 0.5),
        "rates": compare_rates(attacks),
        "bounds": lower_bounds(attacks, plan.privacy.delta, _canaries(replies)),
    }
    verdict, findings = decide(_evidence(plan, sites, compared, absent))
    return AuditReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=dict(versions),
        study=plan.name,
        family=plan.family,
        plan=plan.text.decode(),
        plan_digest=plan.digest,
        weights_digest=weights_digest,
        private=plan.privacy.enabled,
        epsilon=max(known) if known and len(known) == len(epsilons) else None,
        epsilon_limit=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        counts=plan.privacy.audit_counts,
        verdict=verdict,
        findings=tuple(findings),
        sites=sites,
        **compared,
        absent=dict(sorted(absent.items())),
        covered=covered(plan),
        not_covered=not_covered(plan),
        not_tested=not_tested(plan),
        notes=notes([site.site for site in sites if site.pseudo_patients]),
    )


def _scores(plan: StudyPlan, replies: Mapping[str, Audited]) -> dict[str, dict[str, BinnedScores]]:
    """Returns the histograms of every score by site."""
    found: dict[str, dict[str, BinnedScores]] = {}
    for site, reply in sorted(replies.items()):
        for score, counts in reply.scores.items():
            found.setdefault(score, {})[site] = binned(counts, score, plan)
    return dict(sorted(found.items()))


def _canaries(replies: Mapping[str, Audited]) -> dict[str, dict[str, BinnedScores]]:
    """Returns the histograms of the canaries' scores by site, which are exact in every study."""
    found: dict[str, dict[str, BinnedScores]] = {}
    for site, reply in replies.items():
        for score, counts in reply.canaries.items():
            found.setdefault(score, {})[site] = BinnedScores(counts.members, counts.non_members)
    return found


def _site(answer: Answer, reply: Audited, plan: StudyPlan) -> SiteReport:
    scores = {name: _score(counts, name, plan) for name, counts in sorted(reply.scores.items())}
    first = next(iter(reply.scores.values()))
    return SiteReport(
        site=answer.site,
        declared_patients=reply.declared_patients,
        defaced=reply.defaced,
        pseudo_patients=reply.pseudo_patients,
        epsilon=reply.epsilon,
        members=sum(first.members),
        non_members=sum(first.non_members),
        scores=scores,
        copies=reply.copies,
        distances=reply.distances,
        canaries=reply.canaries,
        confirmed=reply.confirmed,
        checked=reply.checked,
        trained=reply.trained,
        seconds=reply.seconds,
        request=base64.b64encode(without_payload(answer.request)).decode(),
        reply=base64.b64encode(answer.reply).decode(),
    )


def _score(counts: ScoreCounts, name: str, plan: StudyPlan) -> ScoreReport:
    scores = binned(counts, name, plan)
    rates = []
    for rate in FALSE_POSITIVE_RATES:
        pair = true_positive_rate([scores], rate)
        if pair is not None:
            rates.append(RateReport(false_positive_rate=rate, found=pair[0], realised=pair[1]))
    return ScoreReport(
        edges=counts.edges,
        members=counts.members,
        non_members=counts.non_members,
        rates=tuple(rates),
    )


def _evidence(
    plan: StudyPlan,
    sites: Sequence[SiteReport],
    compared: Mapping[str, Any],
    absent: Mapping[str, float | None],
) -> Evidence:
    return Evidence(
        private=plan.privacy.enabled,
        allowed_without_privacy=plan.release.allow_without_privacy,
        epsilon_limit=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        auc_block=plan.release.auc_block,
        auc_half_width=plan.release.auc_half_width,
        rate_block=plan.release.rate_block,
        sites=tuple(_site_evidence(site) for site in sites),
        absent=absent,
        **compared,
    )


def _site_evidence(site: SiteReport) -> SiteEvidence:
    copied = {space: found for space, counts in site.copies.items() if (found := copied_of(counts))}
    return SiteEvidence(
        name=site.site,
        epsilon=site.epsilon,
        copied=copied,
        confirmed=site.confirmed.members,
        confirmed_held_out=site.confirmed.held_out,
        samples=max((found.samples for found in copied.values()), default=0),
        trained=site.trained,
        pseudo_patients=site.pseudo_patients,
    )


def copied_of(counts: Mapping[str, float]) -> Copied | None:
    """Returns a reply's counts of copies by one likeness, or None where it has not all of them."""
    names = ("samples", "compared", "memorised_members", "memorised_non_members")
    strict = ("strict_memorised_members", "strict_memorised_non_members")
    if not all(name in counts for name in (*names, *strict)):
        return None
    return Copied(*(round(counts[name]) for name in (*names, *strict)))


def _bytes(text: str, site: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise VerificationError(f"the reply of {site} is garbled") from None
