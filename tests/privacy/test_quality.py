"""The evaluation in a bundle is of the released weights, and hospitals signed its figures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from voxfed.privacy.bundle import EVALUATION, add_decision
from voxfed.privacy.quality import Quality
from voxfed.privacy.verification import check_whole, verify
from voxfed.study.errors import VerificationError

OTHER = "ab" * 32


def approved(people: Any, study: Any, evaluation: bytes | None) -> Path:
    bundle: Path = people.bundle(study, evaluation=evaluation)
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    return bundle


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_release_stands_with_and_without_an_evaluation(
    scene: Any, plan: Any, evaluated: bool
) -> None:
    """Bundles of studies that allow no evaluation verify as before."""
    people = scene()
    bundle = approved(people, plan(), people.evaluation() if evaluated else None)
    assert (bundle / EVALUATION).exists() is evaluated
    assert verify(bundle, **people.cards)


def test_an_evaluation_of_other_weights_is_refused(scene: Any, plan: Any) -> None:
    """The coordinator cannot lend a model the figures of a better one."""
    people = scene()
    bundle = approved(people, plan(), people.evaluation(weights_digest=OTHER))
    with pytest.raises(VerificationError, match=r"evaluation\.json: the weights is another"):
        verify(bundle, **people.cards)


def test_replies_about_other_weights_are_refused(scene: Any, plan: Any) -> None:
    """A signed reply is bound to its weights, whatever the report round it says."""
    people = scene()
    report = json.loads(scene(weights=b"a better model").evaluation())
    bundle = approved(people, plan(), people.evaluation(sites=report["sites"]))
    with pytest.raises(VerificationError, match="evaluation of harbour: the weights is another"):
        verify(bundle, **people.cards)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"figures": []}, "evaluation of harbour is not what the hospital signed"),
        ({"site": "elsewhere"}, "evaluation of elsewhere cannot be checked"),
        ({"site": "north"}, "evaluation of north cannot be trusted"),
        ({"reply": "!"}, "evaluation of harbour cannot be trusted .got garbled base64"),
        ({"reply": ""}, "evaluation of harbour cannot be trusted"),
    ],
)
def test_figures_that_the_hospital_did_not_sign_are_found(
    scene: Any, change: dict[str, Any], words: str
) -> None:
    """Figures, names and replies are checked against the hospitals' keys."""
    people = scene()
    report = json.loads(people.evaluation())
    report["sites"][0] |= change
    quality = Quality.from_text(json.dumps(report).encode())
    with pytest.raises(VerificationError, match=words):
        quality.check(quality.weights_digest, people.site_keys)


def test_a_reply_of_another_kind_is_no_evaluation(scene: Any, plan: Any) -> None:
    """A signed audit cannot stand in for an evaluation."""
    people = scene()
    report = json.loads(people.evaluation())
    audited = people.answer("harbour", plan()).reply
    report["sites"][0]["reply"] = base64.b64encode(audited).decode()
    quality = Quality.from_text(json.dumps(report).encode())
    with pytest.raises(VerificationError, match=r"is none \(got audited"):
        quality.check(quality.weights_digest, people.site_keys)


def test_an_evaluation_that_comes_or_goes_after_signing_is_found(scene: Any, plan: Any) -> None:
    """Nobody can add one to a bundle, or take a bad one out."""
    people = scene()
    bundle = approved(people, plan(), None)
    (bundle / EVALUATION).write_bytes(people.evaluation())
    with pytest.raises(VerificationError, match="the list of files is another"):
        check_whole(bundle)
    (bundle / EVALUATION).unlink()
    bundle.rename(bundle.parent / "old")
    bundle = approved(people, plan(), people.evaluation())
    (bundle / EVALUATION).unlink()
    with pytest.raises(VerificationError, match=r"evaluation\.json is missing from the bundle"):
        check_whole(bundle)


def test_what_is_no_evaluation_is_named() -> None:
    """A garbled report gives no traceback."""
    for text in (b"", b"{}", b"\xff", b"[1]"):
        with pytest.raises(VerificationError, match=r"evaluation\.json cannot be read"):
            Quality.from_text(text)
