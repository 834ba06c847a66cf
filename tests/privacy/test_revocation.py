"""A release that was taken back is refused, and nobody but the coordinator takes one back."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from voxfed.privacy.bundle import add_decision, bundle_digest
from voxfed.privacy.revocation import REVOCATION, read_revocation, sign_revocation
from voxfed.privacy.verification import check_whole, verify
from voxfed.study.errors import UsageError, VerificationError
from voxfed.study.identity import SigningKey


@pytest.fixture
def approved(scene: Any, plan: Any) -> tuple[Any, Path]:
    people = scene()
    bundle = people.bundle(plan())
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    return people, bundle


def revoke(key: SigningKey, digest: str, reason: str = "a patient withdrew") -> bytes:
    return sign_revocation(digest, study="trunks", reason=reason, key=key)


def test_a_revoked_bundle_is_refused_with_the_reason(approved: tuple[Any, Path]) -> None:
    """Also by whoever only draws samples from it, with no key at hand."""
    people, bundle = approved
    envelope = revoke(people.keys["coordinator"], bundle_digest(bundle))
    (bundle / REVOCATION).write_bytes(envelope)
    with pytest.raises(VerificationError, match=r"was revoked on 20\d\d-.*: a patient withdrew"):
        verify(bundle, **people.cards)
    with pytest.raises(VerificationError, match="this release was revoked"):
        check_whole(bundle)


def test_a_copy_is_refused_by_the_file_that_came_later(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    envelope = revoke(people.keys["coordinator"], bundle_digest(bundle))
    with pytest.raises(VerificationError, match="was revoked"):
        verify(bundle, **people.cards, revocations={"by-mail.json": envelope})
    other = revoke(people.keys["coordinator"], "b" * 64)
    assert verify(bundle, **people.cards, revocations={"by-mail.json": other})


def test_a_forged_revocation_is_named_and_hides_nothing(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    forged = revoke(people.keys["second"], bundle_digest(bundle))
    with pytest.raises(VerificationError, match="by-mail"):
        verify(bundle, **people.cards, revocations={"by-mail.json": forged})
    (bundle / REVOCATION).write_bytes(forged)
    with pytest.raises(VerificationError, match="revoked"):
        verify(bundle, **people.cards)


def test_a_revocation_needs_a_reason_and_is_nothing_else(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    key = people.keys["coordinator"]
    for reason in ("  ", "x" * 2001):
        with pytest.raises(UsageError, match="needs a reason"):
            revoke(key, "b" * 64, reason)
    decision = people.decide(bundle)
    with pytest.raises(VerificationError, match="another kind of statement"):
        read_revocation(decision, people.keys["officer"].public, what="it")
    digest, found = read_revocation(revoke(key, "b" * 64), key.public, what="it")
    assert (digest, found.reason) == ("b" * 64, "a patient withdrew")


def test_what_is_not_revoked_stays_as_it_was(approved: tuple[Any, Path], tmp_path: Path) -> None:
    people, bundle = approved
    shutil.copytree(bundle, tmp_path / "copy")
    (bundle / REVOCATION).write_bytes(revoke(people.keys["coordinator"], bundle_digest(bundle)))
    assert verify(tmp_path / "copy", **people.cards)
