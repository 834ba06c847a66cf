"""The worker: what it answers, in which order it works, and that only codes leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from voxfed.client import approval, describe, training, worker
from voxfed.client.outbox import Outbox
from voxfed.client.scans import Scans
from voxfed.client.training import Trainer
from voxfed.client.worker import Worker
from voxfed.models.state import from_bytes
from voxfed.privacy.accounting import epsilon
from voxfed.privacy.ledger import Ledger
from voxfed.study import errors, messages
from voxfed.study.identity import SigningKey

MARKER = "zz-planted-patient"
DIGEST = "ab" * 32


def _journal(hospital: Any) -> str:
    text: str = hospital.site.journal.path.read_text()
    return text


def _charges(hospital: Any) -> list[tuple[str, int]]:
    rows = hospital.site.ledger.rows()
    return [(row.body["stage"], row.body["round"]) for row in rows if row.kind == "charge"]


def test_a_round(hospital: Any) -> None:
    """The reply holds the update of every trained tensor, the epsilon after it, and the head."""
    request = hospital.train_request(1)
    receipt, committed = hospital.opened(Worker(hospital.site).answer(request))
    update, payload = hospital.opened(committed)
    assert (update.study, update.round, update.steps) == ("trunks", 1, 2)
    assert update.request_digest == messages.request_digest(request)
    changes = from_bytes(payload)
    assert set(changes) == set(from_bytes(hospital.weights))
    assert all(float(change.abs().max()) > 0 for change in changes.values())
    ledger = hospital.site.ledger
    assert receipt.head == messages.Head(length=ledger.head().length, digest=ledger.head().digest)
    account = ledger.accounts()["trunks"]
    assert update.epsilon == epsilon(account.charged, 1e-3)
    assert _charges(hospital) == [("autoencoder", 1)]


def test_the_order_of_a_round(hospital: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is asked before a scan is touched, and the outbox is filled before the charge."""
    calls = []

    def noted(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            calls.append(name)
            return original(*args, **more)

        monkeypatch.setattr(owner, name, call)

    noted(Ledger, "begin")
    noted(Scans, "check")
    noted(Trainer, "train")
    noted(Outbox, "put")
    noted(Ledger, "commit")
    Worker(hospital.site).answer(hospital.train_request(1))
    assert calls == ["begin", "check", "train", "put", "commit"]


def test_the_same_request_gets_the_same_bytes(hospital: Any) -> None:
    """Asked again after a restart and with a newer echo, it is neither trained nor charged."""
    first, committed = hospital.opened(Worker(hospital.site).answer(hospital.train_request(1)))
    echo = messages.Head(length=first.head.length, digest=first.head.digest)
    again = Worker(hospital.site).answer(hospital.train_request(1, echo=echo))
    assert hospital.opened(again) == (first, committed)
    assert _charges(hospital) == [("autoencoder", 1)]


def test_another_request_for_a_charged_round_is_refused(hospital: Any) -> None:
    """A round is released once: other weights under its number get nothing."""
    here = Worker(hospital.site)
    here.answer(hospital.train_request(1))
    other = hospital.weights[:-1] + bytes([hospital.weights[-1] ^ 1])
    assert hospital.code(here.answer(hospital.train_request(1, payload=other))) == "other-request"
    assert _charges(hospital) == [("autoencoder", 1)]


def test_one_round_more_than_the_budget(hospital: Any) -> None:
    """The plan's two rounds are paid for; the third is refused, and the site sees both numbers."""
    here = Worker(hospital.site)
    for number in (1, 2):
        assert hospital.opened(here.answer(hospital.train_request(number)))[0].kind == "receipt"
    assert hospital.code(here.answer(hospital.train_request(3))) == "budget"
    assert hospital.code(here.answer(hospital.train_request(1, branch=1))) == "budget"
    error = json.loads(_journal(hospital).splitlines()[-1])["error"]
    assert "got" in error
    assert "expected" in error
    assert _charges(hospital) == [("autoencoder", 1), ("autoencoder", 2)]


@pytest.mark.parametrize("change", [b"x", None])
def test_a_changed_file_is_named_at_the_site_only(hospital: Any, change: bytes | None) -> None:
    """The round stops before training, nothing is charged, and no name leaves."""
    patient = hospital.approval.manifest.members[0]
    path = min((hospital.cohort / patient).iterdir())
    path.unlink() if change is None else path.write_bytes(path.read_bytes() + change)
    reply = Worker(hospital.site).answer(hospital.train_request(1))
    assert hospital.code(reply) == "cohort-changed"
    assert patient.encode() not in reply
    assert f"{patient}/{path.name}" in _journal(hospital)
    assert _charges(hospital) == []


def test_what_is_not_for_this_site_or_from_its_coordinator(hospital: Any, tmp_path: Path) -> None:
    """Another site's request, another coordinator's signature and noise are told apart by code."""
    here = Worker(hospital.site)
    assert hospital.code(here.answer(hospital.train_request(1, site="south"))) == "signature"
    own, other = hospital.coordinator, SigningKey.create(tmp_path / "other.pem")
    hospital.coordinator = other
    assert hospital.code(here.answer(hospital.train_request(1))) == "signature"
    hospital.coordinator = own
    for garbage in (b"", b"noise", b"VXF1" + b"\xff" * 100, hospital.train_request(1)[:40]):
        assert hospital.code(here.answer(garbage)) == "garbled"
    reply = here.answer(messages.encode(messages.Refused(code="budget"), own))
    assert hospital.code(reply) == "signature"
    assert _charges(hospital) == []


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"plan_digest": DIGEST}, "not-approved"),
        ({"stage": "diffusion"}, "garbled"),
        ({"payload": b"not tensors"}, "garbled"),
        ({"echo": messages.Head(length=1, digest=DIGEST)}, "rolled-back"),
        ({"echo": messages.Head(length=9, digest=DIGEST)}, "rolled-back"),
        ({"study": "unknown"}, "not-approved"),
    ],
)
def test_a_signed_request_that_does_not_fit(
    hospital: Any, facts: dict[str, Any], code: str
) -> None:
    """The coordinator's signature is not enough: plan, stage, tensors and echo must fit too."""
    reply = Worker(hospital.site).answer(hospital.train_request(1, **facts))
    assert hospital.code(reply) == code
    assert _charges(hospital) == []


