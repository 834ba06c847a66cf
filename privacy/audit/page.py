"""The officer's page: one HTML file that holds everything it shows and fetches nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...study.messages import ScoreCounts
from ...study.plan import StudyPlan
from ..evidence import TOGETHER, Copied, LowerBound, Membership
from ..finding import Verdict
from ..rules.copies import Copies
from .answer import binned
from .ceiling import auc_ceiling, gaussian_auc
from .coverage import REPLAYED, REPLAYS
from .report import AuditReport, ScoreReport, SiteReport, copied_of
from .scores.score import BLIND, FUSED, LIRA, REFERENCED, RMIA, Threat
from .scores.table import SCORES
from .statistics import Interval, half_width_table, roc, roc_band

WORDS = {
    Verdict.PASS: "No rule found a reason to hold this model back. Officers may approve it.",
    Verdict.WARN: "May leave only if an officer approves, with a written reason for each warning.",
    Verdict.INVALID: "Must not leave: this audit cannot tell. Its two groups differ by themselves.",
    Verdict.BLOCK: "Must not leave. No officer can approve it.",
}
WIDTH, HEIGHT = 300.0, 120.0  # of a histogram, in SVG units
SIDE = 120.0  # of a ROC curve
MOST_BARS = 32
MOST_ROWS = 8
OTHERS = {
    BLIND: "images alone, without any model: whatever it finds is no leak",
    FUSED: "all scores together, by a rule fitted to other patients of the hospital",
    RMIA: "how much better the model knows a patient, beside other patients, than models trained"
    " without them",
    LIRA: "how far above models trained without a patient the model knows them",
}
COUNTS = {"edges", "members", "non_members"}


@dataclass(frozen=True)
class Bar:
    """A bar pair of a histogram: left edge, width, and heights, in SVG units."""

    x: float
    width: float
    members: float
    non_members: float


@dataclass(frozen=True)
class Row:
    """A score in the table of attacks: AUCs at each hospital, then at all together."""

    score: str
    threat: str
    what: str
    cells: list[Interval | None]


@dataclass(frozen=True)
class Chart:
    """What is drawn for one score at one site."""

    site: str
    score: str
    low: str
    high: str
    bars: tuple[Bar, ...]
    curve: str
    band: str
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
    copied = [
        (site.site, likeness, found)
        for site in report.sites
        for likeness, counts in site.copies.items()
        if (found := copied_of(counts))
    ]
    epsilon = report.epsilon if report.private else None
    return environment.get_template("report.html.j2").render(
        report=report,
        words=WORDS[report.verdict],
        plan=plan,
        worst=next((m for m in report.memberships if m.site != TOGETHER), None),
        together=next((m for m in report.memberships if m.site == TOGETHER), None),
        aucs={m.site: m for m in reversed(report.memberships)},
        odds=math.exp(epsilon) if epsilon is not None else None,
        ceiling=auc_ceiling(epsilon, report.delta) if epsilon is not None else None,
        gaussian_ceiling=gaussian_auc(epsilon, report.delta) if epsilon else None,
        rows=_rows(report),
        bounds=_bounds(report),
        copied_rows=copied,
        copied_at={
            site.site: _worst([row for row in copied if row[0] == site.site])
            for site in report.sites
        },
        copied_together=_together(copied),
        replays=REPLAYS,
        replayed=REPLAYED,
        charts=_charts(report, plan),
        table=half_width_table(),
        picture=shown,
        copying=copying,
        smallest=[f for f in report.findings if f.smallest_leak],
        height=HEIGHT,
        width=WIDTH,
        side=SIDE,
    )


def _rows(report: AuditReport) -> list[Row]:
    """Returns a line of the table of attacks for each score, the strongest first."""
    known = {score.name: score for score in SCORES}
    compared = (*report.memberships, *report.blind)
    found = {(m.site, m.score): m.auc for m in compared}
    places = [*(site.site for site in report.sites), TOGETHER]
    rows = []
    for name in dict.fromkeys(m.score for m in compared):
        other = Threat.WEIGHTS.value if name in REFERENCED else ""
        threat = known[name].threat.value if name in known else other
        what = known[name].what if name in known else OTHERS.get(name, "")
        rows.append(Row(name, threat, what, [found.get((place, name)) for place in places]))
    return rows


def _bounds(report: AuditReport) -> list[LowerBound]:
    """Returns the highest lower bounds on epsilon, with the best of patients and of canaries."""
    highest = report.bounds[:MOST_ROWS]
    best = {bound.canaries: bound for bound in reversed(report.bounds)}
    return [*highest, *(bound for bound in best.values() if bound not in highest)]


def _worst(rows: Sequence[tuple[str, str, Copied]]) -> Copied | None:
    """Returns the counts by the likeness that finds the largest excess."""
    found = [copied for _, _, copied in rows]
    return max(found, key=lambda c: c.members - c.non_members, default=None)


def _together(rows: Sequence[tuple[str, str, Copied]]) -> dict[str, Any] | None:
    """Returns the sums over hospitals by the likeness that finds the largest excess."""
    sums: dict[str, dict[str, Any]] = {}
    for _, likeness, copied in rows:
        row = sums.setdefault(
            likeness, {"likeness": likeness, "members": 0, "non_members": 0, "compared": 0}
        )
        for name in ("members", "non_members", "compared"):
            row[name] += getattr(copied, name)
    return max(sums.values(), key=lambda row: row["members"] - row["non_members"], default=None)


def _charts(report: AuditReport, plan: StudyPlan) -> list[Chart]:
    """Returns the strongest attack's chart at each hospital, and the blind baseline's."""
    found = {(m.site, m.score): m for m in (*report.memberships, *report.blind)}
    strongest = {m.site: m.score for m in reversed(report.memberships)}
    return [
        _chart(site, name, site.scores[name], found[site.site, name], plan)
        for site in report.sites
        for name in dict.fromkeys((strongest[site.site], BLIND))
        if name in site.scores
    ]


def _chart(
    site: SiteReport, name: str, score: ScoreReport, membership: Membership, plan: StudyPlan
) -> Chart:
    first, last = _filled(score)
    width = math.ceil((last - first + 1) / MOST_BARS)
    starts = range(first, last + 1, width)
    members = [sum(score.members[i : min(i + width, last + 1)]) for i in starts]
    non_members = [sum(score.non_members[i : min(i + width, last + 1)]) for i in starts]
    highest = max(*members, *non_members, 1.0)
    step = WIDTH / len(members)
    scores = binned(ScoreCounts(**score.model_dump(include=COUNTS)), name, plan)
    curve = roc(scores)
    return Chart(
        site=site.site,
        score=name,
        low=f"{score.edges[first]:.2g}",
        high=f"{score.edges[last + 1]:.2g}",
        bars=tuple(
            Bar(round(i * step, 2), round(step / 2.2, 2), _tall(m, highest), _tall(n, highest))
            for i, (m, n) in enumerate(zip(members, non_members, strict=True))
        ),
        curve=_points(curve),
        band=_points(roc_band(scores)),
        report=score,
        membership=membership,
    )


def _points(curve: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x * SIDE:.1f},{SIDE - y * SIDE:.1f}" for x, y in curve)


def _tall(count: float, highest: float) -> float:
    return round(max(count, 0.0) / highest * HEIGHT, 2)


def _filled(score: ScoreReport) -> tuple[int, int]:
    """Returns the first and the last bin that holds anybody."""
    pairs: Sequence[tuple[float, float]] = list(zip(score.members, score.non_members, strict=True))
    filled = [i for i, pair in enumerate(pairs) if any(pair)] or [0]
    return filled[0], filled[-1]
