"""The privacy officer's commands on releases: `release` approve, reject, verify and export."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..study.card import Card
from ..study.errors import UsageError
from ..study.files import digest, write
from ..study.identity import PublicKey
from ..study.terminal import console, show_json
from .officer_commands import COLOURS, AsJson, Bundle, Folder, officer_of

if TYPE_CHECKING:
    from .audit.report import AuditReport

release_app = typer.Typer(no_args_is_help=True, help="Whether the weights may leave.")

Cards = Annotated[
    list[Path], typer.Option("--card", help="A card: coordinator, hospital or officer. Repeat it.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file for the signed decision.")]
Reason = Annotated[str, typer.Option(help="Why, in your words; it is kept for good.")]
Reasons = Annotated[
    list[str], typer.Option("--reason", help='Why a warning may pass: "RULE=your words". Repeat.')
]


class Layout(StrEnum):
    """How an exported release is laid out."""

    MONAI = "monai"
    SACRO = "sacro"


@release_app.command("approve")
def approve(
    bundle: Bundle,
    folder: Folder,
    output: Output,
    reason: Reasons = [],  # noqa: B006, typer copies it
    card: Cards = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Sign that a release may leave; a BLOCK cannot be approved, each WARN needs a reason.

    Reasons that are not given are asked for on the terminal.
    """
    from .bundle import bundle_digest
    from .decision import sign_approval, warnings_of

    report, told = _examined(bundle, card, output), _told(reason)
    if not as_json and sys.stdin.isatty() and not report.verdict.closes:
        for rule in warnings_of(report.findings):
            detail = next(found.detail for found in report.findings if found.rule == rule)
            told[rule] = told.get(rule) or typer.prompt(f"{rule}: {detail}\nyour reason")
    name, key = officer_of(folder)
    envelope = sign_approval(
        bundle_digest(bundle), report.findings, officer=name, reasons=told, key=key
    )
    write(output, envelope)
    _show_decision(report, name, "approve", output, checked=bool(card), as_json=as_json)


@release_app.command("reject")
def reject(
    bundle: Bundle,
    folder: Folder,
    output: Output,
    reason: Reason,
    card: Cards = [],  # noqa: B006, typer copies it
    as_json: AsJson = False,
) -> None:
    """Sign that a release must not leave."""
    from .bundle import bundle_digest
    from .decision import sign_rejection

    report = _examined(bundle, card, output)
    name, key = officer_of(folder)
    envelope = sign_rejection(bundle_digest(bundle), officer=name, reason=reason, key=key)
    write(output, envelope)
    _show_decision(report, name, "reject", output, checked=bool(card), as_json=as_json)


@release_app.command("verify")
def verify(
    bundle: Bundle,
    card: Cards,
    revoked: Annotated[
        list[Path], typer.Option(help="A revocation from the coordinator. Repeat it.")
    ] = [],  # noqa: B006, typer copies it
    as_json: AsJson = False,
) -> None:
    """Check a bundle offline against the cards; the first thing that is wrong is named."""
    from .bundle import content_of
    from .verification import verify as verify_bundle

    coordinator, officers, sites = _keys(card)
    found = verify_bundle(
        bundle,
        coordinator=coordinator,
        officers=officers,
        sites=sites,
        revocations={str(path): content_of(path) for path in revoked},
    )
    if as_json:
        show_json({"verified": True, **dataclasses.asdict(found)})
        return
    colour = COLOURS[found.verdict]
    console.print(f"[bold {colour}]verified: {found.verdict.value}[/] study {found.study}")
    console.print(f"replies checked of {', '.join(found.sites) or 'no site'}")
    for name, reasons in found.approvals.items():
        console.print(f"approved by {name}", markup=False)
        for rule, reason in reasons.items():
            console.print(f"  {rule}: {reason}", markup=False)
    console.print(f"weights sha256 {found.weights_digest}", soft_wrap=True)


@release_app.command("export")
def export(
    bundle: Bundle,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    layout: Annotated[
        Layout, typer.Option(help="For MONAI's tools, or for data-egress checkers who use SACRO.")
    ] = Layout.MONAI,
    as_json: AsJson = False,
) -> None:
    """Write a release as a folder that MONAI's tools draw from, or that egress checkers know."""
    from . import egress, monai_bundle

    if layout is Layout.SACRO:
        folder = egress.export(bundle, output)
    else:
        folder = monai_bundle.export(bundle, output)
    if as_json:
        show_json({"folder": str(folder)})
        return
    if layout is Layout.SACRO:
        console.print(f"wrote {folder}; hand it to the data-egress checker", soft_wrap=True)
        return
    console.print(f"wrote {folder}; draw from it, there, with", soft_wrap=True)
    console.print("  python -m monai.bundle run --config_file configs/inference.json", markup=False)
    console.print("MONAI needs the package fire for this command; voxfed must be installed too")


def _examined(bundle: Path, cards: Sequence[Path], output: Path) -> AuditReport:
    """Returns the report of a bundle, its signatures checked where cards are given."""
    from .verification import check_whole, examine

    if output.exists():
        raise UsageError(f"{output} exists already", hint="a decision is never overwritten")
    if not cards:
        return check_whole(bundle)
    coordinator, _, sites = _keys(cards)
    return examine(bundle, coordinator=coordinator, sites=sites)


def _told(words: Sequence[str]) -> dict[str, str]:
    """Returns the reason for each rule, from "RULE=reason"."""
    parts = [word.partition("=") for word in words]
    if any(not rule.strip() or not equals for rule, equals, _ in parts):
        raise UsageError(
            "a reason does not say for which warning",
            got=", ".join(words),
            expected='--reason "RULE=your words"',
            hint="`voxfed audit show` lists the rules",
        )
    return {rule.strip(): reason for rule, _, reason in parts}


def _show_decision(
    report: AuditReport, officer: str, decision: str, output: Path, *, checked: bool, as_json: bool
) -> None:
    facts = {
        "decision": decision,
        "officer": officer,
        "study": report.study,
        "verdict": report.verdict.value,
        "signatures_checked": checked,
        "file": str(output),
        "sha256": digest(output),
    }
    if as_json:
        show_json(facts)
        return
    console.print(f"{officer} signed: {decision} {report.study} ({report.verdict.value})")
    if not checked:
        console.print("no signature was checked: name the cards with --card to check them")
    console.print(f"send {output} to the coordinator, who adds it to the bundle")


def _keys(
    paths: Sequence[Path],
) -> tuple[PublicKey, dict[str, PublicKey], dict[str, PublicKey]]:
    """Returns the coordinator's key, and those of officers and sites by name."""
    keys: dict[str, dict[str, PublicKey]] = {"coordinator": {}, "officer": {}, "site": {}}
    for path in paths:
        card = Card.read(path)
        known = keys[card.role].setdefault(card.name, card.key)
        if known != card.key:
            raise UsageError(f"two cards name the {card.role} {card.name} with different keys")
    if len(keys["coordinator"]) != 1:
        raise UsageError(
            "the coordinator's card is needed",
            got=f"{len(keys['coordinator'])} of them",
            expected="one --card of a coordinator",
        )
    return next(iter(keys["coordinator"].values())), keys["officer"], keys["site"]
