"""How our bytes travel inside Flower's messages: the one place that knows both.

A message is opaque here. It is cut into shards of at most 32 MB, each a Flower `Array` of uint8,
beside a seal that holds its size and SHA-256. Whatever else a record holds, or a seal that does not
fit, is refused.
"""

from __future__ import annotations

import hashlib

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from .errors import WireError

SHARD_BYTES = 32_000_000
MAX_MESSAGE_BYTES = 4 * 1024**3
_DTYPE, _STYPE = "uint8", "bytes"


def pack(message: bytes) -> RecordDict:
    """Return the record that carries `message` (bytes, at most 4 GiB) in shards of at most 32 MB.

    Raises:
        WireError: the message is larger than `MAX_MESSAGE_BYTES`.
    """
    _refuse_too_large(len(message))
    pieces = [message[at : at + SHARD_BYTES] for at in range(0, len(message), SHARD_BYTES)]
    shards = {_name(i): Array(_DTYPE, (len(p),), _STYPE, p) for i, p in enumerate(pieces)}
    seal = ConfigRecord({"size": len(message), "sha256": hashlib.sha256(message).digest()})
    return RecordDict({"shards": ArrayRecord(shards, keep_input=False), "seal": seal})


def unpack(record: RecordDict) -> bytes:
    """Return the message (bytes) that `record` carries, exactly as `pack` was given it.

    Raises:
        WireError: something is missing or extra, too large, or the size or digest does not match.
    """
    if set(record) != {"shards", "seal"}:
        raise WireError("a record with missing or foreign parts", expected="seal, shards")
    shards, seal = record["shards"], record["seal"]
    if not isinstance(shards, ArrayRecord) or not isinstance(seal, ConfigRecord):
        raise WireError("a record whose parts have the wrong type")
    size, digest = _read_seal(seal)
    _refuse_too_large(size)
    message = b"".join(_shards_in_order(shards, size))
    if hashlib.sha256(message).digest() != digest:
        raise WireError("a message whose SHA-256 differs from its seal")
    return message


def _read_seal(seal: ConfigRecord) -> tuple[int, bytes]:
    size, digest = seal.get("size"), seal.get("sha256")
    if set(seal) != {"size", "sha256"} or type(size) is not int or not isinstance(digest, bytes):
        raise WireError("a seal with missing or foreign entries", expected="size, sha256")
    return size, digest


def _shards_in_order(shards: ArrayRecord, size: int) -> list[bytes]:
    names = [_name(i) for i in range(len(shards))]
    if set(shards) != set(names):
        raise WireError("shards with missing or foreign names")
    arrays = [shards[name] for name in names]
    for array in arrays:
        if (array.dtype, array.stype, array.shape) != (_DTYPE, _STYPE, (len(array.data),)):
            raise WireError("a shard that does not hold plain bytes")
    if sum(len(array.data) for array in arrays) != size:
        raise WireError("shards that do not add up to the sealed size", expected=f"{size} bytes")
    return [array.data for array in arrays]


def _refuse_too_large(size: int) -> None:
    if not 0 <= size <= MAX_MESSAGE_BYTES:
        raise WireError(
            "a message of impossible size",
            got=f"{size} bytes",
            expected=f"at most {MAX_MESSAGE_BYTES}",
            hint="train a smaller part of the model, or a smaller model",
        )


def _name(index: int) -> str:
    return f"{index:04d}"
