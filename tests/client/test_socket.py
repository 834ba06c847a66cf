"""Courier and worker exchange bytes only with whom they should, and lose none."""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from voxfed.client import socket as worker_socket
from voxfed.client.socket import exchange, serve
from voxfed.study.errors import ProcessError, WireError

US = frozenset({os.getuid()})


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket path short enough, in a 0700 directory."""
    with tempfile.TemporaryDirectory(prefix="vx-") as folder:
        yield Path(folder) / "worker.sock"


@pytest.mark.parametrize("size", [0, 1, 4 * 1024**2, 4 * 1024**2 + 1, 20_000_000])
def test_bytes_come_back_whole_and_in_order(path: Path, size: int) -> None:
    """Sizes round a chunk's border, and several chunks, both ways."""
    server = serve(path, lambda message: message[::-1], allowed_uids=US)
    message = os.urandom(size)
    assert exchange(path, message, timeout=60) == message[::-1]
    server.stop()


def test_another_user_is_cut_off_unheard(path: Path) -> None:
    """The peer's user id is checked before a byte reaches the handler."""
    heard: list[bytes] = []
    server = serve(
        path, lambda m: heard.append(m) or b"", allowed_uids=frozenset({os.getuid() + 1})
    )
    with pytest.raises(ProcessError, match="UNAVAILABLE"):
        exchange(path, b"let me in", timeout=60)
    assert heard == []
    server.stop()


def test_what_the_handler_raises_stays_inside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A patient's name in an exception reaches the worker's log and never the courier."""

    def fail(message: bytes) -> bytes:
        raise ValueError("Jane Roe")

    server = serve(path, fail, allowed_uids=US)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream("/voxfed.Worker/Exchange")
        with pytest.raises(grpc.RpcError) as seen:
            list(call(iter([b"x"]), timeout=60))
    assert "Jane" not in str(seen.value) + repr(seen.value)
    assert seen.value.details() == ""
    with pytest.raises(ProcessError) as told:
        exchange(path, b"x", timeout=60)
    assert "Jane" not in str(told.value)
    assert "Jane Roe" in caplog.text
    server.stop()


def test_a_late_reply_is_a_timeout(path: Path) -> None:
    """It is told while the worker is still at work, not when that ends."""
    release = threading.Event()

    def slow(message: bytes) -> bytes:
        assert release.wait(60)
        return message

    server = serve(path, slow, allowed_uids=US)
    with pytest.raises(TimeoutError):
        exchange(path, b"x", timeout=0.5)
    release.set()
    server.stop()


def test_no_worker_is_said_at_once(path: Path) -> None:
    """Nobody waits for the timeout, which would be another error."""
    with pytest.raises(ProcessError, match="does not answer"):
        exchange(path, b"x", timeout=60)


def test_calls_are_answered_side_by_side(path: Path) -> None:
    """A health or progress question is answered while a training call is open."""
    release = threading.Event()

    def handler(message: bytes) -> bytes:
        if message == b"train":
            assert release.wait(60)
        return message

    server = serve(path, handler, allowed_uids=US)
    training = threading.Thread(target=exchange, args=(path, b"train"), kwargs={"timeout": 60})
    training.start()
    assert exchange(path, b"progress", timeout=60) == b"progress"
    release.set()
    training.join()
    server.stop()


def test_the_standard_health_check_answers(path: Path) -> None:
    server = serve(path, lambda m: m, allowed_uids=US)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "voxfed.Worker"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    server.stop()


def test_stop_removes_the_socket_and_a_stale_one_is_replaced(path: Path) -> None:
    """A worker killed with -9 leaves its socket; the next one starts all the same."""
    server = serve(path, lambda m: m, allowed_uids=US)
    server.stop()
    assert not path.exists()
    import socket

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = serve(path, lambda m: m, allowed_uids=US)
    assert exchange(path, b"x", timeout=60) == b"x"
    server.stop()


def test_two_workers_at_one_socket_are_refused(path: Path) -> None:
    server = serve(path, lambda m: m, allowed_uids=US)
    with pytest.raises(ProcessError, match="already listens"):
        serve(path, lambda m: m, allowed_uids=US)
    assert exchange(path, b"x", timeout=60) == b"x"
    server.stop()


def test_an_open_directory_is_refused(path: Path) -> None:
    path.parent.chmod(0o755)
    with pytest.raises(ProcessError, match="open to others") as told:
        serve(path, lambda m: m, allowed_uids=US)
    assert "chmod 700" in told.value.hint


def test_a_long_path_is_refused_with_the_remedy() -> None:
    """GRPC itself fails above 107 bytes with a text that nobody understands."""
    long = Path("/run") / ("x" * 120)
    for act in (
        lambda: serve(long, lambda m: m, allowed_uids=US),
        lambda: exchange(long, b"", timeout=1),
    ):
        with pytest.raises(ProcessError, match="unusable socket path") as told:
            act()
        assert "short" in told.value.hint


def test_too_large_a_reply_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(path, lambda m: m * 3, allowed_uids=US)
    monkeypatch.setattr(worker_socket, "MAX_MESSAGE_BYTES", 10)
    assert exchange(path, b"abc", timeout=60) == b"abcabcabc"
    with pytest.raises(WireError):
        exchange(path, b"abcd", timeout=60)
    with pytest.raises(WireError):
        exchange(path, b"a" * 11, timeout=60)
    server.stop()
