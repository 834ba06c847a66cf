"""RoundRecord: the signed lineage of weights."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from voxfed.study.errors import VerificationError
from voxfed.study.identity import SigningKey, canonical, sign_envelope
from voxfed.study.record import RECORD_TYPE, RoundRecord

FACTS: dict[str, Any] = {
    "study": "trunks",
    "plan_digest": "11" * 32,
    "branch": 0,
    "stage": "autoencoder",
    "round": 3,
    "weights_digest": "22" * 32,
    "replies": ("33" * 32, "44" * 32),
    "previous": "55" * 32,
}


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")


def test_round_trip(key: SigningKey) -> None:
    """A site reads what the coordinator signed."""
    record = RoundRecord(**FACTS)
    assert RoundRecord.open(record.sign(key), key.public) == record


def test_another_coordinators_record_is_refused(key: SigningKey, tmp_path: Path) -> None:
    """Weights whose lineage someone else signed are not audited."""
    other = SigningKey.create(tmp_path / "other.pem")
    with pytest.raises(VerificationError, match="not signed"):
        RoundRecord.open(RoundRecord(**FACTS).sign(other), key.public)


def test_another_kind_of_statement_is_refused(key: SigningKey) -> None:
    """An envelope signed for another purpose is no lineage, whatever it says."""
    with pytest.raises(VerificationError, match="another type"):
        RoundRecord.open(sign_envelope(canonical(FACTS), key), key.public)


@pytest.mark.parametrize(
    "change",
    [
        {"round": "3"},
        {"round": -1},
        {"weights_digest": "22"},
        {"replies": "33" * 32},
        {"extra": 1},
    ],
)
def test_a_signed_but_garbled_record_is_refused(key: SigningKey, change: dict[str, Any]) -> None:
    """Types and digests are checked after the signature."""
    envelope = sign_envelope(canonical(FACTS | change), key, RECORD_TYPE)
    with pytest.raises(VerificationError, match="garbled"):
        RoundRecord.open(envelope, key.public)
    with pytest.raises(ValidationError):
        RoundRecord.model_validate_json(canonical(FACTS | change), strict=True)
