"""The ledger as a document: each study, the lifetime, and the curve over rounds."""

from __future__ import annotations

from typing import Any

from ..privacy.accounting import Event, epsilon
from ..privacy.budget import read_events
from ..privacy.ledger import Ledger


def overview(ledger: Ledger, limit: float) -> dict[str, Any]:
    """Return spent and left for each study and in all, with epsilon after each charge.

    A study without privacy is not `bounded`: no epsilon holds for it, nor for the lifetime then.

    Raises:
        VerificationError: the ledger's chain does not hold.
    """
    rows = ledger.rows()
    studies = []
    for name, account in ledger.accounts().items():
        charged: list[Event] = []
        curve = []
        for row in rows:
            if row.kind == "charge" and row.body["study"] == name:
                charged += read_events(row.body["events"])
                spent = epsilon(charged, account.delta)
                curve.append(
                    {"stage": row.body["stage"], "round": row.body["round"], "epsilon": spent}
                )
        studies.append(
            {
                "study": name,
                "rounds": len(curve),
                "spent": account.spent,
                "left": account.left,
                "delta": account.delta,
                "closed": account.closed,
                "bounded": bool(account.reserved),
                "curve": curve,
            }
        )
    return {
        "studies": studies,
        "lifetime": {
            "spent": ledger.lifetime_spent(),
            "left": ledger.lifetime_left(),
            "limit": limit,
            "bounded": all(study["bounded"] or not study["rounds"] for study in studies),
        },
        "rows": len(rows),
    }
