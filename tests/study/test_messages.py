"""Messages: signed bytes in, the same header and payload out, and nothing else taken for one."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from voxfed.study import messages
from voxfed.study.errors import VerificationError, VoxfedError, WireError
from voxfed.study.figures import FigureRow, Intensities
from voxfed.study.identity import SigningKey, canonical, pre_authentication
from voxfed.study.messages import Head, decode, encode, request_digest

DIGEST = "ab" * 32
HEADERS: list[messages.Message] = [
    messages.DescribeRequest(site="north"),
    messages.OfferRequest(site="north", study="s", plan_digest=DIGEST),
    messages.TrainRequest(site="north", study="s", plan_digest=DIGEST, stage="a", round=1),
    messages.AuditRequest(
        site="north",
        study="s",
        plan_digest=DIGEST,
        lineage="{}",
        weights_digest=DIGEST,
        weights_size=9,
        samples_digest=DIGEST,
        samples_size=0,
        extractor_digest=DIGEST,
        samples=4,
    ),
    messages.Description(
        patients="20 to 49",
        modalities=("ct",),
        spacing=(1.0, 5.0),
        labels=False,
        device="cpu",
        most_epsilon=10.0,
        least_noise=0.3,
        without_privacy=False,
        defaced="not-head",
        version="0.1.0",
    ),
    messages.Decision(study="s", plan_digest=DIGEST, decision="approved", declared_patients=20),
    messages.Update(
        study="s",
        branch=0,
        stage="a",
        round=1,
        request_digest=DIGEST,
        steps=3,
        epsilon=1.5,
        metrics={"loss": 0.25},
    ),
    messages.Audited(
        study="s",
        request_digest=DIGEST,
        weights_digest=DIGEST,
        epsilon=None,
        counts="exact",
        declared_patients=20,
        defaced="no",
        pseudo_patients=False,
        scores={"x": messages.ScoreCounts(edges=(0.0, 1.0), members=(3.0,), non_members=(2.0,))},
        copies={"voxels": {"samples": 4.0}},
    ),
    messages.EvaluationRequest(
        site="north",
        study="s",
        plan_digest=DIGEST,
        lineage="{}",
        weights_digest=DIGEST,
        weights_size=9,
        extractor_digest=DIGEST,
        samples=8,
    ),
    messages.Evaluated(
        study="s",
        request_digest=DIGEST,
        weights_digest=DIGEST,
        extractor_digest=DIGEST,
        samples=8,
        figures=(
            FigureRow(
                name="KID",
                group="age 40 to 49",
                value=0.5,
                low=-0.5,
                high=1.5,
                n=20,
                real=None,
                better="lower",
            ),
        ),
        intensities=Intensities(samples=(0.25, 0.75), held_out=(1.0, 0.0)),
        seconds=0.5,
        flops=9,
        memory=None,
        pseudo_patients=False,
    ),
    messages.Refused(code=messages.RefusalCode.BUDGET),
    messages.Receipt(head=Head(length=3, digest=DIGEST)),
]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "key.pem")


def _signed(header: dict[str, Any], key: SigningKey, payload: bytes = b"") -> bytes:
    """A message whose header is whatever it is, rightly signed."""
    seal = {"payload_digest": hashlib.sha256(payload).hexdigest(), "payload_size": len(payload)}
    text = canonical(seal | header)
    signature = key.sign(pre_authentication(messages.HEADER_TYPE, text))
    return b"VXF1" + struct.pack(">I", len(text)) + text + signature + payload


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.kind)
@pytest.mark.parametrize("payload", [b"", b"\x00\xff" * 100])
def test_round_trip(header: messages.Message, payload: bytes, key: SigningKey) -> None:
    """Every kind of message comes back as it was sent, bound to its payload."""
    found, content = decode(encode(header, key, payload), key.public)
    assert type(found) is type(header)
    assert content == payload
    assert found.payload_digest == hashlib.sha256(payload).hexdigest()
    seal = {"payload_digest", "payload_size"}
    assert found.model_dump(exclude=seal) == header.model_dump(exclude=seal)


def test_equal_messages_are_equal_bytes(key: SigningKey) -> None:
    """Signing draws nothing, so a reply that is made again is the same reply."""
    assert encode(HEADERS[2], key, b"x") == encode(HEADERS[2], key, b"x")


def test_every_flipped_byte_is_refused(key: SigningKey) -> None:
    """No byte of magic, length, header, signature or payload can change unseen."""
    message = encode(HEADERS[2], key, b"tensors")
    for at in range(len(message)):
        changed = bytearray(message)
        changed[at] ^= 1
        with pytest.raises((WireError, VerificationError)):
            decode(bytes(changed), key.public)


def test_every_cut_and_every_longer_message_is_refused(key: SigningKey) -> None:
    """A message is whole or refused, wherever the connection broke."""
    message = encode(HEADERS[2], key, b"tensors")
    for length in range(len(message)):
        with pytest.raises((WireError, VerificationError)):
            decode(message[:length], key.public)
    with pytest.raises(VerificationError):
        decode(message + b"\0", key.public)


def test_another_key_is_refused(key: SigningKey, tmp_path: Path) -> None:
    """A message of another coordinator or site is not this one's."""
    other = SigningKey.create(tmp_path / "other.pem")
    with pytest.raises(VerificationError, match="not signed by its sender"):
        decode(encode(HEADERS[0], other), key.public)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"kind": "describe"},
        {"kind": "train-all", "site": "north"},
        {"kind": "describe", "site": "../north"},
        {"kind": "describe", "site": "north", "more": 1},
        {"kind": "describe", "site": 3},
        {"kind": "refused", "code": "patient smith"},
        {"kind": "train", "site": "n", "study": "s", "plan_digest": "x", "stage": "a", "round": 1},
        {
            "kind": "train",
            "site": "n",
            "study": "s",
            "plan_digest": DIGEST,
            "stage": "../../keys/site",
            "round": 1,
        },
        {
            "kind": "train",
            "site": "n",
            "study": "s",
            "plan_digest": DIGEST,
            "stage": "a",
            "round": "1",
        },
    ],
)
def test_signed_nonsense_is_refused(header: dict[str, Any], key: SigningKey) -> None:
    """A right signature is not enough: kinds, fields, names and types are checked too."""
    with pytest.raises(WireError, match="header is wrong"):
        decode(_signed(header, key), key.public)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_are_finite(number: str, key: SigningKey) -> None:
    """An infinite epsilon or loss never enters a table."""
    text = encode(HEADERS[6], key)
    (size,) = struct.unpack(">I", text[4:8])
    changed = text[8 : 8 + size].replace(b"0.25", number.encode())
    assert changed != text[8 : 8 + size]
    signature = key.sign(pre_authentication(messages.HEADER_TYPE, changed))
    message = b"VXF1" + struct.pack(">I", len(changed)) + changed + signature
    with pytest.raises(WireError, match="header is wrong"):
        decode(message, key.public)


