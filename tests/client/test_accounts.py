"""The ledger as a document: its sums and curves are those of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from voxfed.client.accounts import add_curves, overview
from voxfed.privacy.accounting import Event, epsilon, lifetime_epsilon
from voxfed.privacy.ledger import Ledger, RoundKey

DELTA = 1e-5
STEP = Event("sampled-gaussian", 2.0, 0.2, 1)


def document(ledger: Ledger) -> dict[str, Any]:
    return add_curves(overview(ledger, 10.0, DELTA), ledger.rows())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two studies of four rounds, two rounds of each charged in turn."""
    ledger = Ledger.create(tmp_path / "ledger.sqlite", lifetime_epsilon=10.0, delta=DELTA)
    for study in ("knee", "brain"):
        ledger.reserve(study, "a" * 64, [STEP] * 4, delta=1e-4)
    for number in (1, 2):
        for study in ("knee", "brain"):
            key = RoundKey(study, "0", "autoencoder", number)
            ledger.commit(key, f"request-{number}", "reply", [STEP])
    return ledger


def test_the_curve_is_what_the_rows_cost_by_then(ledger: Ledger) -> None:
    """Each point equals dp-accounting on the events so far, of the study and of all studies."""
    knee, brain = document(ledger)["studies"]
    assert [(p["row"], p["stage"], p["round"]) for p in brain["curve"]] == [
        (4, "autoencoder", 1),
        (6, "autoencoder", 2),
    ]
    for study in (knee, brain):
        assert [p["epsilon"] for p in study["curve"]] == [epsilon([STEP] * n, 1e-4) for n in (1, 2)]
        assert study["curve"][-1]["epsilon"] == study["spent"]
        assert study["reserved"] == epsilon([STEP] * 4, 1e-4)
    points = sorted((p["row"], p["lifetime"]) for s in (knee, brain) for p in s["curve"])
    assert [value for _, value in points] == [
        lifetime_epsilon([STEP] * n, DELTA) for n in (1, 2, 3, 4)
    ]


def test_a_worst_case_charge_stands_on_the_curve(ledger: Ledger) -> None:
    """A note of a recovery is a point without a round, so that the curve ends at what is spent."""
    ledger.note("knee", "lost", [STEP] * 2)
    found = document(ledger)
    knee = found["studies"][0]
    assert knee["curve"][-1] | {"epsilon": 0, "lifetime": 0} == {
        "row": 7,
        "stage": "recovery",
        "round": None,
        "epsilon": 0,
        "lifetime": 0,
    }
    assert knee["curve"][-1]["epsilon"] == knee["spent"]
    assert knee["curve"][-1]["lifetime"] == found["lifetime"]["spent"]
    assert knee["rounds"] == 2


def test_a_study_without_privacy_has_no_bound_once_it_released(ledger: Ledger) -> None:
    """Reserved only, it harms nobody; after a round or a worst case no lifetime bound holds."""
    ledger.reserve("open", "c" * 64, [], delta=1e-4)
    assert overview(ledger, 10.0, DELTA)["lifetime"]["bounded"]
    ledger.note("open", "lost")
    assert not overview(ledger, 10.0, DELTA)["lifetime"]["bounded"]
