"""Recovery at a site: an old ledger, alone or with its folder, is put back and made good."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from voxfed.client import recovery
from voxfed.client.approval import approve
from voxfed.client.outbox import Outbox
from voxfed.client.recovery import apply, prepare
from voxfed.client.site import Site
from voxfed.client.worker import Worker
from voxfed.privacy import accounting
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Committed, RoundKey
from voxfed.study import messages
from voxfed.study.errors import Refusal, UsageError, VerificationError

DELTA = 1e-3


def key(number: int, stage: str = "autoencoder") -> RoundKey:
    return RoundKey("trunks", "0", stage, number)


def charge(site: Site, number: int, *, journaled: bool = True) -> Head:
    """Charge a round as the worker does: outbox, ledger, journal."""
    reply = Outbox(site.worker / "outbox").put(key(number), b"reply %d" % number)
    request = f"{number:064d}"
    terms = recovery.all_approvals(site)[0].terms
    head = site.ledger.commit(key(number), request, reply, terms.per_round["autoencoder"])
    if journaled:
        facts = {"study": "trunks", "branch": "0", "stage": "autoencoder", "round": number}
        site.journal.append("charged", **facts, request=request, reply=reply)
    return head


def ask(hospital: Any, echo: Head) -> str:
    """Send the worker a round with the coordinator's echo; the code of its refusal."""
    head = messages.Head(length=echo.length, digest=echo.digest)
    code: str = hospital.code(Worker(hospital.site).answer(hospital.train_request(2, echo=head)))
    return code


