"""The privacy officer's commands on audits: `audit show` and `audit selftest`."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from ..study.errors import VerificationError
from ..study.terminal import console, progress, show_json, show_table
from .officer_commands import COLOURS, AsJson, Bundle

if TYPE_CHECKING:
    from .audit.report import AuditReport
    from .audit.selftest import Finding

audit_app = typer.Typer(no_args_is_help=True, help="What an attacker could learn from the weights.")


@audit_app.callback()
def _group() -> None:
    """Keeps `show` a sub-command where no other is mounted."""


@audit_app.command("show")
def show(bundle: Bundle, as_json: AsJson = False) -> None:
    """Show what the audit of a bundle found; the files' digests are checked, no signature is."""
    from .verification import check_whole

    report = check_whole(bundle)
    if as_json:
        show_json(
            report.model_dump(mode="json", exclude={"sites": {"__all__": {"request", "reply"}}})
        )
        return
    _print_report(report)


@audit_app.command("selftest")
def selftest(as_json: AsJson = False) -> None:
    """Attack this machine's privacy engine and try its audit, sound and with planted faults."""
    from .audit.selftest import run

    began = time.monotonic()
    with progress("self-test", hidden=as_json) as shown:
        findings = run(shown)
    seconds = time.monotonic() - began
    wrong = [finding for finding in findings if not finding.holds]
    if as_json:
        facts = [{"part": finding.part} | dataclasses.asdict(finding) for finding in findings]
        show_json({"holds": not wrong, "seconds": round(seconds, 1), "findings": facts})
    else:
        for part, seen in (("engine", "engine"), ("audit", "looked at")):
            columns = ["instrument", seen, "measured", "alarm", "limit", "as it must be"]
            rows = [_cells(finding) for finding in findings if finding.part == part]
            show_table(f"self-test of the privacy {part}", columns, rows)
        console.print(f"{len(findings) - len(wrong)} of {len(findings)} hold, {seconds:.0f} s")
    if wrong:
        raise VerificationError(
            "the self-test of the privacy engine and the audit failed",
            got="; ".join(finding.verdict for finding in wrong),
            hint="train and audit nothing on this machine until it holds",
        )


def _cells(finding: Finding) -> list[str]:
    reading = finding.reading
    alarm, verdict = "yes" if reading.alarm else "no", "PASS" if finding.holds else "FAIL"
    limit = f"{reading.limit:.6g}"
    return [finding.instrument, finding.engine, reading.detail, alarm, limit, verdict]


def _print_report(report: AuditReport) -> None:
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
    best = {bound.canaries: bound for bound in reversed(report.bounds)}
    for bound in best.values():
        console.print(
            f"attack (lower bound): epsilon at least {bound.general:.2f} at {bound.place} by "
            f"{bound.score}, of at most {bound.cap:.2f} that so many coins could prove"
        )
    for finding in report.findings:
        if finding.smallest_leak:
            console.print(f"smallest leak seen by '{finding.rule}': {finding.smallest_leak}")
    for line in report.notes:
        console.print(line)
    console.print("signatures are not checked here: run `voxfed release verify` with the cards")
