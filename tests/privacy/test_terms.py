"""Terms: the constants of a study follow from plan and declared size, and cost what they say."""

from functools import cache

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from voxfed.privacy.accounting import Event, epsilon, merge
from voxfed.privacy.terms import Terms, agree, declared_size, terms_with
from voxfed.study.errors import LimitRefusal, Refusal
from voxfed.study.plan import StudyPlan
from voxfed.study.schedule import Schedule, Stage

PLAN = """
name = "trunks"
family = "vae"
rounds = 8
local_steps = 3
expected_patients = 8
audit_fraction = 0.5
[volumes]
shape = [32, 32, 32]
spacing = [6.0, 6.0, 6.0]
[optimiser]
learning_rate = 3e-4
[privacy]
epsilon = {epsilon}
delta = 1e-3
{more}
"""

SCHEDULE = Schedule((Stage("autoencoder", 8, 1),))


def make(more: str = "", epsilon: float = 8.0) -> StudyPlan:
    return StudyPlan.from_text(PLAN.format(more=more, epsilon=epsilon).encode())


@cache
def agreed(more: str = "", epsilon: float = 8.0) -> Terms:
    """The terms at a site of 40 patients; finding sigma takes seconds."""
    return agree(make(more, epsilon), 40)


@pytest.mark.parametrize(("patients", "declared"), [(5, 5), (9, 5), (10, 10), (64, 60)])
def test_declared_size_is_rounded_down(patients: int, declared: int) -> None:
    """One patient more or less is not visible, but at a step of five."""
    assert declared_size(patients) == declared


@pytest.mark.parametrize("patients", [0, 4])
def test_too_few_patients(patients: int) -> None:
    """A cohort that rounds down to nobody is refused with both numbers."""
    with pytest.raises(Refusal, match=rf"got {patients} patients, expected 5 or more"):
        declared_size(patients)


def test_rate_and_divisor() -> None:
    """40 declared, a quarter held out: 30 members, of whom 8 are drawn on average."""
    terms = terms_with(make(), 40, 1.0, SCHEDULE)
    assert terms.rate == pytest.approx(8 / 30)
    assert terms.divisor == pytest.approx(8.0)


def test_more_patients_asked_for_than_there_are() -> None:
    """The rate stops at 1, and the divisor is then the members' number."""
    terms = terms_with(make(), 10, 1.0, SCHEDULE)
    assert (terms.rate, terms.divisor) == (1.0, 7.5)


@pytest.mark.parametrize("more", ["", "metric_noise = 20.0", 'audit_counts = "exact"'])
def test_the_whole_study_costs_the_plans_epsilon(more: str) -> None:
    """Training, metrics and noised audits together: never above it, and not far below it."""
    terms = agreed(more)
    assert 7.9 < epsilon(terms.whole, 1e-3) <= 8.0
    assert epsilon((*terms.whole, *terms.per_round["autoencoder"]), 1e-3) > 8.0


def test_epsilon_is_that_of_a_second_library() -> None:
    """dp-accounting, told directly what the study does, agrees."""
    terms = agreed()
    accountant = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    step = dp_accounting.PoissonSampledDpEvent(
        terms.rate, dp_accounting.GaussianDpEvent(terms.sigma)
    )
    accountant.compose(step, 24)
    accountant.compose(dp_accounting.GaussianDpEvent(10.0), 2)
    assert epsilon(terms.whole, 1e-3) == pytest.approx(accountant.get_epsilon(1e-3), rel=5e-3)


@pytest.mark.parametrize("more", ["", "metric_noise = 20.0", 'audit_counts = "exact"'])
def test_what_is_charged_adds_up_to_what_is_reserved(more: str) -> None:
    """All rounds and all audits spend the reservation exactly."""
    terms = agreed(more)
    assert merge((*terms.per_round["autoencoder"] * 8, *terms.per_audit * 2)) == terms.whole


def test_exact_counts_are_not_charged() -> None:
    """The plan says that epsilon does not cover them; the ledger then holds no audit."""
    assert agreed('audit_counts = "exact"').per_audit == ()
    assert agreed().per_audit == (Event("gaussian", 10.0, 1, 1),)


def test_a_found_sigma_gives_the_same_terms() -> None:
    """What was frozen at approval rebuilds the terms without a new search."""
    terms = agreed("metric_noise = 20.0")
    assert terms_with(make("metric_noise = 20.0"), 40, terms.sigma, SCHEDULE) == terms


def test_without_privacy_nothing_is_charged() -> None:
    """No noise and no events: nobody can mistake it for a private study."""
    terms = agreed("enabled = false")
    assert (terms.sigma, terms.per_round, terms.per_audit, terms.whole) == (
        0.0,
        {"autoencoder": ()},
        (),
        (),
    )


def test_a_hopeless_epsilon_is_refused() -> None:
    """Where the audits alone cost more than the plan allows, no sigma helps."""
    with pytest.raises(LimitRefusal):
        agree(make("audit_noise = 0.1", epsilon=1.0), 40)


def test_smaller_epsilon_more_noise() -> None:
    """A stricter plan is noisier, a larger hospital less so."""
    assert agreed(epsilon=4.0).sigma > agreed().sigma > agree(make(), 80).sigma


def test_every_turn_of_every_stage_is_charged() -> None:
    """Two stages, the second with three turns a local step: all are reserved, by hand."""
    schedule = Schedule((Stage("codes", 2, 1), Stage("still", 0, 1), Stage("prior", 3, 3)))
    terms = terms_with(make("metric_noise = 20.0"), 40, 1.5, schedule)
    rate = 8 / 30
    assert terms.per_round["prior"][0] == Event("sampled-gaussian", 1.5, rate, 9)
    steps = {event.sigma: event.steps for event in terms.whole}
    assert steps == {1.5: 3 * (2 * 1 + 3 * 3), 20.0: 5, 10.0: 2}


def test_a_stage_that_reads_nobody_is_not_charged() -> None:
    """Its rounds have neither noisy steps nor a loss to tell; the other stage's are all there."""
    schedule = Schedule((Stage("prior", 2, 3), Stage("generator", 4, 0)))
    terms = terms_with(make("metric_noise = 20.0"), 40, 1.5, schedule)
    assert terms.per_round["generator"] == ()
    steps = {event.sigma: event.steps for event in terms.whole}
    assert steps == {1.5: 3 * 2 * 3, 20.0: 2, 10.0: 2}
    without = terms_with(make("metric_noise = 20.0"), 40, 1.5, Schedule((Stage("prior", 2, 3),)))
    assert terms.whole == without.whole
