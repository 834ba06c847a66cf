"""From an audit's signed replies to the report, and from the report to a bundle."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..privacy.audit.answer import Answer
from ..privacy.audit.page import write_page
from ..privacy.audit.report import AuditReport, build_report
from ..privacy.bundle import (
    DECISIONS,
    EVALUATION,
    RELEASE_TYPE,
    SUFFIX,
    build,
    bundle_digest,
    content_of,
    decision_of,
    read_report,
)
from ..privacy.decision import ATTESTATION, open_statement
from ..privacy.model_card import model_card
from ..privacy.quality import Quality
from ..privacy.revocation import REVOCATION, read_revocation, sign_revocation
from ..study.errors import UsageError, VerificationError
from ..study.files import write
from ..study.messages import hash_of
from .coordinator import Coordinator
from .store import Round, Store

if TYPE_CHECKING:
    from ..models.base import Family

LIBRARIES = ("torch", "monai", "flwr", "dp-accounting", "numpy")
SHOWN = 6


def report_audit(coordinator: Coordinator, store: Store, folder: Path) -> AuditReport:
    """Build the report of the audit in `folder` and write audit.json and audit.html beside it.

    Raises:
        VerificationError: a reply is not signed by its site, or is about something else.
    """
    plan = store.plan
    last = store.latest(coordinator.key.public)
    sites = coordinator.sites()
    answers = []
    for path in sorted(folder.glob("*.reply")):
        answers.append(
            Answer(
                path.stem,
                sites[path.stem].key,
                (folder / f"{path.stem}.request").read_bytes(),
                path.read_bytes(),
            )
        )
    answered = {answer.site for answer in answers}
    report = build_report(
        plan,
        answers,
        weights_digest=hash_of(last.weights),
        absent={s: e for s, e in store.spent().items() if s not in answered},
        versions=versions(),
    )
    write(folder / "audit.json", report.text)
    write(folder / "audit.html", write_page(report, picture=_picture(store, last)).encode())
    return report


def build_release(coordinator: Coordinator, store: Store) -> Path:
    """Build a bundle of the last round's weights and its last audit, and return its folder.

    Raises:
        UsageError: the weights were not audited.
        VerificationError: the audit is about other weights.
    """
    audits = store.audits()
    if not audits:
        raise UsageError(
            f"study {store.folder.name} has no audit", hint="voxfed audit run " + store.folder.name
        )
    report = AuditReport.from_text((audits[-1] / "audit.json").read_bytes())
    last = store.latest(coordinator.key.public)
    if report.weights_digest != hash_of(last.weights):
        raise VerificationError(
            "the last audit is about other weights", hint="audit the last round again"
        )
    plan = store.plan
    releases = store.folder / "releases"
    number = len(list(releases.glob("[0-9]*"))) + 1 if releases.exists() else 1
    model = {
        "family": plan.family,
        "settings": plan.settings,
        "shape": list(plan.volumes.shape),
        "spacing": list(plan.volumes.spacing),
        "trained": plan.trained,
        "plan": plan.text.decode(),
        "plan_digest": plan.digest,
    }
    evaluation = evaluation_of(store, report.weights_digest)
    bundle = build(
        releases / f"{number:03d}",
        weights=last.weights,
        model=model,
        report=report,
        html=(audits[-1] / "audit.html").read_text(),
        card=model_card(plan, report, Quality.from_text(evaluation) if evaluation else None),
        evaluation=evaluation,
        key=coordinator.key,
        extra={
            "round": hash_of(last.envelope),
            "journal": coordinator.journal.head(),
            "heads": {s: h.model_dump() for s in coordinator.sites() if (h := coordinator.head(s))},
            "versions": versions(),
        },
    )
    coordinator.journal.append("release built", study=plan.name, bundle=str(bundle.name))
    return bundle


def evaluation_of(store: Store, weights_digest: str) -> bytes | None:
    """Return the last report of `voxfed evaluate` on these very weights, if there is one.

    Raises:
        VerificationError: a report cannot be read.
    """
    found = {}
    for path in (store.folder / "evaluations").glob(f"*/{EVALUATION}"):
        text = content_of(path)
        quality = Quality.from_text(text, what=str(path))
        if quality.weights_digest == weights_digest:
            found[quality.created, path.parent.name] = text
    return found[max(found)] if found else None


def versions() -> dict[str, str]:
    """Return the software that made a bundle."""
    found = {name: version(name) for name in LIBRARIES}
    return {"voxfed": __version__, "python": platform.python_version(), **found}


def revoke(coordinator: Coordinator, bundle: Path, reason: str) -> Path:
    """Put a signed revocation into a bundle of this coordinator and return its file.

    Raises:
        VerificationError: it is no bundle, or one of another coordinator.
        UsageError: there is no reason, or it was revoked before.
    """
    key = coordinator.key
    envelope = content_of(bundle / ATTESTATION)
    _, claims = open_statement(envelope, key.public, RELEASE_TYPE, what=ATTESTATION)
    path = bundle / REVOCATION
    if path.exists():
        raise UsageError("this release was revoked before", got=path)
    study = str(claims["study"])
    write(path, sign_revocation(bundle_digest(bundle), study=study, reason=reason, key=key))
    coordinator.journal.append("release revoked", study=study, bundle=bundle.name, reason=reason)
    return path


def list_releases(coordinator: Coordinator, store: Store) -> list[dict[str, Any]]:
    """Return what is known of each release of a study, the first first.

    Raises:
        VerificationError: a decision or a revocation in a bundle is not signed as it should be.
    """
    found = []
    keys = {name: card.key for name, card in coordinator.officers().items()}
    for bundle in sorted((store.folder / "releases").glob("[0-9]*")):
        report = read_report(bundle)
        decisions = {}
        for path in sorted((bundle / DECISIONS).glob(f"*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX)
            if name in keys:
                decision = decision_of(bundle, content_of(path), name, keys[name])
                decisions[name] = decision.decision
        revoked = ""
        if (bundle / REVOCATION).exists():
            envelope = content_of(bundle / REVOCATION)
            _, word = read_revocation(envelope, coordinator.key.public, what=REVOCATION)
            revoked = f"{word.revoked[:10]}: {word.reason}"
        found.append(
            {
                "bundle": bundle.name,
                "weights": report.weights_digest,
                "verdict": report.verdict.value,
                "decisions": decisions,
                "revoked": revoked,
            }
        )
    return found


def samples_of(store: Store, finished: Round, n: int, seed: int = 0) -> Any:
    """Return n synthetic volumes (n, C, D, H, W) of a round's weights, told what the prior draws.

    Raises:
        PlanError: the family starts from images, of which a coordinator has none.
    """
    import torch

    from ..models.registry import conditioning

    generator = torch.Generator().manual_seed(seed)
    told = conditioning(store.plan).prior(n, generator)
    with torch.no_grad():
        drawn = model_of(store, finished).sample(n, condition=told, generator=generator)
    return drawn.numpy()


def model_of(store: Store, finished: Round) -> Family:
    """Return the model of a round's weights, on the CPU, in evaluation mode."""
    from ..models.registry import build as build_family
    from ..models.state import from_bytes, load_into
    from ..models.trained import add_adapters

    plan = store.plan
    family = build_family(plan)
    if plan.trained == "adapters":
        add_adapters(family)
    load_into(family, from_bytes(finished.weights))
    return family.eval()


def _picture(store: Store, last: Round) -> bytes | None:
    from ..models.pictures import contact_sheet_png

    if store.plan.condition and store.plan.condition.kind in ("mask", "source"):
        return None  # it would take a patient's
    return contact_sheet_png([("synthetic volumes", samples_of(store, last, SHOWN))])
