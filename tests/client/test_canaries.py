"""Canaries train beside the patients, are no patients, and prove what the model keeps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from voxfed.client import manifest, training
from voxfed.client.approval import approve
from voxfed.client.canaries import Canaries, audit_canaries, draw_canaries
from voxfed.client.commands import approve as show_approved
from voxfed.client.manifest import Manifest
from voxfed.client.scans import Scans
from voxfed.client.summary import summary
from voxfed.client.training import Trainer
from voxfed.client.warm import Warm
from voxfed.client.worker import Worker
from voxfed.models.canary import make_canary
from voxfed.privacy import noise
from voxfed.privacy.audit.comparisons import lower_bounds
from voxfed.privacy.audit.statistics import BinnedScores
from voxfed.privacy.evidence import Evidence, LowerBound, SiteEvidence
from voxfed.privacy.finding import Finding, Verdict
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.rules.membership import BelowCeiling
from voxfed.study.errors import Refusal

DELTA = 1e-5
CLAIM = 0.5


@pytest.fixture
def watched(
    small_hospital: Callable[..., Any], plan_text: bytes, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """An approved hospital with canaries; every other coin falls heads, and all take each step."""

    def make(canaries: int, *changes: tuple[bytes, bytes]) -> Any:
        text = plan_text.replace(b"[privacy]", b"[privacy]\ncanaries = %d" % canaries)
        for old, new in ((b"expected_patients = 3", b"expected_patients = 100"), *changes):
            assert old in text
            text = text.replace(old, new)
        hospital = small_hospital(text, without_privacy=True)
        monkeypatch.setattr(manifest.sampling, "flip", lambda n: [i % 2 == 0 for i in range(n)])
        monkeypatch.setattr(training.secrets, "randbits", lambda n: 11)
        monkeypatch.setattr(noise.os, "urandom", random.Random(3).randbytes)
        approve(hospital.site, "trunks")
        return hospital

    return make


def warm_of(hospital: Any) -> Warm:
    approval, cpu = hospital.approval, torch.device("cpu")
    torch.manual_seed(0)
    trainer = Trainer(approval.plan, approval.terms, cpu, PerformanceSettings())
    cache = hospital.site.worker / "cache"
    scans = Scans(approval.manifest, hospital.cohort, cache, approval.plan.volumes, cpu)
    return Warm(approval, trainer, scans)


def test_canaries_are_no_patients(watched: Callable[..., Any]) -> None:
    """Whoever counts, audits or evaluates patients meets none; a coin decides which train."""
    frozen = watched(6).approval.manifest
    assert frozen.canaries.names == tuple(f"canary-{n:03d}" for n in range(1, 7))
    assert frozen.canaries.members == frozen.canaries.names[::2]
    assert frozen.canaries.held_out == frozen.canaries.names[1::2]
    groups = (frozen.patients, frozen.members, frozen.flipped, frozen.audited_members)
    for group in (*groups, frozen.held_out, frozen.numbers):
        assert not set(group) & set(frozen.canaries.names)
    assert len(frozen.patients) == 12


def test_the_terms_of_patients_stay_as_they_are(
    watched: Callable[..., Any], small_hospital: Callable[..., Any], tmp_path: Any
) -> None:
    """Size, rate, divisor and noise follow from the patients alone: so does their epsilon."""
    from voxfed.privacy.terms import agree

    hospital = watched(40)
    approval = hospital.approval
    assert approval.declared == 10
    without = hospital.plan.model_copy(
        update={"privacy": hospital.plan.privacy.model_copy(update={"canaries": 0})}
    )
    assert approval.terms == agree(without, 10)


def test_approval_is_repeatable_from_the_file(watched: Callable[..., Any]) -> None:
    """The same volumes come after a restart, from the seed that the file holds."""
    hospital = watched(4)
    again = Manifest.read(hospital.approval.folder / "manifest.json")
    assert again == hospital.approval.manifest
    volume = warm_of(hospital).scans.batches("canary-003")[0].volumes
    expected = make_canary(again.canaries.seed, 2, (8, 8, 8))
    np.testing.assert_array_equal(volume[0].numpy(), expected)
    approve(hospital.site, "trunks")
    assert Manifest.read(hospital.approval.folder / "manifest.json") == again


def test_a_manifest_of_before_canaries_is_read(watched: Callable[..., Any]) -> None:
    """Studies that run go on after an update of voxfed, without canaries."""
    path = watched(4).approval.folder / "manifest.json"
    facts = json.loads(path.read_bytes())
    del facts["canaries"]
    path.write_text(json.dumps(facts))
    assert Manifest.read(path).canaries == Canaries()


def test_seeds_and_coins_are_drawn_anew_for_each_study() -> None:
    """Of 40 canaries both coins fall; a seed that a coordinator knew would tell who trained."""
    first, second = draw_canaries(40, ()), draw_canaries(40, ())
    assert first.seed != second.seed
    assert first.members != second.members
    assert set(first.members) | set(first.held_out) == set(first.names)
    assert draw_canaries(0, ("canary-001",)) == Canaries()


def test_a_patient_named_like_a_canary_stops_before_a_coin_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a phantom would stand for a patient in every audit."""
    monkeypatch.setattr(manifest.sampling, "flip", None)
    with pytest.raises(Refusal, match="named like a canary") as caught:
        draw_canaries(3, ("a", "canary-002"))
    assert caught.value.got == "canary-002"


