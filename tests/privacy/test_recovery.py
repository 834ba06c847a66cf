"""What a ledger survives: a kill at any write, and an old copy put back in its place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from voxfed.privacy import accounting
from voxfed.privacy.accounting import Event
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Committed, Ledger
from voxfed.privacy.recovery import Recovery, rows_after, settlement, worst_case
from voxfed.study.errors import BudgetExhausted, Refusal, VerificationError

DELTA = 1e-5
CAP = 10.0
STUDY = [Event("sampled-gaussian", 2.0, 0.2, 8), Event("gaussian", 20.0, 1, 8)]
ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]


def reopen(path, cap=CAP):
    return Ledger.open(path, lifetime_epsilon=cap, delta=DELTA)


@pytest.fixture
def restored(busy, key, tmp_path):
    """The ledger after round 4 was charged, and the copy from before it: the newer, the older."""
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "old.sqlite")
    busy.commit(key(3), "request-3", "reply-3", ROUND)
    return busy, reopen(tmp_path / "old.sqlite")


def settled(ledger, echo, *, exhausted=False):
    """The worst case, as the operator's command would write it."""
    entries = worst_case(ledger.accounts(), "lost")
    entries.append(settlement(echo, "lost", exhausted=exhausted))
    return Recovery(ledger.head(), entries=tuple(entries))


def test_a_refused_echo_is_kept_until_a_recovery_accounts_for_it(restored):
    newer, older = restored
    assert older.refused_echo() is None
    for _ in range(2):
        with pytest.raises(VerificationError, match="does not continue"):
            older.check_echo(newer.head())
        assert older.refused_echo() == newer.head()
    older.recover(settled(older, newer.head()))
    assert older.refused_echo() is None
    older.check_echo(newer.head())


def test_nothing_is_granted_while_a_refused_echo_waits(restored, key):
    """Whatever a later request echoes: no approval, no round, no reply sent again, no closing."""
    newer, older = restored
    before = older.head()
    with pytest.raises(VerificationError):
        older.check_echo(newer.head())
    for ask in (
        lambda: older.check_echo(None),
        lambda: older.check_echo(before),
        lambda: older.reserve("brain", "b" * 64, ROUND, delta=DELTA),
        lambda: older.begin(key(3), "request-3", ROUND),
        lambda: older.begin(key(2), "request-2", ROUND),
        lambda: older.commit(key(3), "request-3", "reply-3", ROUND),
        lambda: older.commit(key(2), "request-2", "reply-2", ROUND),
        lambda: older.close("knee"),
    ):
        with pytest.raises(VerificationError, match="does not continue") as fault:
            ask()
        assert "site ledger recover" in fault.value.hint
    assert older.head() == before
    older.recover(Recovery(before, copied=rows_after(older.rows(), newer.rows())))
    older.check_echo(None)
    assert older.begin(key(4), "request-4", ROUND) is None
    older.reserve("brain", "b" * 64, ROUND, delta=DELTA)


def test_a_ledger_that_accounts_for_the_refused_echo_goes_on(restored, key, tmp_path):
    """A kill before the echo was forgotten, or the newer file put back by hand, stops nothing."""
    newer, older = restored
    with pytest.raises(VerificationError):
        older.check_echo(newer.head())
    kept = (tmp_path / "old.refused-echo.json").read_bytes()
    (tmp_path / "ledger.refused-echo.json").write_bytes(kept)
    assert newer.begin(key(4), "request-4", ROUND) is None
    newer.check_echo(None)


def test_the_worst_case_charges_all_that_was_reserved(restored):
    """No less than what the lost rows charged, and no round can follow."""
    newer, older = restored
    older.recover(settled(older, newer.head()))
    assert older.spent("knee") == accounting.epsilon(STUDY, DELTA) > newer.spent("knee")
    assert older.lifetime_spent() == accounting.lifetime_epsilon(STUDY, DELTA)
    assert older.left("knee") == 0


