"""The site's lifetime budget: what it grants, refuses and adds up."""

from __future__ import annotations

import os

import pytest
from voxfed.privacy import accounting
from voxfed.privacy.accounting import Event
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Committed, Ledger, RoundKey, require_space
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


def key(number, study="knee", branch="main"):
    return RoundKey(study, branch, "autoencoder", number)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger.sqlite", lifetime_epsilon=CAP, delta=DELTA)


@pytest.fixture
def busy(ledger):
    """A ledger with a study of eight rounds, three of them charged: four rows."""
    ledger.reserve("knee", PLAN, STUDY, delta=DELTA)
    for number in range(3):
        ledger.commit(key(number), f"request-{number}", f"reply-{number}", ROUND)
    return ledger


def path_of(ledger):
    return ledger._chain.path


def test_a_round_is_charged_once_and_answered_again(busy):
    """Asked again with the same request, the committed reply's digest is the answer."""
    assert busy.begin(key(2), "request-2", ROUND) == Committed("reply-2")
    before = busy.head()
    assert busy.commit(key(2), "request-2", "reply-2", ROUND) == before
    assert busy.begin(key(3), "request-3", ROUND) is None
    assert busy.head() == before


def test_another_request_under_a_known_key_is_refused(busy):
    for ask in (
        lambda: busy.begin(key(1), "forged", ROUND),
        lambda: busy.commit(key(1), "forged", "reply-1", ROUND),
        lambda: busy.commit(key(1), "request-1", "other bytes", ROUND),
    ):
        with pytest.raises(Refusal, match="was charged for another"):
            ask()
    assert busy.head().length == 4


def test_a_new_branch_may_repeat_a_round_and_pays_for_it(busy):
    spent = busy.spent("knee")
    assert busy.begin(key(1, branch="rewind-1"), "request", ROUND) is None
    busy.commit(key(1, branch="rewind-1"), "request", "reply", ROUND)
    assert busy.spent("knee") > spent


def test_one_round_more_than_the_budget_is_refused_with_both_numbers(busy):
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


def test_events_of_another_sigma_or_rate_are_not_covered(busy):
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


def test_closing_gives_back_what_was_not_spent_and_ends_the_study(busy):
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


def test_a_lowered_lifetime_cap_stops_a_running_study(busy):
    tight = Ledger.open(path_of(busy), lifetime_epsilon=0.5, delta=DELTA)
    with pytest.raises(BudgetExhausted, match="lifetime"):
        tight.begin(key(3), "request", ROUND)


def test_a_note_charges_the_worst_case_even_beyond_the_reservation(busy):
    spent = busy.spent("knee")
    busy.note("knee", "rounds 3 to 12 may have left before the restore", ROUND * 10)
    assert busy.spent("knee") > spent
    assert busy.rows()[-1].body["reason"].startswith("rounds 3 to 12")
    with pytest.raises(BudgetExhausted):
        busy.begin(key(3), "request", ROUND)


def test_nothing_is_charged_without_a_reservation(ledger):
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


def test_reading_and_charging_stay_fast_in_a_long_life(ledger):
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