def test_the_worker_trains_with_heads_alone(
    watched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tails never reach the engine; what is measured on members is measured on patients."""
    hospital, read = watched(6, (b"[privacy]", b"[privacy]\nmetric_noise = 5.0")), []
    original = Scans.batches
    monkeypatch.setattr(
        Scans, "batches", lambda scans, name: read.append(name) or original(scans, name)
    )
    _, committed = hospital.opened(Worker(hospital.site).answer(hospital.train_request(1)))
    update, _ = hospital.opened(committed)
    assert update.kind == "update"
    frozen = hospital.approval.manifest
    measured = len(frozen.members)
    assert read[:measured] == list(frozen.members)
    assert set(read) == {*frozen.members, *frozen.canaries.members}


def test_an_operator_reads_what_is_added_and_what_leaves(
    small_hospital: Callable[..., Any], plan_text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Approval is consent: it needs to be told before, and is confirmed after."""
    text = plan_text.replace(b"[privacy]", b"[privacy]\ncanaries = 6")
    hospital = small_hospital(text)
    found = summary(hospital.site, hospital.approval)
    assert found["canaries"].startswith("6 phantoms with a marker are added here")
    assert "EXACT histograms of the scores of canaries" in found["what leaves"]
    show_approved("trunks", folder=hospital.site.folder, as_json=True)
    assert json.loads(capsys.readouterr().out)["canaries"] == 6
    assert len(hospital.approval.manifest.canaries.names) == 6


def proved(hospital: Any, rounds: int = 1) -> tuple[LowerBound, Finding]:
    """Train as the plan says; return the best bound, and the rule's finding at a claim of 0.5."""
    warm = warm_of(hospital)
    frozen = hospital.approval.manifest
    members = (*frozen.members, *frozen.canaries.members)
    family = warm.trainer.family
    for _ in range(rounds):
        before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
        update = warm.trainer.train("autoencoder", warm.scans, members)
        warm.trainer.load({name: before[name] + update[name] for name in before})
    family.eval()
    scores = {
        name: {"north": BinnedScores(counts.members, counts.non_members)}
        for name, counts in audit_canaries(warm, 7).items()
    }
    bounds = lower_bounds({}, DELTA, scores)
    site = SiteEvidence("north", CLAIM, {}, 0, 0, 0, None, False)
    evidence = Evidence(
        private=True,
        allowed_without_privacy=False,
        epsilon_limit=CLAIM,
        auc_block=0.6,
        auc_half_width=0.08,
        rate_block=0.03,
        delta=DELTA,
        sites=(site,),
        memberships=(),
        blind=(),
        rates=(),
        bounds=bounds,
        absent={},
    )
    return bounds[0], BelowCeiling().check(evidence)


WIDE = (b"channels = [4, 4]", b"channels = [8, 16]")


@pytest.mark.slow
def test_a_model_that_kept_its_canaries_proves_it(watched: Callable[..., Any]) -> None:
    """Over-trained without privacy on 40 of 80, it shows more than an epsilon of 0.5 allows."""
    found, finding = proved(
        watched(
            80,
            WIDE,
            (b"[privacy]", b"[privacy]\nenabled = false"),
            (b"local_steps = 2", b"local_steps = 1000"),
            (b"learning_rate = 1e-3", b"learning_rate = 4e-3"),
        )
    )
    assert found.canaries
    assert found.general > 1
    assert found.general <= found.cap
    assert finding.verdict is Verdict.BLOCK
    assert "at north, canaries" in finding.detail


@pytest.mark.slow
def test_a_private_model_proves_nothing(watched: Callable[..., Any]) -> None:
    """The same canaries through the engine at a small epsilon: nothing above the claim."""
    found, finding = proved(
        watched(
            80,
            WIDE,
            (b"epsilon = 8.0", b"epsilon = 0.5"),
            (b"local_steps = 2", b"local_steps = 30"),
            (b"learning_rate = 1e-3", b"learning_rate = 4e-3"),
        )
    )
    assert found.canaries
    assert found.general <= CLAIM < found.cap
    assert finding.verdict is Verdict.PASS
