"""Outbox: a committed reply comes back to the byte, or not at all."""

from pathlib import Path

import pytest
from voxfed.client.outbox import Outbox
from voxfed.privacy.ledger import RoundKey
from voxfed.study.errors import VerificationError
from voxfed.study.messages import hash_of


def _key(number: int, study: str = "s", branch: str = "0", stage: str = "a") -> RoundKey:
    return RoundKey(study, branch, stage, number)


def test_round_trip(tmp_path: Path) -> None:
    """What was put in is what is sent, and its digest is what the ledger holds."""
    outbox = Outbox(tmp_path / "outbox")
    digest = outbox.put(_key(1), b"reply")
    assert digest == hash_of(b"reply")
    assert Outbox(tmp_path / "outbox").get(_key(1), digest) == b"reply"


@pytest.mark.parametrize("content", [b"repl", b"reply ", b"", None])
def test_an_altered_reply_is_never_sent(tmp_path: Path, content: bytes | None) -> None:
    """Cut, longer, empty or gone: the ledger's digest decides."""
    outbox = Outbox(tmp_path)
    digest = outbox.put(_key(1), b"reply")
    (path,) = tmp_path.iterdir()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(VerificationError, match="gone or was altered"):
        outbox.get(_key(1), digest)


def test_prune_keeps_what_may_be_asked_again(tmp_path: Path) -> None:
    """Earlier rounds of the same study, branch and stage go; everything else stays."""
    outbox = Outbox(tmp_path)
    kept = [_key(10), _key(11), _key(9, study="s2"), _key(9, branch="1"), _key(9, stage="ab")]
    digests = {key: outbox.put(key, str(key).encode()) for key in [*kept, _key(2), _key(9)]}
    outbox.prune(_key(10))
    assert len(list(tmp_path.iterdir())) == len(kept)
    for key in kept:
        assert outbox.get(key, digests[key]) == str(key).encode()
