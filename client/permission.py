"""Permission: the audits and evaluations that were asked for, and which the operator allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from ..study.errors import Refusal
from ..study.files import write
from ..study.identity import canonical
from .approval import Approval
from .site import Site

Kind = Literal["audit", "evaluation"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Permission:
    """One audit or evaluation that the coordinator asked for.

    Attributes:
        subject: SHA-256 of what is asked about: an audit's weights, or what an evaluation's request
            calls its subject.
        round: the round that the weights came out of.
        number: counts the allowed ones of the study from 1; 0 while it is not allowed.
        about: what the operator compares before allowing it.
    """

    subject: str
    round: int
    number: int
    about: str


def permissions(approval: Approval, kind: Kind) -> list[Permission]:
    """Return what was asked for, that of the latest round, and there what was asked last, last."""
    found = []
    for path in (approval.folder / f"{kind}s").glob("*.json"):
        facts = json.loads(path.read_bytes())
        about = facts.get("about", f"weights sha256 {path.stem[:16]}")
        asked = Permission(path.stem, facts["round"], facts["number"], about)
        found.append((asked.round, path.stat().st_mtime_ns, asked.subject, asked))
    return [asked for *_, asked in sorted(found, key=lambda one: one[:3])]


def number_of(approval: Approval, kind: Kind, asked: Permission) -> int:
    """Return the number of what is asked for if the operator allowed it; else note it as pending.

    Returns:
        0 while the operator has not decided, and -1 where the study's audits or evaluations are
        spent.
    """
    known = {one.subject: one for one in permissions(approval, kind)}
    if asked.subject in known and known[asked.subject].number:
        return known[asked.subject].number
    if sum(one.number > 0 for one in known.values()) >= _limit(approval, kind):
        return -1
    _keep(approval, kind, asked)
    return 0


def permit(site: Site, approval: Approval, kind: Kind) -> Permission:
    """Allow the pending audit or evaluation of the latest round, and return it.

    Raises:
        Refusal: none is pending, or those of the study are spent.
    """
    known = permissions(approval, kind)
    pending = [one for one in known if not one.number]
    number = sum(one.number > 0 for one in known) + 1
    limit = _limit(approval, kind)
    if not pending:
        raise Refusal(f"no {kind} of this study waits for a decision")
    if number > limit:
        raise Refusal(f"the study's {kind}s are spent", got=f"{kind} {number}", expected=f"{limit}")
    last = pending[-1]
    allowed = Permission(last.subject, last.round, number, last.about)
    _keep(approval, kind, allowed)
    study = approval.folder.name
    site.journal.append(f"{kind} allowed", study=study, subject=allowed.subject, number=number)
    return allowed


def _limit(approval: Approval, kind: Kind) -> int:
    privacy = approval.plan.privacy
    return privacy.audits if kind == "audit" else privacy.evaluations


def _keep(approval: Approval, kind: Kind, asked: Permission) -> None:
    path = approval.folder / f"{kind}s" / f"{asked.subject}.json"
    facts = {"round": asked.round, "number": asked.number, "about": asked.about}
    write(path, canonical(facts), mode=0o600)