def test_only_the_very_head_that_was_named_is_accepted(restored):
    """A recovery is no key to every door: neither to other heads nor to a copy from before it."""
    newer, older = restored
    echo, before = newer.head(), older._chain.path.read_bytes()
    older.recover(settled(older, echo))
    for other in (Head(echo.length, "f" * 64), Head(echo.length + 9, echo.digest)):
        with pytest.raises(VerificationError, match="does not continue"):
            older.check_echo(other)
    recovered = older.head()
    older._chain.path.write_bytes(before)
    for head in (echo, recovered):
        with pytest.raises(VerificationError, match="does not continue"):
            older.check_echo(head)


def test_a_newer_copy_gives_its_rows_back_as_they_were(restored, key):
    """Head, digests and replies are the lost ones: nothing is charged beyond them."""
    newer, older = restored
    copied = rows_after(older.rows(), newer.rows())
    older.recover(Recovery(older.head(), copied=copied))
    assert older.rows() == newer.rows()
    older.check_echo(newer.head())
    assert older.begin(key(3), "request-3", ROUND) == Committed("reply-3")


def test_a_copy_that_went_another_way_is_refused(restored, key):
    newer, older = restored
    older.commit(key(3), "request-3", "another reply", ROUND)
    with pytest.raises(VerificationError, match="does not continue this ledger"):
        rows_after(older.rows(), newer.rows())
    with pytest.raises(VerificationError, match="does not continue this ledger"):
        rows_after(newer.rows(), newer.rows()[:3])
    with pytest.raises(VerificationError, match="does not follow"):
        older.recover(Recovery(older.head(), copied=tuple(newer.rows()[4:])))
    assert older.head().length == 5


def test_a_recovery_holds_only_for_the_ledger_it_was_decided_for(restored, key):
    """What was charged in between is not undone, nor charged twice."""
    newer, older = restored
    plan = settled(older, newer.head())
    older.commit(key(3), "request", "reply", ROUND)
    with pytest.raises(Refusal, match="grew"):
        older.recover(plan)
    assert older.head().length == 5


def test_an_exhausted_lifetime_pays_for_nothing_more(restored, key):
    """Neither a new study nor a running one, and not after a higher cap was written either."""
    newer, older = restored
    older.reserve("brain", "b" * 64, ROUND, delta=DELTA)
    settlement_only = settlement(newer.head(), "lost", exhausted=True)
    older.recover(Recovery(older.head(), entries=(settlement_only,)))
    assert (older.lifetime_spent(), older.lifetime_left()) == (CAP, 0.0)
    generous = reopen(older._chain.path, cap=1000.0)
    assert generous.lifetime_left() == 0.0
    for ask in (
        lambda: generous.reserve("spine", "c" * 64, ROUND, delta=DELTA),
        lambda: generous.begin(key(4), "request", ROUND),
        lambda: generous.commit(key(4), "request", "reply", ROUND),
    ):
        with pytest.raises(BudgetExhausted, match="nothing is left"):
            ask()


def test_a_closed_study_is_not_charged(busy):
    """What was given back cannot have been spent afterwards."""
    busy.close("knee")
    spent = busy.spent("knee")
    busy.recover(settled(busy, Head(99, "9" * 64)))
    assert busy.spent("knee") == spent
    assert [row.kind for row in busy.rows()][-2:] == ["close", "recovery"]


def test_a_garbled_echo_is_named(busy, tmp_path):
    (tmp_path / "ledger.refused-echo.json").write_text(json.dumps({"length": 3}))
    with pytest.raises(VerificationError, match="is garbled"):
        busy.refused_echo()


