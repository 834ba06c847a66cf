"""`voxfed site ledger`: what was spent, what is left, and how a lost ledger is made good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..study.terminal import console, show_json, show_table
from .options import HERE, AsJson, Folder, open_site

if TYPE_CHECKING:
    from ..privacy.recovery import Recovery
    from .site import Site

ledger_app = typer.Typer(help="What was spent and what is left.")


@ledger_app.callback(invoke_without_command=True)
def ledger(
    context: typer.Context,
    folder: Folder = HERE,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curves over rounds, .png or .svg.")
    ] = None,
) -> None:
    """Show what each study spent and what is left, after checking the ledger's chain."""
    if context.invoked_subcommand is not None:
        return
    from .accounts import add_curves, overview
    from .curve import check_ending, draw_curves

    if plot is not None:
        check_ending(plot)
    site = open_site(folder)
    limits = site.settings.limits
    document = overview(site.ledger, limits.lifetime_epsilon, limits.delta)
    if as_json or plot is not None:
        document = add_curves(document, site.ledger.rows())
    if plot is not None:
        draw_curves(document, plot)
    if as_json:
        show_json(document)
        return
    _show(document)
    if plot is not None:
        console.print(f"drew {plot}")


@ledger_app.command()
def recover(
    folder: Folder = HERE,
    copy: Annotated[
        Path | None, typer.Option("--from", help="A newer copy of ledger.sqlite.")
    ] = None,
    all_known: Annotated[
        bool,
        typer.Option(
            "--all-known", help="You vouch that no study but those shown was ever approved here."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make good a ledger that was put back from an old copy: take over or charge what is missing.

    Without --yes it only shows what would be written.
    """
    from .recovery import apply, prepare

    site = open_site(folder)
    recovery = prepare(site, copy, all_known=all_known)
    document = _outcome(site, recovery) | {"written": yes}
    if yes:
        apply(site, recovery)
    if as_json:
        show_json(document)
        return
    _show_outcome(document)


def _show(document: dict[str, Any]) -> None:
    show_table(
        "studies (epsilon by privacy loss distributions)",
        ("study", "rounds", "spent", "left", "delta", "closed"),
        [
            (
                s["study"],
                s["rounds"],
                f"{s['spent']:.4f}" if s["bounded"] else "NO BOUND",
                f"{s['left']:.4f}",
                s["delta"],
                s["closed"],
            )
            for s in document["studies"]
        ],
    )
    lifetime = document["lifetime"]
    if not lifetime["bounded"]:
        console.print("[bold red]no lifetime bound holds: a study trained without privacy[/]")
    console.print(
        f"lifetime (Renyi filter): {lifetime['spent']:.4f} spent, {lifetime['left']:.4f} left "
        f"of {lifetime['limit']:g}; {document['rows']} rows, chain intact"
    )


def _outcome(site: Site, recovery: Recovery) -> dict[str, Any]:
    """Return what a recovery would append, and each study's spent before and after."""
    from ..privacy.budget import read_accounts
    from ..privacy.recovery import as_rows

    before = site.ledger.accounts()
    rows = [*site.ledger.rows(), *recovery.copied, *as_rows(recovery.entries)]
    return {
        "copied": len(recovery.copied),
        "rows": [{"kind": kind, **body} for kind, body in recovery.entries],
        "studies": [
            {
                "study": name,
                "spent_before": before[name].spent if name in before else 0.0,
                "spent_after": account.spent,
            }
            for name, account in read_accounts(rows).items()
        ],
        "exhausted": recovery.exhausts,
    }


def _show_outcome(document: dict[str, Any]) -> None:
    if not document["copied"] and not document["rows"]:
        console.print("nothing is missing: the ledger holds all that coordinator and journal name")
        return
    console.print(f"{document['copied']} rows taken over from the copy")
    if document["rows"]:
        show_table(
            "rows that are added",
            ("kind", "study", "reason"),
            [(r["kind"], r.get("study", ""), r.get("reason", "")) for r in document["rows"]],
        )
    show_table(
        "epsilon spent by each study",
        ("study", "before", "after"),
        [
            (s["study"], f"{s['spent_before']:.4f}", f"{s['spent_after']:.4f}")
            for s in document["studies"]
        ],
    )
    if document["exhausted"]:
        console.print(
            "[bold red]the whole lifetime budget is charged: nothing may ever be trained here[/], "
            "since a study may have been approved that nothing here remembers; --from a newer "
            "copy avoids it, and so does --all-known if you know of no other"
        )
    console.print("written" if document["written"] else "nothing was written; add --yes to write")
