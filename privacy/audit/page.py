"""The officer's page: one HTML file that holds everything it shows and fetches nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...study.plan import StudyPlan
from ..evidence import TOGETHER, Membership
from ..release import Copies, Verdict
from .membership import LOWER_IS_MEMBER, SCORES
from .report import AuditReport, ScoreReport, SiteReport
from .statistics import BinnedScores, half_width_table, roc

WORDS = {
    Verdict.PASS: "No rule found a reason to hold this model back. Officers may approve it.",
    Verdict.WARN: "May leave only if an officer approves, with a written reason for each warning.",
    Verdict.BLOCK: "Must not leave. No officer can approve it.",
}
WIDTH, HEIGHT = 300.0, 120.0  # of a histogram, in SVG units
SIDE = 120.0  # of a ROC curve
MOST_BARS = 32


@dataclass(frozen=True)
class Bar:
    """A bar pair of a histogram: left edge, width, and heights, in SVG units."""

    x: float
    width: float
    members: float
    non_members: float


@dataclass(frozen=True)
class Chart:
    """What is drawn for one score at one site."""

    site: str
    score: str
    low: str
    high: str
    bars: tuple[Bar, ...]
    curve: str
    report: ScoreReport
    membership: Membership


def write_page(report: AuditReport, *, picture: bytes | None = None) -> str:
    """Returns the page as HTML.

    Args:
        report: the audit.
        picture: a PNG of synthetic volumes; left out where the search for copies blocked, since the
            samples of a model that copies are patients.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plan = StudyPlan.from_text(report.plan.encode(), file="the plan in the report")
    copying = any(
        finding.rule == Copies.name and finding.verdict is Verdict.BLOCK
        for finding in report.findings
    )
    shown = None if picture is None or copying else base64.b64encode(picture).decode()
    return environment.get_template("report.html.j2").render(
        report=report,
        words=WORDS[report.verdict],
        plan=plan,
        worst=next((m for m in report.memberships if m.site != TOGETHER), None),
        together=next((m for m in report.memberships if m.site == TOGETHER), None),
        aucs={m.site: m for m in reversed(report.memberships)},
        odds=math.exp(report.epsilon) if report.epsilon is not None else None,
        charts=_charts(report, plan),
        table=half_width_table(),
        picture=shown,
        copying=copying,
        smallest=[f for f in report.findings if f.smallest_leak],
        height=HEIGHT,
        width=WIDTH,
        side=SIDE,
    )


def _charts(report: AuditReport, plan: StudyPlan) -> list[Chart]:
    noise = plan.privacy.audit_noise if report.counts == "noised" else 0.0
    found = {(m.site, m.score): m for m in report.memberships}
    return [
        _chart(site, name, score, found[site.site, name], noise)
        for site in report.sites
        for name, score in site.scores.items()
    ]


def _chart(
    site: SiteReport, name: str, score: ScoreReport, membership: Membership, noise: float
) -> Chart:
    first, last = _filled(score)
    width = math.ceil((last - first + 1) / MOST_BARS)
    starts = range(first, last + 1, width)
    members = [sum(score.members[i : min(i + width, last + 1)]) for i in starts]
    non_members = [sum(score.non_members[i : min(i + width, last + 1)]) for i in starts]
    highest = max(*members, *non_members, 1.0)
    step = WIDTH / len(members)
    turned = -1 if name in LOWER_IS_MEMBER else 1
    curve = roc(BinnedScores(score.members[::turned], score.non_members[::turned], noise))
    return Chart(
        site=site.site,
        score=SCORES[name],
        low=f"{site.edges[first]:.2g}",
        high=f"{site.edges[last + 1]:.2g}",
        bars=tuple(
            Bar(round(i * step, 2), round(step / 2.2, 2), _tall(m, highest), _tall(n, highest))
            for i, (m, n) in enumerate(zip(members, non_members, strict=True))
        ),
        curve=" ".join(f"{x * SIDE:.1f},{SIDE - y * SIDE:.1f}" for x, y in curve),
        report=score,
        membership=membership,
    )


def _tall(count: float, highest: float) -> float:
    return round(max(count, 0.0) / highest * HEIGHT, 2)


def _filled(score: ScoreReport) -> tuple[int, int]:
    """Returns the first and the last bin that holds anybody."""
    pairs: Sequence[tuple[float, float]] = list(zip(score.members, score.non_members, strict=True))
    filled = [i for i, pair in enumerate(pairs) if any(pair)] or [0]
    return filled[0], filled[-1]