def restore(path: Path, old: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(old, path) if old.is_dir() else shutil.copy(old, path)


@pytest.fixture
def old(hospital: Any, tmp_path: Path) -> Path:
    """A copy of the worker's folder after approval, before any round."""
    assert hospital.site.ledger.head().length == 1
    return Path(shutil.copytree(hospital.site.worker, tmp_path / "old"))


def test_nothing_is_missing(hospital: Any) -> None:
    """A ledger in order is left as it is, whatever its length."""
    charge(hospital.site, 1)
    plan = prepare(hospital.site)
    assert (plan.copied, plan.entries) == ((), ())
    head = hospital.site.ledger.head()
    apply(hospital.site, plan)
    assert hospital.site.ledger.head() == head


def test_a_kill_between_writing_and_forgetting_is_taken_up(hospital: Any, old: Path) -> None:
    """With the recovery in the ledger and the refused echo beside it, only that goes."""
    head = charge(hospital.site, 1)
    restore(hospital.site.worker, old)
    ask(hospital, head)
    kept = hospital.site.worker / "ledger.refused-echo.json"
    content = kept.read_bytes()
    apply(hospital.site, prepare(hospital.site))
    rows = hospital.site.ledger.rows()
    kept.write_bytes(content)
    apply(hospital.site, prepare(hospital.site))
    assert hospital.site.ledger.rows() == rows
    assert not kept.exists()


def test_an_old_ledger_under_a_whole_journal_is_replayed(hospital: Any, old: Path) -> None:
    """Exactly the lost charges come back, and the lost round is answered from the outbox."""
    head = charge(hospital.site, 1)
    spent = hospital.site.ledger.spent("trunks")
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    assert ask(hospital, head) == "rolled-back"
    assert hospital.site.ledger.head().length == 1
    apply(hospital.site, prepare(hospital.site))
    ledger = hospital.site.ledger
    assert [row.kind for row in ledger.rows()] == ["reserve", "charge", "recovery"]
    assert ledger.spent("trunks") == spent
    ledger.check_echo(head)
    terms = hospital.approval.terms
    done = ledger.begin(key(1), f"{1:064d}", terms.per_round["autoencoder"])
    assert isinstance(done, Committed)
    assert Outbox(hospital.site.worker / "outbox").get(key(1), done.reply_digest) == b"reply 1"
    assert (
        ledger.begin(key(2), "another", terms.per_round["autoencoder"]) is None
    )  # and the study goes on


def test_a_lost_approval_is_reserved_again(undecided: Any, tmp_path: Path) -> None:
    """The ledger from before the approval, under a whole journal: its reservation comes back."""
    shutil.copy(undecided.site.worker / "ledger.sqlite", tmp_path / "old.sqlite")
    approve(undecided.site, "trunks")
    head = charge(undecided.site, 1)
    before = undecided.site.ledger.accounts()
    restore(undecided.site.worker / "ledger.sqlite", tmp_path / "old.sqlite")
    with pytest.raises(VerificationError):
        undecided.site.ledger.check_echo(head)
    apply(undecided.site, prepare(undecided.site))
    assert undecided.site.ledger.accounts() == before


def test_a_round_that_a_crash_left_out_of_the_journal_is_charged(hospital: Any, old: Path) -> None:
    """Its reply lies in the outbox, so it may have left, though the journal does not name it."""
    charge(hospital.site, 1)
    charge(hospital.site, 2, journaled=False)
    spent = hospital.site.ledger.spent("trunks")
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    with pytest.raises(VerificationError):
        hospital.site.ledger.check_echo(Head(2, "2" * 64))
    plan = prepare(hospital.site)
    assert [kind for kind, _ in plan.entries] == ["charge", "note", "recovery"]
    apply(hospital.site, plan)
    assert hospital.site.ledger.spent("trunks") == spent


@pytest.mark.parametrize("all_known", [False, True])
def test_an_old_folder_charges_the_worst_case(hospital: Any, old: Path, all_known: bool) -> None:
    """Journal and approvals are as old as the ledger: the study in full, and the lifetime too.

    Unless the operator vouches that no other study was approved.
    """
    head = charge(hospital.site, 1)
    restore(hospital.site.worker, old)
    assert ask(hospital, head) == "rolled-back"
    apply(hospital.site, prepare(hospital.site, all_known=all_known))
    ledger = hospital.site.ledger
    whole = hospital.approval.terms.whole
    assert ledger.spent("trunks") == accounting.epsilon(whole, DELTA)
    assert ledger.left("trunks") == 0
    assert (ledger.lifetime_left() > 0) is all_known
    ledger.check_echo(head)
    assert ask(hospital, head) == "budget"  # found in order, and nothing is left for a round
    assert prepare(hospital.site).entries == ()


def test_after_a_recovery_the_journal_is_no_longer_counted(hospital: Any, old: Path) -> None:
    """It names rounds that a worst case replaced, so that its length says nothing more."""
    charge(hospital.site, 1)
    charge(hospital.site, 2)
    ledger = hospital.site.worker / "ledger.sqlite"
    restore(ledger, old / "ledger.sqlite")
    ask(hospital, Head(9, "9" * 64))
    apply(hospital.site, prepare(hospital.site, all_known=True))
    recovered = hospital.site.ledger.head()
    assert recovered.length == 3  # as many rows as journal and old copy name
    restore(ledger, old / "ledger.sqlite")
    assert ask(hospital, recovered) == "rolled-back"
    kinds = [kind for kind, _ in prepare(hospital.site, all_known=True).entries]
    assert kinds == ["note", "recovery"]


def test_a_study_that_only_the_journal_remembers_exhausts(hospital: Any, old: Path) -> None:
    """Its terms are lost with its approval: no vouching of the operator can say what it spent."""
    hospital.site.journal.append("approved", study="knees", plan="k" * 64, declared=10)
    with pytest.raises(VerificationError):
        hospital.site.ledger.check_echo(Head(2, "2" * 64))
    assert prepare(hospital.site, all_known=True).exhausts


def test_an_altered_journal_proves_nothing(hospital: Any, old: Path) -> None:
    """A journal whose chain does not hold is not believed: the worst case is charged."""
    head = charge(hospital.site, 1)
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    path = hospital.site.journal.path
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first.replace(b"trunks", b"knees") + b"\n" + rest)
    with pytest.raises(VerificationError):
        hospital.site.ledger.check_echo(head)
    assert prepare(hospital.site).exhausts


