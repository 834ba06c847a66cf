"""The privacy officer's commands: `officer`, `audit show`, `audit selftest`, `release`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..study.card import Card
from ..study.errors import UsageError, VerificationError
from ..study.files import digest, write
from ..study.identity import PublicKey, SigningKey
from ..study.plan import safe_name
from ..study.terminal import progress, show_table

if TYPE_CHECKING:
    from .audit.report import AuditReport
    from .audit.selftest import Finding

officer = typer.Typer(
    no_args_is_help=True, help="The privacy officer's own key, on the officer's own machine."
)
audit = typer.Typer(no_args_is_help=True, help="What an attacker could learn from the weights.")
release = typer.Typer(no_args_is_help=True, help="Whether the weights may leave.")

PASSPHRASE = "VOXFED_PASSPHRASE"  # noqa: S105, a variable's name
COLOURS = {"PASS": "green", "WARN": "yellow", "INVALID": "magenta", "BLOCK": "red"}

Bundle = Annotated[Path, typer.Argument(help="The folder of the release bundle.")]
Folder = Annotated[Path, typer.Option(help="The officer's folder.")]
Cards = Annotated[
    list[Path], typer.Option("--card", help="A card: coordinator, hospital or officer. Repeat it.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file for the signed decision.")]
Reason = Annotated[str, typer.Option(help="Why, in your words; it is kept for good.")]
Reasons = Annotated[
    list[str], typer.Option("--reason", help='Why a warning may pass: "RULE=your words". Repeat.')
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@officer.callback()
@audit.callback()
def _group() -> None:
    """Keeps `init` and `show` sub-commands while each is the only one of its group."""


@officer.command("init")
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Your name: lower-case letters, digits, hyphens.")],
    as_json: AsJson = False,
) -> None:
    """Make a passphrase-protected key, and a card to hand to the coordinator."""
    name = safe_name(name, what="the officer's name")
    if _key_file(folder).exists():
        raise UsageError(f"{folder} holds a key already", hint="choose another folder")
    key = SigningKey.create(_key_file(folder), _passphrase(new=True))
    Card("officer", name, key.public).write(_card_file(folder))
    facts = {"officer": name, "key": key.public.identifier, "card": str(_card_file(folder))}
    if as_json:
        _print_json(facts)
        return
    console = Console()
    console.print(f"officer [bold]{name}[/], key [bold]{key.public.identifier}[/]")
    console.print(f"give {facts['card']} to the coordinator and compare the key by telephone")


@audit.command("show")
def show(bundle: Bundle, as_json: AsJson = False) -> None:
    """Show what the audit of a bundle found; the files' digests are checked, no signature is."""
    from .verification import check_whole

    report = check_whole(bundle)
    if as_json:
        _print_json(
            report.model_dump(mode="json", exclude={"sites": {"__all__": {"request", "reply"}}})
        )
        return
    _print_report(report)


@audit.command("selftest")
def selftest(as_json: AsJson = False) -> None:
    """Attack this machine's privacy engine, and engines with planted faults, in seconds."""
    from .audit.selftest import run

    began = time.monotonic()
    with progress("self-test", hidden=as_json) as shown:
        findings = run(shown)
    seconds = time.monotonic() - began
    wrong = [finding for finding in findings if not finding.holds]
    if as_json:
        facts = [dataclasses.asdict(finding) for finding in findings]
        _print_json({"holds": not wrong, "seconds": round(seconds, 1), "findings": facts})
    else:
        columns = ["instrument", "engine", "measured", "alarm", "limit", "as it must be"]
        show_table("self-test of the privacy engine", columns, [_cells(f) for f in findings])
        Console().print(f"{len(findings) - len(wrong)} of {len(findings)} hold, {seconds:.0f} s")
    if wrong:
        raise VerificationError(
            "the self-test of the privacy engine failed",
            got="; ".join(finding.verdict for finding in wrong),
            hint="train nothing with privacy on this machine until it holds",
        )


