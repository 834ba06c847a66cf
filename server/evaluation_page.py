"""The page of an evaluation: one HTML file that holds everything it shows and fetches nothing."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..models.pictures import contact_sheet_png
from ..models.quality.chart import Mark, Panel, figures_png, histograms_png
from ..models.quality.evaluation import EVERYBODY
from ..models.quality.features import load_extractor
from ..privacy.audit.report import AuditReport
from ..privacy.finding import Verdict
from ..study.errors import PlanError
from ..study.figures import FigureRow
from ..study.files import digest, write
from ..study.messages import hash_of
from .coordinator import Coordinator
from .evaluation import EvaluationReport, build_report, read_answers
from .release import SHOWN, samples_of, versions
from .store import Round, Store

TOGETHER = "together"
ARROWS = {"higher": "higher is better", "lower": "lower is better", "as real": "as real is best"}


def report_evaluation(
    coordinator: Coordinator, store: Store, folder: Path, extractor: Path
) -> EvaluationReport:
    """Join the answers in `folder` and write evaluation.json and evaluation.html beside them.

    Raises:
        VerificationError: as in `read_answers`, or a reply is about other weights.
    """
    plan, last = store.plan, store.latest(coordinator.key.public)
    record = last.record(coordinator.key.public)
    judge = load_extractor(extractor, digest(extractor))
    keys = {name: card.key for name, card in coordinator.sites().items()}
    answers = read_answers(folder, keys, record.weights_digest, judge.digest)
    facts = {
        "versions": versions(),
        "study": plan.name,
        "family": plan.family,
        "round": record.round,
        "plan_digest": plan.digest,
        "weights_digest": record.weights_digest,
        "extractor": judge.name,
        "extractor_digest": judge.digest,
    }
    refused = json.loads((folder / "facts.json").read_bytes())["refused"]
    told = plan.condition.kind if plan.condition else "none"
    report = build_report(answers, told=told, refused=refused, facts=facts)
    picture, withheld = picture_of(store, last)
    write(folder / "evaluation.json", report.text)
    write(
        folder / "evaluation.html", write_page(report, picture=picture, withheld=withheld).encode()
    )
    return report


def picture_of(store: Store, last: Round) -> tuple[bytes | None, str]:
    """Return a contact sheet of a round's samples as PNG, or why they may not be shown."""
    weights_digest = hash_of(last.weights)
    for audit in store.audits():
        found = AuditReport.from_text((audit / "audit.json").read_bytes())
        if found.weights_digest == weights_digest and found.verdict is Verdict.BLOCK:
            return None, "the audit of these weights blocked them, so samples may be patients"
    try:
        return contact_sheet_png([("synthetic volumes", samples_of(store, last, SHOWN))]), ""
    except PlanError as fault:  # what the family is told is not public
        return None, fault.message


def write_page(report: EvaluationReport, *, picture: bytes | None, withheld: str = "") -> str:
    """Return the page as HTML.

    Args:
        report: the evaluation.
        picture: a PNG of synthetic volumes, if they may be shown.
        withheld: why they may not.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [(name, _row(report, name), ARROWS[_row(report, name).better]) for name in report.names]
    groups = [row for row in report.together if row.group != EVERYBODY]
    return environment.get_template("evaluation.html.j2").render(
        report=report,
        rows=rows,
        group_names=list(dict.fromkeys(row.group for row in groups)),
        gaps=report.gaps_by_name,
        groups={(row.name, row.group): row for row in groups},
        histograms=base64.b64encode(
            histograms_png(
                {x.site: (x.intensities.samples, x.intensities.held_out) for x in report.sites}
            )
        ).decode(),
        chart=base64.b64encode(figures_png(_panels(report))).decode(),
        picture=None if picture is None else base64.b64encode(picture).decode(),
        withheld=withheld,
    )


def _row(report: EvaluationReport, name: str) -> FigureRow:
    return next(x for x in report.together if (x.name, x.group) == (name, EVERYBODY))


def _panels(report: EvaluationReport) -> list[Panel]:
    panels = []
    for name in report.names:
        rows = [(site.site, site.figure(name)) for site in report.sites]
        marks = [_mark(label, row) for label, row in rows if row is not None]
        panels.append(Panel(name, [*marks, _mark(TOGETHER, _row(report, name))]))
    return panels


def _mark(label: str, row: FigureRow) -> Mark:
    return Mark(label, row.value, row.low, row.high, row.real)
