"""From outside only Fleet calls pass; the Control API also wants the token."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
from voxfed.server.gate import TOKEN_HEADER, Gate, control_token

TOKEN = "a" * 64
OUTSIDE, INSIDE, INSIDE6 = "203.0.113.7", "127.0.0.1", "::1"


def _status(path: str, peer: str | None, token: str | None, kind: str = "http") -> int:
    """Return 200 if the request reaches the application behind the gate, else the gate's answer."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(TOKEN_HEADER.encode(), token.encode())] if token is not None else []
    client = (peer, 50000) if peer else None
    scope = {"type": kind, "path": path, "client": client, "headers": headers}
    asyncio.run(Gate(application, TOKEN)(scope, receive, send))
    return int(sent[0].get("status", sent[0].get("code", 0)))


@pytest.mark.parametrize(
    ("path", "peer", "token", "status"),
    [
        ("/v1/fleet/pull-messages", OUTSIDE, None, 200),
        ("/v1/control/start-run", OUTSIDE, None, 403),
        ("/v1/control/start-run", OUTSIDE, TOKEN, 403),
        ("/v1/control/start-run", INSIDE, None, 403),
        ("/v1/control/start-run", INSIDE, TOKEN[:-1], 403),
        ("/v1/control/start-run", INSIDE, "", 403),
        ("/v1/control/start-run", INSIDE, TOKEN, 200),
        ("/v1/control/start-run", INSIDE6, TOKEN, 200),
        ("/v1/runtime/acquire-task", OUTSIDE, None, 403),
        ("/v1/runtime/acquire-task", INSIDE, None, 200),
        ("/docs", OUTSIDE, None, 403),
        ("/v1/fleet", OUTSIDE, None, 403),
        ("/v1/control/start-run", None, TOKEN, 403),
    ],
)
def test_who_may_ask_what(path: str, peer: str | None, token: str | None, status: int) -> None:
    assert _status(path, peer, token) == status


def test_a_websocket_is_closed() -> None:
    assert _status("/v1/fleet/x", OUTSIDE, TOKEN, "websocket") == 1008


def test_the_control_token_is_private_and_stays(tmp_path: Path) -> None:
    token = control_token(tmp_path)
    assert len(token) == 64
    assert control_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "control.token").stat().st_mode) == 0o600
