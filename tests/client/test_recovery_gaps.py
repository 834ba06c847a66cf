"""Which rounds and audits a recovery fills in below those that the journal names."""

from __future__ import annotations

from typing import Any

import pytest
from voxfed.client.approval import approve
from voxfed.client.recovery import apply, prepare
from voxfed.client.site import Site
from voxfed.privacy import accounting
from voxfed.privacy.ledger import RoundKey
from voxfed.study.schedule import Schedule, Stage

DELTA = 1e-3


def journaled(site: Site, number: int, stage: str, branch: str = "0") -> None:
    """Note a charge in the journal alone, as an old ledger under a newer journal has it."""
    facts = {"study": "trunks", "branch": branch, "stage": stage, "round": number}
    site.journal.append("charged", **facts, request=f"{number:064d}", reply="r" * 64)


def added(plan: Any) -> list[tuple[str, str, str, int]]:
    """Kind, branch, stage and round of each charge that a recovery adds."""
    bodies = [(kind, body.get("instead", body)) for kind, body in plan.entries]
    return [(kind, b["branch"], b["stage"], b["round"]) for kind, b in bodies if "round" in b]


@pytest.fixture
def staged(small_hospital: Any, plan_text: bytes) -> Any:
    """A study of two rounds of one stage, then two of another; none charged yet."""
    hospital = small_hospital(plan_text.replace(b"rounds = 2", b"rounds = 4"))
    approve(hospital.site, "trunks")
    found = hospital.approval
    schedule = Schedule((Stage("autoencoder", 2, 1), Stage("denoiser", 2, 1)))
    found.decide(
        decision="approved",
        plan=found.plan_digest,
        declared=found.declared,
        sigma=found.terms.sigma,
        schedule=schedule.written,
    )
    return hospital


def test_a_gap_below_the_last_round_is_charged(staged: Any) -> None:
    """A round whose journal line is missing and whose reply was pruned is charged all the same."""
    journaled(staged.site, 2, "autoencoder")
    plan = prepare(staged.site)
    assert added(plan) == [("note", "0", "autoencoder", 1), ("charge", "0", "autoencoder", 2)]
    assert plan.entries[0][1]["events"] == plan.entries[1][1]["events"]


def test_gaps_count_on_through_the_stages(staged: Any) -> None:
    """Rounds 1 and 2 are of the first stage: no gap of the second stage begins before round 3.

    Each round is then charged once.
    """
    journaled(staged.site, 1, "autoencoder")
    journaled(staged.site, 4, "denoiser")
    plan = prepare(staged.site)
    assert added(plan) == [
        ("charge", "0", "autoencoder", 1),
        ("note", "0", "autoencoder", 2),
        ("note", "0", "denoiser", 3),
        ("charge", "0", "denoiser", 4),
    ]
    apply(staged.site, plan)
    events = staged.approval.terms.per_round
    rounds = 2 * (*events["autoencoder"], *events["denoiser"])
    assert staged.site.ledger.spent("trunks") == accounting.epsilon(rounds, DELTA)
    assert prepare(staged.site).entries == ()


def test_no_gap_is_filled_below_what_the_ledger_holds(staged: Any) -> None:
    """A site that missed round 1 and was charged for round 2 did not lose round 1."""
    events = staged.approval.terms.per_round["autoencoder"]
    staged.site.ledger.commit(RoundKey("trunks", "0", "autoencoder", 2), "request", "r", events)
    journaled(staged.site, 4, "denoiser")
    plan = prepare(staged.site)
    assert added(plan) == [("note", "0", "denoiser", 3), ("charge", "0", "denoiser", 4)]


def test_a_branch_begins_where_it_is_first_known(staged: Any) -> None:
    """A rewind to round 2 did not repeat round 1, and may have run the stages' rounds up to 4."""
    journaled(staged.site, 2, "autoencoder", branch="1")
    journaled(staged.site, 4, "denoiser", branch="1")
    assert added(prepare(staged.site)) == [
        ("charge", "1", "autoencoder", 2),
        ("note", "1", "denoiser", 3),
        ("charge", "1", "denoiser", 4),
    ]


def test_a_gap_never_outgrows_the_schedule(staged: Any) -> None:
    """A round number that no schedule has is charged as itself, without a million rounds below."""
    journaled(staged.site, 10**9, "denoiser")
    stages = [(stage, number) for _, _, stage, number in added(prepare(staged.site))]
    whole = [("autoencoder", 1), ("autoencoder", 2), ("denoiser", 3), ("denoiser", 4)]
    assert stages == [*whole, ("denoiser", 10**9)]


def test_audits_are_counted_apart(staged: Any) -> None:
    """An audit's number is no round: only the audits below it are filled in."""
    journaled(staged.site, 2, "audit")
    assert added(prepare(staged.site)) == [("note", "0", "audit", 1), ("charge", "0", "audit", 2)]
