"""The site's lifetime budget: what it grants, refuses and adds up."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from voxfed.privacy import accounting
from voxfed.privacy.accounting import Event
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Committed, Ledger, require_space
from voxfed.study.errors import (
    BudgetExhausted,
    ProcessError,
    Refusal,
)

DELTA = 1e-5
CAP = 10.0
PLAN = "a" * 64
STUDY = [Event("sampled-gaussian", 2.0, 0.2, 8), Event("gaussian", 20.0, 1, 8)]
ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]


def path_of(ledger):
    return ledger._chain.path


def test_a_round_is_charged_once_and_answered_again(busy, key):
    """Asked again with the same request, the committed reply's digest is the answer."""
    assert busy.begin(key(2), "request-2", ROUND) == Committed("reply-2")
    before = busy.head()
    assert busy.commit(key(2), "request-2", "reply-2", ROUND) == before
    assert busy.begin(key(3), "request-3", ROUND) is None
    assert busy.head() == before


def test_another_request_under_a_known_key_is_refused(busy, key):
    for ask in (
        lambda: busy.begin(key(1), "forged", ROUND),
        lambda: busy.commit(key(1), "forged", "reply-1", ROUND),
        lambda: busy.commit(key(1), "request-1", "other bytes", ROUND),
    ):
        with pytest.raises(Refusal, match="was charged for another"):
            ask()
    assert busy.head().length == 4


def test_a_new_branch_may_repeat_a_round_and_pays_for_it(busy, key):
    spent = busy.spent("knee")
    assert busy.begin(key(1, branch="rewind-1"), "request", ROUND) is None
    busy.commit(key(1, branch="rewind-1"), "request", "reply", ROUND)
    assert busy.spent("knee") > spent


def test_one_round_more_than_the_budget_is_refused_with_both_numbers(busy, key):
    """Eight rounds are reserved; the ninth is refused before and at the commit."""
    for number in range(3, 8):
        busy.commit(key(number), "request", f"reply-{number}", ROUND)
    nine = accounting.epsilon([*STUDY, *ROUND], DELTA)
    reserved = accounting.epsilon(STUDY, DELTA)
    before = busy.head()
    for ask in (
        lambda: busy.begin(key(8), "request", ROUND),
        lambda: busy.commit(key(8), "request", "reply", ROUND),
    ):
        with pytest.raises(BudgetExhausted) as refusal:
            ask()
        assert f"{nine:.4g}" in refusal.value.message
        assert f"{reserved:.4g}" in refusal.value.message
    assert busy.head() == before
    assert busy.left("knee") == 0


def test_events_of_another_sigma_or_rate_are_not_covered(busy, key):
    """A reservation pays only for what the plan said, even where it would cost less."""
    for events in ([Event("sampled-gaussian", 2.5, 0.2, 1)], [Event("gaussian", 90.0, 1, 1)]):
        with pytest.raises(BudgetExhausted):
            busy.begin(key(3), "request", events)


def test_spent_and_left_are_what_dp_accounting_says_of_the_rows(busy):
    charged = [event for event in ROUND for _ in range(3)]
    assert busy.spent("knee") == accounting.epsilon(charged, DELTA)
    assert busy.left("knee") == pytest.approx(
        accounting.epsilon(STUDY, DELTA) - accounting.epsilon(charged, DELTA)
    )
    assert busy.lifetime_spent() == accounting.lifetime_epsilon(charged, DELTA)
    assert busy.lifetime_left() == CAP - accounting.lifetime_epsilon(STUDY, DELTA)


def test_reserving_is_idempotent_and_a_name_belongs_to_one_plan(busy):
    before = busy.head()
    busy.reserve("knee", PLAN, STUDY, delta=DELTA)
    assert busy.head() == before
    with pytest.raises(Refusal, match="another plan"):
        busy.reserve("knee", "b" * 64, STUDY, delta=DELTA)