def test_a_newer_copy_is_taken_over(hospital: Any, old: Path, tmp_path: Path) -> None:
    """Row by row as they were; the copy is only read, and no worst case is charged."""
    head = charge(hospital.site, 1)
    rows = hospital.site.ledger.rows()
    copy = tmp_path / "backup" / "ledger.sqlite"
    copy.parent.mkdir()
    shutil.copy(hospital.site.worker / "ledger.sqlite", copy)
    restore(hospital.site.worker, old)
    ask(hospital, head)
    content = copy.read_bytes()
    apply(hospital.site, prepare(hospital.site, copy))
    assert hospital.site.ledger.rows() == rows
    assert hospital.site.ledger.refused_echo() is None
    assert [path.name for path in copy.parent.iterdir()] == ["ledger.sqlite"]
    assert copy.read_bytes() == content


def test_a_copy_that_is_itself_too_old_is_completed(
    hospital: Any, old: Path, tmp_path: Path
) -> None:
    """What it holds is taken over, and the worst case is charged for the rest."""
    charge(hospital.site, 1)
    shutil.copy(hospital.site.worker / "ledger.sqlite", tmp_path / "newer.sqlite")
    head = charge(hospital.site, 2)
    restore(hospital.site.worker, old)
    ask(hospital, head)
    plan = prepare(hospital.site, tmp_path / "newer.sqlite", all_known=True)
    assert [row.kind for row in plan.copied] == ["charge"]
    assert [kind for kind, _ in plan.entries] == ["note", "recovery"]
    apply(hospital.site, plan)
    hospital.site.ledger.check_echo(head)


def test_copies_that_cannot_be_used_are_named(hospital: Any, tmp_path: Path) -> None:
    """A missing file, no ledger, and another site's ledger; nothing is written."""
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"no database" * 99)
    with pytest.raises(UsageError, match="no such copy"):
        prepare(hospital.site, tmp_path / "nowhere.sqlite")
    with pytest.raises(VerificationError, match=r"garbage\.sqlite cannot be used"):
        prepare(hospital.site, garbage)
    foreign = tmp_path / "foreign.sqlite"
    type(hospital.site.ledger).create(foreign, lifetime_epsilon=1.0, delta=DELTA)
    with pytest.raises(VerificationError, match="does not continue this ledger"):
        prepare(hospital.site, foreign)
    assert hospital.site.ledger.head().length == 1


def test_a_recovery_and_a_round_do_not_cross(hospital: Any, old: Path) -> None:
    """Whatever was charged between deciding and writing stops the recovery."""
    charge(hospital.site, 1)
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    plan = prepare(hospital.site)
    assert plan.entries
    charge(hospital.site, 2)
    with pytest.raises(Refusal, match="grew"):
        apply(hospital.site, plan)


def test_an_old_ledger_is_made_good_before_any_request(hospital: Any, old: Path) -> None:
    """No echo was refused yet, and the journal names what is missing: it is charged again.

    The head that the coordinator then echoes is accounted for without a worst case.
    """
    charge(hospital.site, 1)
    charge(hospital.site, 2)
    head = Head(3, "3" * 64)  # rows written anew have other times, hence digests; here perhaps not
    spent = hospital.site.ledger.spent("trunks")
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    assert hospital.site.ledger.refused_echo() is None
    apply(hospital.site, prepare(hospital.site))
    assert hospital.site.ledger.spent("trunks") == spent
    assert prepare(hospital.site).entries == ()
    assert ask(hospital, head) == "rolled-back"
    apply(hospital.site, prepare(hospital.site))
    assert hospital.site.ledger.spent("trunks") == spent
    kinds = [row.kind for row in hospital.site.ledger.rows()]
    assert kinds == ["reserve", "charge", "charge", "recovery", "recovery"]
    hospital.site.ledger.check_echo(head)


