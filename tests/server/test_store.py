"""Store: rounds on disk are whole, signed and in order, whenever the process died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from voxfed.server.store import Round, Store
from voxfed.study.errors import UsageError, VerificationError
from voxfed.study.identity import SigningKey
from voxfed.study.messages import hash_of
from voxfed.study.record import RoundRecord

DIGEST = "ab" * 32

KILLED = """
import os, signal, sys
from pathlib import Path
from voxfed.server.store import Store
calls = []
real = os.fsync
def fsync(handle):
    calls.append(handle)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
Store(Path(sys.argv[1])).keep(1, b"weights 1", b"envelope 1", {"epsilon": {}})
"""


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "study")


def keep(store: Store, number: int, key: SigningKey, weights: bytes = b"weights") -> Round:
    record = RoundRecord(
        study="s",
        plan_digest=DIGEST,
        branch=0,
        stage="a",
        round=number,
        weights_digest=hash_of(weights),
        replies=(),
        previous=DIGEST,
    )
    return store.keep(number, weights, record.sign(key), {"seconds": 1.5})


def test_rounds_come_back_in_order(store: Store, key: SigningKey) -> None:
    """The last finished round is the one that the next starts from, past number nine too."""
    for number in (0, 1, 2, 9, 10):
        keep(store, number, key, f"weights {number}".encode())
    assert [found.record(key.public).round for found in store.rounds()] == [0, 1, 2, 9, 10]
    assert store.latest(key.public).weights == b"weights 10"
    assert store.latest(key.public).facts == {"seconds": 1.5}


def test_before_the_start(store: Store, key: SigningKey) -> None:
    """A study without rounds or plan says what to do, without a traceback."""
    with pytest.raises(UsageError, match="has not started"):
        store.latest(key.public)
    with pytest.raises(UsageError, match="no study named study"):
        _ = store.plan
    assert (store.progress(), store.decisions(), store.audits()) == ({}, {}, [])


@pytest.mark.parametrize("content", [b"weightz", b"weight", b""])
def test_altered_weights_are_found(store: Store, key: SigningKey, content: bytes) -> None:
    """A truncated or changed checkpoint never starts a round; the file is named."""
    last = keep(store, 1, key)
    (last.folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(VerificationError, match=r"weights\.safetensors was truncated or altered"):
        store.latest(key.public)


def test_a_record_of_another_key_is_found(store: Store, key: SigningKey, tmp_path: Path) -> None:
    """A round that the coordinator did not sign is none."""
    keep(store, 1, SigningKey.create(tmp_path / "other.pem"))
    with pytest.raises(VerificationError, match="not signed"):
        store.latest(key.public)


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_kill_in_the_middle_leaves_the_round_before(
    store: Store, key: SigningKey, moment: int
) -> None:
    """Killed at any fsync of a checkpoint, the study has the round before and goes on."""
    keep(store, 0, key)
    command = [sys.executable, "-c", KILLED, str(store.folder), str(moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [found.folder.name for found in store.rounds()] == ["000000"]
    assert store.latest(key.public).weights == b"weights"
    keep(store, 1, key, b"again")
    assert store.latest(key.public).weights == b"again"


def test_a_round_that_is_run_again_replaces_the_first(store: Store, key: SigningKey) -> None:
    """After a rewind the same number holds the new weights alone."""
    keep(store, 1, key, b"old")
    keep(store, 1, key, b"new")
    assert [found.weights for found in store.rounds()] == [b"new"]
    assert os.listdir(store.folder / "rounds") == ["000001"]


def test_progress_and_decisions(store: Store) -> None:
    """What another process reads is whole: the last state alone."""
    decisions: dict[str, dict[str, Any]] = {"north": {"decision": "approved"}}
    store.show(state="training", round=3)
    store.show(state="finished")
    store.keep_decisions(decisions)
    assert Store(store.folder).progress() == {"state": "finished"}
    assert Store(store.folder).decisions() == decisions


def test_audits_are_numbered(store: Store) -> None:
    """Each audit has a folder of its own with what was asked and what was answered."""
    first = store.keep_audit({"north": b"asked"}, {"north": b"said"}, {"refused": {}})
    second = store.keep_audit({}, {}, {})
    assert (first.name, second.name) == ("001", "002")
    assert (first / "north.request").read_bytes() == b"asked"
    assert (first / "north.reply").read_bytes() == b"said"