def test_a_swapped_payload_is_refused(key: SigningKey) -> None:
    """The signature over the header binds the payload by size and digest."""
    message = encode(HEADERS[2], key, b"tensors")
    with pytest.raises(VerificationError, match="payload"):
        decode(message[:-7] + b"TENSORS", key.public)


@pytest.mark.parametrize("size", [messages.MAX_HEADER_BYTES + 1, 2**32 - 1])
def test_a_header_too_large_is_refused_before_it_is_read(size: int, key: SigningKey) -> None:
    """A length field cannot make the worker take memory."""
    with pytest.raises(WireError, match="cut short or its header is too large"):
        decode(b"VXF1" + struct.pack(">I", size) + b"{}", key.public)


def test_a_couriers_failure_is_no_message(key: SigningKey) -> None:
    """What the courier itself reports is never taken for a site's word."""
    with pytest.raises(WireError, match="courier"):
        decode(messages.COURIER_MAGIC + b"no worker", key.public)


def test_a_header_is_not_signed_as_a_statement(key: SigningKey) -> None:
    """A signature over the bare header, or under another type, is not one over a message."""
    text = encode(HEADERS[0], key)
    (size,) = struct.unpack(">I", text[4:8])
    header = text[8 : 8 + size]
    for data in (header, pre_authentication("application/vnd.in-toto+json", header)):
        with pytest.raises(VerificationError):
            decode(text[: 8 + size] + key.sign(data), key.public)


def test_the_digest_of_a_request_leaves_out_the_echo_alone(key: SigningKey) -> None:
    """Asked again after a restart a request is the same; any other change makes another one."""
    base = {"site": "n", "study": "s", "plan_digest": DIGEST, "stage": "a", "round": 1}
    first = request_digest(encode(messages.TrainRequest(**base), key, b"weights"))
    echo = Head(length=2, digest=DIGEST)
    assert (
        request_digest(encode(messages.TrainRequest(**base, echo=echo), key, b"weights")) == first
    )
    changes: list[dict[str, Any]] = [{"round": 2}, {"stage": "b"}, {"study": "z"}, {"branch": 1}]
    others = [encode(messages.TrainRequest(**(base | c)), key, b"weights") for c in changes]
    others.append(encode(messages.TrainRequest(**base), key, b"weightz"))
    assert first not in {request_digest(other) for other in others}


def test_nothing_in_the_header_is_hidden(key: SigningKey) -> None:
    """Header bytes are plain JSON that an auditor can read."""
    message = encode(HEADERS[0], key)
    (size,) = struct.unpack(">I", message[4:8])
    assert json.loads(message[8 : 8 + size])["site"] == "north"
    assert issubclass(WireError, VoxfedError)


def _evaluation(**more: Any) -> messages.EvaluationRequest:
    facts: dict[str, Any] = {"site": "north", "study": "s", "plan_digest": DIGEST, "lineage": "{}"}
    facts |= {"weights_digest": messages.hash_of(b"weights"), "weights_size": 7}
    facts |= {"extractor_digest": messages.hash_of(b"extractor"), "samples": 8}
    return messages.EvaluationRequest(**(facts | more))


def test_an_evaluation_is_of_weights_extractor_and_samples() -> None:
    """What an operator allows cannot be exchanged for another question; who is asked may differ."""
    subject = _evaluation().subject
    assert _evaluation(site="valley", echo=Head(length=1, digest=DIGEST)).subject == subject
    changed = ({"weights_digest": DIGEST}, {"extractor_digest": DIGEST}, {"samples": 9})
    assert len({subject, *(_evaluation(**change).subject for change in changed)}) == 4


def test_weights_and_extractor_are_those_named() -> None:
    """One payload carries both files, each under its own digest."""
    assert _evaluation().split(b"weightsextractor") == (b"weights", b"extractor")
    for payload in (b"weightsextractoR", b"weightSextractor", b"weights", b""):
        with pytest.raises(VerificationError, match="not those"):
            _evaluation().split(payload)
    with pytest.raises(VerificationError, match="not those"):
        _evaluation(weights_size=6).split(b"weightsextractor")
