"""Asks the standard gRPC health service whether a process serves; what container probes run."""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .errors import ProcessError

VARIABLE = "VOXFED_HEALTH"


def check_health(address: str, *, timeout: float = 5.0) -> None:
    """Return if the process at `address` says that it serves.

    Args:
        address: "host:port" or "unix:/path", as gRPC names them.
        timeout: seconds to wait for the answer.

    Raises:
        ProcessError: nothing answers there, or it says that it does not serve.
    """
    # A proxy in the environment is for the coordinator, never for this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as fault:
            raise ProcessError(f"{address} does not answer", got=fault.code().name) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise ProcessError(f"{address} does not serve", got=name, expected="SERVING")


def main() -> int:
    """Check the address in VOXFED_HEALTH; return 0 if it serves, 1 if not."""
    try:
        if VARIABLE not in os.environ:
            raise ProcessError(f"{VARIABLE} is not set", expected="host:port or unix:/path")
        check_health(os.environ[VARIABLE])
    except ProcessError as fault:
        print(f"voxfed: error: {fault.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
