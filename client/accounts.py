"""The ledger as a document: each study, the lifetime, and the curve over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..privacy.accounting import Event, epsilon, lifetime_epsilon
from ..privacy.budget import Account, read_accounts, read_events
from ..privacy.chain import Row
from ..privacy.ledger import Ledger


def overview(ledger: Ledger, limit: float, delta: float) -> dict[str, Any]:
    """Return spent and left for each study and in all.

    A study without privacy is not `bounded`: no epsilon holds for it, nor for the lifetime then.

    Args:
        ledger: the site's.
        limit: the lifetime epsilon that the site allows.
        delta: the lifetime's.

    Raises:
        VerificationError: the ledger's chain does not hold.
    """
    rows = ledger.rows()
    accounts = read_accounts(rows)
    studies = [_study(account, rows) for account in accounts.values()]
    released = {row.body["study"] for row in rows if row.kind in ("charge", "note")}
    return {
        "studies": studies,
        "lifetime": {
            "spent": ledger.lifetime_spent(),
            "left": ledger.lifetime_left(),
            "limit": limit,
            "delta": delta,
            "bounded": all(s["bounded"] or s["study"] not in released for s in studies),
        },
        "rows": len(rows),
    }


def add_curves(document: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return an overview with each study's `curve`: what it and the lifetime had cost by then.

    A point is {row, stage, round, epsilon, lifetime}: epsilon of the study's charges up to that
    row by privacy loss distributions, at the plan's delta; lifetime of all studies' charges by
    the Renyi filter. A worst-case charge has the stage "recovery" and no round.

    Args:
        document: what `overview` returned for the same rows.
        rows: the ledger's, verified.
    """
    deltas = {name: account.delta for name, account in read_accounts(rows).items()}
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in deltas}
    charged: dict[str, list[Event]] = {name: [] for name in deltas}
    for row in rows:
        if row.kind not in ("charge", "note"):
            continue
        study = row.body["study"]
        charged[study] += read_events(row.body["events"])
        everything = [event for events in charged.values() for event in events]
        curves[study].append(
            {
                "row": row.seq,
                "stage": row.body.get("stage", "recovery"),
                "round": row.body.get("round"),
                "epsilon": epsilon(charged[study], deltas[study]),
                "lifetime": lifetime_epsilon(everything, document["lifetime"]["delta"]),
            }
        )
    studies = [study | {"curve": curves[study["study"]]} for study in document["studies"]]
    return document | {"studies": studies}


def _study(account: Account, rows: Sequence[Row]) -> dict[str, Any]:
    charges = [r for r in rows if r.kind == "charge" and r.body["study"] == account.study]
    return {
        "study": account.study,
        "rounds": len(charges),
        "reserved": epsilon(account.reserved, account.delta),
        "spent": account.spent,
        "left": account.left,
        "delta": account.delta,
        "closed": account.closed,
        "bounded": bool(account.reserved),
    }