def test_a_study_beyond_the_lifetime_is_refused_before_anything_is_written(busy):
    """Reserved but unspent budget counts; the refusal names both numbers."""
    before = busy.head()
    large = [Event("sampled-gaussian", 1.0, 0.2, 40)]
    together = accounting.lifetime_epsilon([*STUDY, *large], DELTA)
    assert together > CAP
    with pytest.raises(BudgetExhausted) as refusal:
        busy.reserve("brain", PLAN, large, delta=DELTA)
    assert f"{together:.4g}" in refusal.value.message
    assert "at most 10" in refusal.value.message
    assert busy.head() == before


def test_closing_gives_back_what_was_not_spent_and_ends_the_study(busy, key):
    left, spent = busy.lifetime_left(), busy.spent("knee")
    busy.close("knee")
    busy.close("knee")
    assert busy.lifetime_left() > left
    assert busy.spent("knee") == spent
    assert busy.left("knee") == 0
    assert busy.head().length == 5
    with pytest.raises(BudgetExhausted, match="closed"):
        busy.begin(key(3), "request", ROUND)
    with pytest.raises(Refusal, match="closed"):
        busy.reserve("knee", PLAN, STUDY, delta=DELTA)


def test_a_lowered_lifetime_cap_stops_a_running_study(busy, key):
    tight = Ledger.open(path_of(busy), lifetime_epsilon=0.5, delta=DELTA)
    with pytest.raises(BudgetExhausted, match="lifetime"):
        tight.begin(key(3), "request", ROUND)


def test_a_note_charges_the_worst_case_even_beyond_the_reservation(busy, key):
    spent = busy.spent("knee")
    busy.note("knee", "rounds 3 to 12 may have left before the restore", ROUND * 10)
    assert busy.spent("knee") > spent
    assert busy.rows()[-1].body["reason"].startswith("rounds 3 to 12")
    with pytest.raises(BudgetExhausted):
        busy.begin(key(3), "request", ROUND)


def test_nothing_is_charged_without_a_reservation(ledger, key):
    for ask in (
        lambda: ledger.begin(key(0), "request", []),
        lambda: ledger.commit(key(0), "request", "reply", []),
        lambda: ledger.close("knee"),
        lambda: ledger.note("knee", "why"),
        lambda: ledger.spent("knee"),
    ):
        with pytest.raises(Refusal, match="nothing is reserved"):
            ask()
    assert ledger.head() == Head(0, "0" * 64)


def test_a_full_disk_refuses_before_training(tmp_path):
    require_space(tmp_path, 1)
    with pytest.raises(ProcessError, match="too full") as fault:
        require_space(tmp_path, 10**18)
    assert str(10**18) in fault.value.message


def test_reading_and_charging_stay_fast_in_a_long_life(ledger, key):
    """A thousand rows: verifying and charging stay far below a round's time."""
    many = [Event(event.kind, event.sigma, event.rate, 2000) for event in ROUND]
    generous = Ledger.open(path_of(ledger), lifetime_epsilon=1e6, delta=DELTA)
    generous.reserve("knee", PLAN, many, delta=DELTA)
    with generous._chain.writing() as page:
        for number in range(1000):
            body = {"study": "knee", "branch": "main", "stage": "a", "round": number}
            page.append("charge", body | {"request_digest": "r", "reply_digest": "s", "events": []})
    start = os.times().user
    generous.commit(key(1), "request", "reply", ROUND)
    assert os.times().user - start < 2


