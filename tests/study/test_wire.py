"""The seam to Flower gives back exactly the bytes it was given, or an error."""

import hashlib
import os

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from voxfed.study import wire
from voxfed.study.errors import WireError


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_a_message_comes_back_the_same(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes round a shard's border survive, and no shard is larger than the limit."""
    monkeypatch.setattr(wire, "SHARD_BYTES", 10)
    message = os.urandom(size)
    record = wire.pack(message)
    assert wire.unpack(record) == message
    assert all(len(array.data) <= 10 for array in record.array_records["shards"].values())
    assert len(record.array_records["shards"]) == -(-size // 10)


def test_a_single_shard_is_not_copied() -> None:
    message = os.urandom(1000)
    assert wire.pack(message).array_records["shards"]["0000"].data is message


def test_the_seal_is_size_and_sha256() -> None:
    """An independent reader can check what travels."""
    seal = wire.pack(b"abc").config_records["seal"]
    assert dict(seal) == {"size": 3, "sha256": hashlib.sha256(b"abc").digest()}


def test_a_message_survives_flowers_own_serialisation() -> None:
    """Flower deflates each object on its own; ours must inflate to the same bytes."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    message = os.urandom(100_000)
    record = wire.pack(message)
    contents = {name: part.deflate() for name, part in get_all_nested_objects(record).items()}
    again = inflate_object_from_contents(record.object_id, contents)
    assert isinstance(again, RecordDict)
    assert wire.unpack(again) == message


def _sealed(data: bytes, **changes: object) -> RecordDict:
    seal = {"size": len(data), "sha256": hashlib.sha256(data).digest(), **changes}
    shard = Array("uint8", (len(data),), "bytes", data)
    return RecordDict({"shards": ArrayRecord({"0000": shard}), "seal": ConfigRecord(seal)})


def _with(record: RecordDict, name: str, part: object) -> RecordDict:
    record[name] = part
    return record


FORGED = {
    "extra record": _with(_sealed(b"abc"), "note", ConfigRecord({"text": "hello"})),
    "wrong type": _with(_sealed(b"abc"), "shards", MetricRecord({"a": 1})),
    "wrong size": _sealed(b"abc", size=4),
    "negative size": _sealed(b"abc", size=-1),
    "true as size": _sealed(b"a", size=True),
    "wrong digest": _sealed(b"abc", sha256=hashlib.sha256(b"abd").digest()),
    "digest as text": _sealed(b"abc", sha256="0" * 64),
    "extra seal entry": _sealed(b"abc", note="hello"),
    "too large": _sealed(b"abc", size=wire.MAX_MESSAGE_BYTES + 1),
    "empty": RecordDict({}),
    "foreign shard name": _with(
        _sealed(b"abc"), "shards", ArrayRecord({"patient": Array("uint8", (3,), "bytes", b"abc")})
    ),
    "another dtype": _with(
        _sealed(b"abcd"), "shards", ArrayRecord({"0000": Array("float32", (1,), "bytes", b"abcd")})
    ),
    "another stype": _with(
        _sealed(b"abc"),
        "shards",
        ArrayRecord({"0000": Array("uint8", (3,), "numpy.ndarray", b"abc")}),
    ),
}


@pytest.mark.parametrize("record", FORGED.values(), ids=FORGED.keys())
def test_a_forged_record_is_refused(record: RecordDict) -> None:
    with pytest.raises(WireError):
        wire.unpack(record)


def test_a_sound_record_is_accepted() -> None:
    """The forgeries above differ from this one in one thing each."""
    assert wire.unpack(_sealed(b"abc")) == b"abc"


def test_a_message_above_the_limit_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 10)
    assert wire.unpack(wire.pack(b"0123456789")) == b"0123456789"
    with pytest.raises(WireError, match="11 bytes"):
        wire.pack(b"0123456789a")