def test_nothing_is_trained_before_the_operator_decides(undecided: Any) -> None:
    """Pending and rejected plans have their own codes, so that the coordinator can wait or go."""
    here = Worker(undecided.site)
    assert undecided.code(here.answer(undecided.train_request(1))) == "pending"
    approval.reject(undecided.site, "trunks", "not now")
    assert undecided.code(here.answer(undecided.train_request(1))) == "rejected"


def test_offers(undecided: Any) -> None:
    """An offered plan is kept and answered; a plan under another digest is not."""
    here = Worker(undecided.site)
    text = undecided.plan.text

    def offer(payload: bytes, digest: str) -> bytes:
        header = messages.OfferRequest(site="north", study="trunks", plan_digest=digest)
        return here.answer(messages.encode(header, undecided.coordinator, payload))

    decision, _ = undecided.opened(offer(text, undecided.plan.digest))
    assert (decision.decision, decision.declared_patients) == ("pending", 0)
    assert undecided.code(offer(text, DIGEST)) == "signature"
    wrong = text.replace(b"rounds", b"round")
    assert undecided.code(offer(wrong, messages.hash_of(wrong))) == "garbled"
    assert approval.find(undecided.site, "trunks").plan == undecided.plan


def test_a_crash_before_the_charge_trains_again(
    hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reply in the outbox and no charge nothing left: the round is trained anew."""
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", _raising(errors.ProcessError("the disk is full")))
        assert hospital.code(Worker(hospital.site).answer(hospital.train_request(1))) == "device"
    assert _charges(hospital) == []
    receipt, committed = hospital.opened(Worker(hospital.site).answer(hospital.train_request(1)))
    assert receipt.kind == "receipt"
    assert messages.hash_of(committed) == hospital.site.ledger.rows()[-1].body["reply_digest"]


def test_a_lost_reply_is_never_made_again(hospital: Any) -> None:
    """A charged round whose reply is gone is refused: a second draw would be a second release."""
    Worker(hospital.site).answer(hospital.train_request(1))
    shutil.rmtree(hospital.site.worker / "outbox")
    assert hospital.code(Worker(hospital.site).answer(hospital.train_request(1))) == "reply-lost"


def _raising(fault: BaseException) -> Callable[..., Any]:
    def call(*args: object, **more: object) -> Any:
        raise fault

    return call


FAULTS = [
    errors.VolumeError(MARKER),
    errors.CohortChanged(MARKER, got=MARKER),
    errors.BudgetExhausted(MARKER),
    errors.LimitRefusal(MARKER),
    errors.Refusal(MARKER),
    errors.VerificationError(MARKER),
    errors.WireError(MARKER),
    errors.PlanError(MARKER),
    errors.ProcessError(MARKER, hint=MARKER),
    errors.VoxfedError(MARKER),
    RuntimeError(MARKER),
    KeyError(MARKER),
    OSError(2, "No such file", f"/data/{MARKER}/scan.nii.gz"),
    UnicodeEncodeError("utf-8", MARKER, 0, 1, MARKER),
    ValueError(f"{MARKER} \udcff"),
    MemoryError(MARKER),
]
PLACES = [
    (Scans, "check"),
    (Trainer, "train"),
    (Trainer, "metrics"),
    (training, "prepare"),
    (Outbox, "put"),
    (Ledger, "begin"),
    (Ledger, "commit"),
    (worker, "find"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_no_text_of_any_error_leaves(
    hospital: Any, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patient's name planted in an exception stays in the site's journal, whatever raises it."""
    here = Worker(hospital.site)
    monkeypatch.setattr(Trainer, "train", _raising(fault))
    reply = here.answer(hospital.train_request(1))
    assert hospital.code(reply) in set(messages.RefusalCode)
    assert MARKER.encode() not in reply
    assert MARKER in _journal(hospital)


@pytest.mark.parametrize(
    ("owner", "name"), PLACES, ids=lambda place: getattr(place, "__name__", place)
)
def test_no_text_leaves_from_any_place(
    hospital: Any, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the worker the exception is raised, only a code leaves."""
    here = Worker(hospital.site)
    monkeypatch.setattr(owner, name, _raising(RuntimeError(MARKER)))
    reply = here.answer(hospital.train_request(1))
    assert hospital.code(reply) == "internal"
    assert MARKER.encode() not in reply
    assert MARKER in _journal(hospital)


@pytest.mark.parametrize(("owner", "name"), [(describe, "describe"), (worker, "receive")])
def test_no_text_leaves_from_other_requests(
    undecided: Any, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptions and offers fail by code alone, too."""
    monkeypatch.setattr(owner, name, _raising(RuntimeError(MARKER)))
    key, plan = undecided.coordinator, undecided.plan
    requests = {
        "describe": messages.encode(messages.DescribeRequest(site="north"), key),
        "receive": messages.encode(
            messages.OfferRequest(site="north", study="trunks", plan_digest=plan.digest),
            key,
            plan.text,
        ),
    }
    reply = Worker(undecided.site).answer(requests[name])
    assert undecided.code(reply) == "internal"
    assert MARKER.encode() not in reply
    assert MARKER in _journal(undecided)


def test_tightened_limits_hold_for_a_study_that_runs(hospital: Any) -> None:
    """An operator who raises the least noise in site.toml need not wait for the next study."""
    here = Worker(hospital.site)
    hospital.opened(hospital.opened(here.answer(hospital.train_request(1)))[1])
    settings = hospital.site.worker / "site.toml"
    settings.write_text(settings.read_text().replace("least_noise = 0.3", "least_noise = 900.0"))
    assert hospital.code(here.answer(hospital.train_request(2))) == "limits"


def test_a_decision_about_another_plan_does_not_count(hospital: Any) -> None:
    """Even with another plan's text in its folder, an approval holds for the plan it names."""
    other = hospital.plan.text.replace(b"rounds = 2", b"rounds = 9")
    (hospital.approval.folder / "plan.toml").write_bytes(other)
    digest = messages.hash_of(other)
    reply = Worker(hospital.site).answer(hospital.train_request(1, plan_digest=digest))
    assert hospital.code(reply) == "not-approved"
    assert _charges(hospital) == []