def test_a_replay_that_falls_short_of_the_echo_is_not_enough(hospital: Any, old: Path) -> None:
    """Nor do notes for rounds that nobody knows of, or later rows, stand for what was lost."""
    charge(hospital.site, 2)
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    apply(hospital.site, prepare(hospital.site))
    assert [row.kind for row in hospital.site.ledger.rows()][1:] == ["note", "charge", "recovery"]
    assert ask(hospital, Head(3, "3" * 64)) == "rolled-back"
    assert prepare(hospital.site).exhausts


def test_rows_after_a_replay_do_not_count_for_the_echo(hospital: Any, old: Path) -> None:
    """They are not among those that were lost: the worst case is charged."""
    charge(hospital.site, 1)
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    apply(hospital.site, prepare(hospital.site))
    charge(hospital.site, 2)
    assert prepare(hospital.site).entries == ()
    assert ask(hospital, Head(3, "3" * 64)) == "rolled-back"
    assert prepare(hospital.site).exhausts


def test_a_kill_between_ledger_and_journal_of_a_recovery(hospital: Any, old: Path) -> None:
    """The worst case stands for what the journal names: it is not missed again."""
    charge(hospital.site, 1)
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    ask(hospital, Head(9, "9" * 64))
    hospital.site.ledger.recover(prepare(hospital.site))
    assert prepare(hospital.site).entries == ()
    facts = {"study": "trunks", "branch": "0", "stage": "autoencoder", "round": 2}
    hospital.site.journal.append("charged", **facts, request="r" * 64, reply="s" * 64)
    assert prepare(hospital.site).entries != ()  # what came after the recovery counts


def test_a_lost_recovery_is_missed_before_any_request(hospital: Any, old: Path) -> None:
    """The journal names it, and no charge: what it charged is charged again in full."""
    ledger = hospital.site.worker / "ledger.sqlite"
    with pytest.raises(VerificationError):
        hospital.site.ledger.check_echo(Head(9, "9" * 64))
    apply(hospital.site, prepare(hospital.site, all_known=True))
    spent = hospital.site.ledger.spent("trunks")
    restore(ledger, old / "ledger.sqlite")
    plan = prepare(hospital.site, all_known=True)
    assert [kind for kind, _ in plan.entries] == ["note", "recovery"]
    apply(hospital.site, plan)
    assert hospital.site.ledger.spent("trunks") == spent


def test_a_lost_close_is_missed_before_any_request(hospital: Any, old: Path) -> None:
    """The study stays ended: its reservation was given back once."""
    hospital.site.ledger.close("trunks")
    hospital.site.journal.append("closed", study="trunks")
    restore(hospital.site.worker / "ledger.sqlite", old / "ledger.sqlite")
    plan = prepare(hospital.site)
    assert [kind for kind, _ in plan.entries] == ["close", "recovery"]
    apply(hospital.site, plan)
    assert prepare(hospital.site).entries == ()


def test_a_study_that_only_the_journal_names_exhausts_before_any_request(hospital: Any) -> None:
    """Ledger and approvals lost it: once charged to the cap, nothing more is missing."""
    hospital.site.journal.append("approved", study="knees", plan="k" * 64, declared=10)
    plan = prepare(hospital.site, all_known=True)
    assert plan.exhausts
    apply(hospital.site, plan)
    assert prepare(hospital.site).entries == ()


def test_an_altered_journal_never_says_that_nothing_is_missing(
    hospital: Any, tmp_path: Path
) -> None:
    """Without an echo only the journal could tell; a newer copy may be taken over all the same."""
    shutil.copy(hospital.site.worker / "ledger.sqlite", tmp_path / "old.sqlite")
    charge(hospital.site, 1)
    shutil.copy(hospital.site.worker / "ledger.sqlite", tmp_path / "newer.sqlite")
    restore(hospital.site.worker / "ledger.sqlite", tmp_path / "old.sqlite")
    path = hospital.site.journal.path
    path.write_bytes(path.read_bytes().replace(b"trunks", b"knees", 1))
    with pytest.raises(VerificationError, match="was altered at line"):
        prepare(hospital.site)
    assert len(prepare(hospital.site, tmp_path / "newer.sqlite").copied) == 1
