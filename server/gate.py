"""Flower's SuperLink behind a gate: from outside only what a hospital's node needs gets through.

Flower 1.41 serves its Fleet, Control and Runtime APIs on one port, and the free edition leaves the
Control API without authentication: whoever reaches the port could start a run of any code at the
coordinator, or register a node. Here /v1/fleet (signed by the node keys) is open, everything else
answers this machine only, and /v1/control only to who knows the coordinator's token.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_HEADER = "voxfed-control-token"  # noqa: S105  the header's name, no secret
TOKEN_VARIABLE = "VOXFED_CONTROL_TOKEN"  # noqa: S105  the variable's name, no secret


class Gate:
    """ASGI application that answers 403 itself or hands the request to `app`.

    Args:
        app: the SuperLink's application.
        token: what callers of the Control API must send.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self.admits(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def admits(self, scope: Scope) -> bool:
        """Return whether a request may pass, from its path, the peer's address and its headers."""
        path: str = scope["path"]
        if path.startswith("/v1/fleet/"):
            return True
        peer = scope.get("client")
        if not peer or not ipaddress.ip_address(peer[0]).is_loopback:
            return False
        if path.startswith("/v1/runtime/"):
            return True
        headers = dict(scope["headers"])
        return hmac.compare_digest(headers.get(TOKEN_HEADER.encode(), b""), self._token)


def control_token(folder: Path) -> str:
    """Return the secret that opens the Control API, creating it (mode 0600) if absent."""
    path = folder / "control.token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii")
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path.read_text(encoding="ascii")


def main() -> None:
    """Run the SuperLink with the arguments of `flower-superlink`, behind the gate."""
    import uvicorn
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.supercore.logger import console_handler
    from flwr.superlink.cli.flower_superlink import (
        SuperLinkLifespan,
        _parse_superlink_lifespan_config,
    )
    from flwr.superlink.main import create_app

    # Flower offers no public way to put a middleware round its application.
    config = _parse_superlink_lifespan_config()
    app = create_app(config, SuperLinkLifespan)
    uvicorn.run(
        Gate(app, os.environ[TOKEN_VARIABLE]),
        host=config.host,
        port=config.port,
        access_log=False,
        proxy_headers=False,
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        workers=1,
    )


if __name__ == "__main__":
    main()