@release.command("approve")
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
    name, key = _officer(folder)
    envelope = sign_approval(
        bundle_digest(bundle), report.findings, officer=name, reasons=told, key=key
    )
    write(output, envelope)
    _show_decision(report, name, "approve", output, checked=bool(card), as_json=as_json)


@release.command("reject")
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
    name, key = _officer(folder)
    envelope = sign_rejection(bundle_digest(bundle), officer=name, reason=reason, key=key)
    write(output, envelope)
    _show_decision(report, name, "reject", output, checked=bool(card), as_json=as_json)


@release.command("verify")
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
        _print_json({"verified": True, **dataclasses.asdict(found)})
        return
    console = Console()
    colour = COLOURS[found.verdict]
    console.print(f"[bold {colour}]verified: {found.verdict.value}[/] study {found.study}")
    console.print(f"replies checked of {', '.join(found.sites) or 'no site'}")
    for name, reasons in found.approvals.items():
        console.print(f"approved by {name}", markup=False)
        for rule, reason in reasons.items():
            console.print(f"  {rule}: {reason}", markup=False)
    console.print(f"weights sha256 {found.weights_digest}", soft_wrap=True)


@release.command("export")
def export(
    bundle: Bundle,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Write a release as a MONAI bundle: `python -m monai.bundle run` draws volumes from it."""
    from .monai_bundle import export as export_bundle

    folder = export_bundle(bundle, output)
    if as_json:
        _print_json({"folder": str(folder)})
        return
    console = Console()
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


def _officer(folder: Path) -> tuple[str, SigningKey]:
    name = Card.read(_card_file(folder)).name
    return name, SigningKey.read(_key_file(folder), _passphrase(new=False))


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
        _print_json(facts)
        return
    console = Console()
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


def _cells(finding: Finding) -> list[str]:
    reading = finding.reading
    alarm, verdict = "yes" if reading.alarm else "no", "PASS" if finding.holds else "FAIL"
    limit = f"{reading.limit:.6g}"
    return [finding.instrument, finding.engine, reading.detail, alarm, limit, verdict]


def _print_report(report: AuditReport) -> None:
    console = Console()
    colour = COLOURS[report.verdict]
    console.print(f"[bold white on {colour}] {report.verdict.value} [/] study {report.study}")
    if report.private and report.epsilon is not None:
        console.print(
            f"accounted upper bound (proof): epsilon {report.epsilon:.4g} of "
            f"{report.epsilon_limit:g} at delta {report.delta:g}"
        )
    else:
        console.print("[bold red]trained without privacy: nothing bounds the leak[/]")
    rules = Table("verdict", "rule", "finding", title="rules", show_lines=True)
    for finding in report.findings:
        shade = COLOURS[finding.verdict]
        rules.add_row(f"[{shade}]{finding.verdict.value}[/]", finding.rule, finding.detail)
    console.print(rules)
    sites = Table(
        "hospital", "members", "held out", "AUC (95 %)", "epsilon", title="hospitals, worst first"
    )
    aucs = {membership.site: membership.auc for membership in reversed(report.memberships)}
    for site in report.sites:
        found = aucs[site.site]
        sites.add_row(
            site.site,
            f"{site.members:.0f}",
            f"{site.non_members:.0f}",
            f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})",
            "none" if site.epsilon is None else f"{site.epsilon:.4g}",
        )
    console.print(sites)
    for finding in report.findings:
        if finding.smallest_leak:
            console.print(f"smallest leak seen by '{finding.rule}': {finding.smallest_leak}")
    for line in report.notes:
        console.print(line)
    console.print("signatures are not checked here: run `voxfed release verify` with the cards")


def _passphrase(*, new: bool) -> str:
    text = os.environ.get(PASSPHRASE)
    if text is None:
        text = str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=new, err=True))
    if not text:
        raise UsageError("the passphrase is empty", hint=f"type one, or set {PASSPHRASE}")
    return text


def _key_file(folder: Path) -> Path:
    return folder / "keys" / "officer.pem"


def _card_file(folder: Path) -> Path:
    return folder / "officer.card.json"


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=1))
