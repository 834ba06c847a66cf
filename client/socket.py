"""Bytes between courier and worker over gRPC on a Unix socket: one message each way, in chunks.

gRPC's Python server cannot say which user is at the other end of a Unix socket (its `peer()` and
`auth_context()` are empty there). So a `_Doorkeeper` accepts on the known path, asks the kernel for
the peer's user id (SO_PEERCRED), and only then joins it to gRPC's own socket, which lies in a fresh
0700 directory. The known path must itself lie in a 0700 directory of this user.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as sockets
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ..study.errors import ProcessError, WireError

SERVICE, METHOD = "voxfed.Worker", "Exchange"
CHUNK_BYTES = 4 * 1024**2
MAX_MESSAGE_BYTES = 4 * 1024**3
MAX_PATH_BYTES = 100
_CALLS = 8
_OPTIONS = [("grpc.max_receive_message_length", CHUNK_BYTES)]


def exchange(socket: Path, message: bytes, *, timeout: float) -> bytes:
    """Send `message` to the worker at `socket` and return its reply.

    Args:
        socket: path of the worker's Unix socket.
        message: bytes, at most 4 GiB; sent in chunks of at most 4 MiB.
        timeout: seconds until the whole reply must be here; hours are fine, silence is no fault.

    Raises:
        ProcessError: no worker listens there, it refused us, or it went away during the call.
        TimeoutError: the reply was not complete after `timeout` seconds.
        WireError: the message or the reply is larger than 4 GiB.
    """
    _check_path(socket)
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError("a message of impossible size", got=f"{len(message)} bytes")
    with grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        try:
            return _join(call(_cut(message), timeout=timeout))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"no complete reply from the worker in {timeout} s") from None
            raise ProcessError(
                "the worker does not answer",
                got=error.code().name,
                hint="start it with `voxfed site start --role worker`",
            ) from None


class WorkerServer:
    """A running worker endpoint; `stop` closes it and removes its socket."""

    def __init__(self, server: grpc.Server, doorkeeper: _Doorkeeper) -> None:
        self._server, self._doorkeeper = server, doorkeeper

    def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, give running ones `grace` seconds, and remove the socket."""
        self._doorkeeper.stop()
        self._server.stop(grace).wait()
        self._doorkeeper.remove()

    def wait(self, timeout: float | None = None) -> None:
        """Block until the server has stopped, at most `timeout` seconds."""
        self._server.wait_for_termination(timeout)


def serve(
    socket: Path, handler: Callable[[bytes], bytes], *, allowed_uids: frozenset[int]
) -> WorkerServer:
    """Answer messages at `socket` with `handler`, in up to 8 threads, beside gRPC health checks.

    Args:
        socket: path to listen at, in a directory of this user with mode 0700; at most 100 bytes.
        handler: message in, reply out; what it raises goes to this process's log only.
        allowed_uids: user ids that may connect; others are cut off before a byte is read.

    Raises:
        ProcessError: the path is too long, its directory is open, or a worker listens there.
    """
    _check_path(socket)
    _check_directory(socket.parent)
    _remove_stale(socket)
    inner = Path(tempfile.mkdtemp(prefix="voxfed-")) / "grpc"
    server = grpc.server(ThreadPoolExecutor(_CALLS), options=_OPTIONS)
    method = grpc.stream_stream_rpc_method_handler(_answering(handler))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),)
    )
    checks = health.HealthServicer()
    for name in ("", SERVICE):
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_insecure_port(f"unix:{inner}")
    doorkeeper = _Doorkeeper(socket, inner, allowed_uids)
    server.start()
    doorkeeper.start()
    return WorkerServer(server, doorkeeper)


def _answering(
    handler: Callable[[bytes], bytes],
) -> Callable[[Iterable[bytes], grpc.ServicerContext], Iterator[bytes]]:
    def answer(chunks: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            reply = handler(_join(chunks))
        except Exception:  # any text may name a patient: it must not reach the courier
            logging.getLogger(__name__).exception("the worker failed to answer a message")
            context.abort(grpc.StatusCode.INTERNAL, "")
        yield from _cut(reply)

    return answer


def _cut(message: bytes) -> Iterator[bytes]:
    for start in range(0, len(message), CHUNK_BYTES):
        yield message[start : start + CHUNK_BYTES]


def _join(chunks: Iterable[bytes]) -> bytes:
    message = bytearray()
    for chunk in chunks:
        message += chunk
        if len(message) > MAX_MESSAGE_BYTES:
            raise WireError("a message of impossible size", expected=f"<= {MAX_MESSAGE_BYTES}")
    return bytes(message)


def _check_path(socket: Path) -> None:
    length = len(os.fsencode(socket))
    if length > MAX_PATH_BYTES or not socket.is_absolute():
        raise ProcessError(
            "an unusable socket path",
            got=f"{length} bytes: {socket}",
            expected=f"an absolute path of at most {MAX_PATH_BYTES} bytes",
            hint="give the run directory a short absolute path, for example /run/voxfed",
        )


def _check_directory(directory: Path) -> None:
    try:
        found = directory.lstat()
    except FileNotFoundError:
        raise ProcessError(f"no directory {directory} for the worker's socket") from None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode & 0o077:
        raise ProcessError(
            f"the directory {directory} of the worker's socket is open to others",
            got=f"mode {mode:04o}, user {found.st_uid}",
            expected=f"mode 0700, user {os.geteuid()}",
            hint=f"chmod 700 {directory}, and run courier and worker as its owner",
        )


class _Doorkeeper:
    """Accepts connections, checks each peer's user id, joins the allowed to gRPC's socket."""

    def __init__(self, outer: Path, inner: Path, allowed_uids: frozenset[int]) -> None:
        self._outer, self._inner, self._allowed = outer, inner, allowed_uids
        self._door = sockets.socket(sockets.AF_UNIX)
        self._door.bind(os.fsencode(outer))
        self._door.listen(_CALLS)

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # already shut
            self._door.shutdown(sockets.SHUT_RDWR)
        self._door.close()
        self._outer.unlink(missing_ok=True)

    def remove(self) -> None:
        self._inner.unlink(missing_ok=True)
        self._inner.parent.rmdir()

    def _accept(self) -> None:
        while True:
            try:
                guest, _ = self._door.accept()
            except OSError:  # closed by stop
                return
            if _peer_uid(guest) not in self._allowed:
                guest.close()
                continue
            threading.Thread(target=self._introduce, args=(guest,), daemon=True).start()

    def _introduce(self, guest: sockets.socket) -> None:
        with guest, sockets.socket(sockets.AF_UNIX) as host:
            try:
                host.connect(os.fsencode(self._inner))
            except OSError:  # the server is stopping
                return
            back = threading.Thread(target=_pour, args=(host, guest), daemon=True)
            back.start()
            _pour(guest, host)
            back.join()


def _peer_uid(peer: sockets.socket) -> int:
    credentials = peer.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _pour(source: sockets.socket, sink: sockets.socket) -> None:
    with contextlib.suppress(OSError):  # either end may leave at any time
        while data := source.recv(1024**2):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(sockets.SHUT_RDWR)


def _remove_stale(path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(os.fsencode(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:  # left by a worker that was killed
            path.unlink()
            return
    raise ProcessError(
        f"a worker already listens at {path}", hint="stop it first with `voxfed site stop`"
    )
