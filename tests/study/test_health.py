"""The probe must tell a process that serves from one that does not, or Docker heals nothing."""

import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from voxfed.study.errors import ProcessError
from voxfed.study.health import check_health, main


@pytest.fixture
def service() -> Iterator[tuple[str, health.HealthServicer]]:
    """The address of a health service on a Unix socket, and the service."""
    with tempfile.TemporaryDirectory(prefix="vx-") as folder:
        address = f"unix:{folder}/probe.sock"
        server, checks = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        server.add_insecure_port(address)
        server.start()
        yield address, checks
        server.stop(None).wait()


def test_only_a_serving_process_is_healthy(
    service: tuple[str, health.HealthServicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, checks = service
    monkeypatch.setenv("VOXFED_HEALTH", address)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    checks.set("", HealthCheckResponse.SERVING)
    assert main() == 0
    checks.set("", HealthCheckResponse.NOT_SERVING)
    with pytest.raises(ProcessError, match="NOT_SERVING"):
        check_health(address)
    assert main() == 1


def test_silence_is_not_health(tmp_path: Path) -> None:
    """A port where nothing answers, a socket that is gone and a forgotten variable all exit 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ProcessError, match="does not answer"):
            check_health(address, timeout=2)
    for environment in ({"VOXFED_HEALTH": f"unix:{tmp_path}/none.sock"}, {}):
        command = [sys.executable, "-m", "voxfed.study.health"]
        ended = run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 1
        assert ended.stderr.startswith("voxfed: error:")
        assert "Traceback" not in ended.stderr