def test_two_studies_in_two_processes_at_once(ledger):
    """Real processes, interleaved at will: sixteen rows, none lost, none twice, one chain."""
    for study in ("knee", "brain"):
        ledger.reserve(study, PLAN, STUDY, delta=DELTA)
    processes = [
        subprocess.Popen([sys.executable, "-c", MANY, path_of(ledger), study])
        for study in ("knee", "brain")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    rows = ledger.rows()
    assert len(rows) == 18
    charged = {(row.body["study"], row.body["round"]) for row in rows if row.kind == "charge"}
    assert charged == {(study, number) for study in ("knee", "brain") for number in range(8)}
    assert ledger.left("knee") == ledger.left("brain") == 0


HEADER = """
import os, signal, sys
from pathlib import Path
from voxfed.privacy.accounting import Event
from voxfed.privacy.ledger import Ledger, RoundKey
from voxfed.study.errors import VoxfedError

ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]
path, name = Path(sys.argv[1]), sys.argv[2]
"""

MANY = (
    HEADER
    + """
ledger = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5)
for number in range(8):
    key = RoundKey(name, "main", "autoencoder", number)
    ledger.commit(key, f"request-{number}", f"reply-{number}", ROUND)
"""
)

RACE = (
    HEADER
    + """
ledger = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5)
print("ready", flush=True)
sys.stdin.readline()
try:
    ledger.commit(RoundKey("knee", "main", "autoencoder", 7), "request", name, ROUND)
except VoxfedError as error:
    sys.exit(error.exit_code)
"""
)

RESERVE = (
    HEADER
    + """
ledger = Ledger.open(path, lifetime_epsilon=float(sys.argv[3]), delta=1e-5)
print("ready", flush=True)
sys.stdin.readline()
try:
    ledger.reserve(name, "a" * 64, ROUND * 8, delta=1e-5)
except VoxfedError as error:
    sys.exit(error.exit_code)
"""
)


def at_once(script, path, *arguments):
    """Starts a process for each tuple, lets all go at the same moment, returns their exits."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, path, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for more in arguments
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
    return sorted(process.returncode for process in processes)


def test_two_processes_cannot_both_charge_one_round(busy):
    """Same key and request, other reply bytes, at the same moment: one wins, one is refused."""
    assert at_once(RACE, path_of(busy), ("reply-0",), ("reply-1",)) == [0, 3]
    assert busy.head().length == 5


def test_processes_that_reserve_at_once_stay_within_the_lifetime(ledger):
    """Three studies want what is left, and it holds two: one is refused, whichever it is."""
    cap = accounting.lifetime_epsilon(STUDY * 2, DELTA)
    names = [(f"study-{n}", str(cap)) for n in range(3)]
    assert at_once(RESERVE, path_of(ledger), *names) == [0, 0, 3]
    reserved = [event for account in ledger.accounts().values() for event in account.reserved]
    assert accounting.lifetime_epsilon(reserved, DELTA) <= cap


def test_threads_that_charge_at_once_stay_within_the_reservation(busy, key):
    """Five rounds are left and nine threads ask at once, each with a round of its own."""

    def charge(number):
        try:
            busy.commit(key(number), f"request-{number}", f"reply-{number}", ROUND)
        except BudgetExhausted:
            return 0
        return 1

    with ThreadPoolExecutor(9) as pool:
        assert sum(pool.map(charge, range(3, 12))) == 5
    assert busy.left("knee") == 0
    assert busy.head().length == 9


@pytest.mark.parametrize("seed", range(3))
def test_studies_chosen_after_seeing_the_ledger_stay_within_the_cap(ledger, key, seed):
    """An adversary sizes each next study by what is left; the filter's value never passes the cap.

    The sum is taken here from the rows, not by the ledger's own accounts.
    """
    chance = random.Random(seed)
    admitted = 0
    for number in range(12):
        steps = 1 + int(chance.random() * 10 * ledger.lifetime_left())
        step = Event("sampled-gaussian", chance.choice([0.8, 1.5, 3.0]), 0.2, steps)
        name = f"study-{number}"
        try:
            ledger.reserve(name, PLAN, [step], delta=DELTA)
        except BudgetExhausted:
            continue
        admitted += 1
        part = Event(step.kind, step.sigma, step.rate, max(1, steps // 2))
        ledger.commit(key(1, name), "request", "reply", [part])
        if chance.random() < 0.5:
            ledger.close(name)
        rows = ledger.rows()
        closed = {row.body["study"] for row in rows if row.kind == "close"}
        kinds = {name: "charge" if name in closed else "reserve" for name in ledger.accounts()}
        events = [
            Event(*event)
            for row in rows
            if kinds[row.body["study"]] == row.kind
            for event in row.body["events"]
        ]
        assert accounting.lifetime_epsilon(events, DELTA) <= CAP
        assert ledger.lifetime_left() == CAP - accounting.lifetime_epsilon(events, DELTA)
    assert admitted > 1