KILLED = """
import os, signal, sys
from pathlib import Path
from voxfed.privacy.accounting import Event
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Ledger, RoundKey
from voxfed.privacy.recovery import Recovery, settlement, worst_case
from voxfed.study.errors import Refusal

ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]
path, name = Path(sys.argv[1]), sys.argv[2]
ECHO = Head(99, "9" * 64)

def recovery(ledger):
    entries = (*worst_case(ledger.accounts(), "lost"), settlement(ECHO, "lost", exhausted=False))
    return Recovery(ledger.head(), entries=entries)

def act(ledger, plan):
    if name == "reserve":
        ledger.reserve("brain", "b" * 64, ROUND, delta=1e-5)
    elif name == "commit":
        key = RoundKey("knee", "main", "autoencoder", 3)
        ledger.commit(key, "request-3", "reply-3", ROUND)
    elif name == "close":
        ledger.close("knee")
    elif name == "note":
        ledger.note("knee", "why", ROUND)
    elif name == "recover":
        ledger.recover(plan)

def killed_at(line, ledger, plan):
    "Forks a child that kills itself before its line-th line inside the store; True if it did."
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if not frame.f_code.co_filename.endswith(
                ("privacy/chain.py", "privacy/ledger.py", "privacy/recovery.py")
            ):
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        act(ledger, plan)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

def fresh():
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    path.write_bytes(original)
    return Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5)

original, line = path.read_bytes(), 1
calm = fresh()
act(calm, recovery(calm))
spent, length = (calm.lifetime_spent(), calm.lifetime_left()), calm.head().length
while True:
    ledger = fresh()
    plan = recovery(ledger)
    killed = killed_at(line, ledger, plan)
    survivors = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5).rows()
    print(killed, len(survivors), flush=True)
    if not killed:
        break
    # Started again, it is there exactly once; a note is repeated only by whoever sees none.
    try:
        if name != "note" or len(survivors) == 4:
            act(ledger, plan)
    except Refusal:
        assert name == "recover" and len(survivors) == 6
    assert ledger.verify_chain().length == length
    assert (ledger.lifetime_spent(), ledger.lifetime_left()) == spent
    line += 1
"""


@pytest.mark.parametrize(
    ("operation", "length"),
    [("reserve", 5), ("commit", 5), ("close", 5), ("note", 5), ("recover", 6)],
)
def test_a_kill_before_any_line_of_a_write_leaves_a_valid_chain(busy, tmp_path, operation, length):
    """Kill -9 before every line that writes: all its rows are there or none, and once only."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "ledger.sqlite", operation],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    outcomes = [line.split() for line in result.stdout.splitlines()]
    assert len(outcomes) > 50
    lengths = [int(rows) for _, rows in outcomes]
    assert set(lengths) == {4, length}
    assert lengths == sorted(lengths)  # before COMMIT nothing, after it all rows
    assert outcomes[-1] == ["False", str(length)]


MANY = """
import sys
from pathlib import Path
from voxfed.privacy.accounting import Event
from voxfed.privacy.ledger import Ledger, RoundKey

ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]
ledger = Ledger.open(Path(sys.argv[1]), lifetime_epsilon=10.0, delta=1e-5)
for number in range(8):
    key = RoundKey(sys.argv[2], "main", "autoencoder", number)
    ledger.commit(key, f"request-{number}", f"reply-{number}", ROUND)
"""


def test_a_kill_at_any_time_leaves_a_valid_chain(ledger, tmp_path):
    """A process that charges without pause is killed from outside, inside SQLite as well."""
    for study in range(4):
        ledger.reserve(f"study-{study}", "a" * 64, STUDY, delta=DELTA)
    length = 4
    for study in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", MANY, tmp_path / "ledger.sqlite", f"study-{study}"]
        )
        while process.poll() is None and ledger.head().length < length + 2 + study:
            pass
        process.kill()
        process.wait()
        rows = ledger.rows()
        assert length < len(rows) <= length + 8
        charged = [row.body["round"] for row in rows[length:]]
        assert charged == list(range(len(charged)))
        length = len(rows)
