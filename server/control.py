"""What the coordinator asks of its SuperLink: enrol sites, start a run, stop it, see its state."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import Status
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from ..study.errors import ProcessError, UsageError
from .gate import TOKEN_HEADER, control_token

COMPONENT = "voxfed.server.app:app"


@dataclass(frozen=True)
class EnrolledNode:
    """A registered SuperNode: Flower's id, the site's name, its key (PEM), and whether it is on."""

    node_id: int
    name: str
    public_key: bytes
    online: bool


@dataclass(frozen=True)
class RunStatus:
    """Where a run is: pending, starting, running or finished; and then completed, failed, stopped.

    `details` is Flower's text; it stays at the coordinator.
    """

    status: str
    outcome: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen in this run."""
        return self.status == Status.FINISHED


class Control:
    """The Control API of the SuperLink at `port` on this machine, opened with the folder's token.

    Every method raises ProcessError when the SuperLink does not answer or refuses.

    Args:
        folder: the coordinator's folder.
        port: the SuperLink's port.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port

    def enrol(self, name: str, public_key: bytes) -> int:
        """Register a site's node key (OpenSSH format) under `name`; return Flower's node id.

        Raises:
            UsageError: the key is not one that Flower takes, or name or key is enrolled already.
        """
        pem = node_key_pem(public_key)
        for node in self.nodes():
            if node.name == name or node.public_key.strip() == pem.strip():
                raise UsageError(
                    f"the name or node key of {name} is enrolled already",
                    got=f"enrolled as {node.name}",
                    hint="withdraw that enrolment first, or give the site another name",
                )
        with self._client() as client:
            request = RegisterNodeRequest(public_key=pem, name=name)
            return int(client.RegisterNode(request).node_id)

    def expel(self, name: str) -> None:
        """Unregister the node enrolled under `name`; its SuperNode is refused from then on.

        Raises:
            UsageError: no site of that name is enrolled.
        """
        for node in self.nodes():
            if node.name == name:
                with self._client() as client:
                    client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
                return
        raise UsageError(f"no site {name} is enrolled", hint="see `voxfed server status`")

    def nodes(self) -> list[EnrolledNode]:
        """Return every registered node."""
        with self._client() as client:
            listed = client.ListNodes(ListNodesRequest()).nodes_info
        return [
            EnrolledNode(node.node_id, node.name, node.public_key, node.status == "online")
            for node in listed
            if node.status != "unregistered"
        ]

    def submit(
        self,
        run_config: Mapping[str, str | int | float | bool],
        *,
        component: str = COMPONENT,
        files: Mapping[str, bytes] | None = None,
    ) -> int:
        """Start a run of our ServerApp and return its id.

        The bundle that Flower wants is built in memory; it holds a descriptor and no code of ours,
        since both ends have that installed.

        Args:
            run_config: what the ServerApp finds in `context.run_config`; also seen by sites.
            component: "module:attribute" of the ServerApp.
            files: more files in the bundle, by relative path.
        """
        bundle = _bundle({"pyproject.toml": _descriptor(run_config, component), **(files or {})})
        fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
        with self._client() as client:
            started = client.StartRun(StartRunRequest(fab=fab))
        if not started.run_id:
            raise ProcessError("the SuperLink did not start the run")
        return int(started.run_id)

    def stop_run(self, run_id: int) -> None:
        """Stop a run; its ServerApp ends and waiting messages are dropped."""
        with self._client() as client:
            client.StopRun(StopRunRequest(run_id=run_id))

    def run_status(self, run_id: int) -> RunStatus:
        """Return where a run is."""
        with self._client() as client:
            status = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    @contextmanager
    def _client(self) -> Iterator[ControlHttpClient]:
        authority = self._folder / "certificates" / "ca.pem"
        try:
            with ControlHttpClient.from_server_address(
                f"127.0.0.1:{self._port}",
                insecure=False,
                root_certificates=authority.read_bytes(),
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
                    _Token(control_token(self._folder)),
                ],
            ) as client:
                yield client
        except (OSError, httpx.HTTPError) as error:
            _explain(error, self._port)


class _Token:
    """Adds the coordinator's token to each request, as `gate.py` wants it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[TOKEN_HEADER] = self._token
        return call_next(context)


def _explain(error: OSError | httpx.HTTPError, port: int) -> NoReturn:
    if isinstance(error, httpx.HTTPStatusError):
        what, got = "the SuperLink refused the request", error.response.text[:300]
        hint = "its log, superlink.log, says more"
    else:
        what, got = f"no SuperLink answers at 127.0.0.1:{port}", type(error).__name__
        hint = "start it with `voxfed server start`"
    raise ProcessError(what, got=got or "no reason", hint=hint) from None


def node_key_pem(public_key: bytes) -> bytes:
    """Return an OpenSSH public key as Flower stores it, after checking that it is ECDSA P-384."""
    try:
        key = serialization.load_ssh_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise UsageError(
            "no usable node key", expected="ECDSA P-384, OpenSSH format", hint="send node.pub"
        )
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _bundle(files: Mapping[str, bytes]) -> bytes:
    """Return a Flower App Bundle: a zip of `files` with a manifest of path, SHA-256 and bits.

    Flower's own builder would import its whole command line (0.5 s) for these lines.
    """
    manifest = [f"{p},{hashlib.sha256(c).hexdigest()},{8 * len(c)}" for p, c in files.items()]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path, content in {**files, ".info/CONTENT": "\n".join(manifest).encode()}.items():
            # A fixed date: the same study gives the same digest, which sites note.
            bundle.writestr(zipfile.ZipInfo(path, (2024, 10, 1, 0, 0, 0)), content)
    return archive.getvalue()


def _descriptor(run_config: Mapping[str, Any], component: str) -> bytes:
    components = {"serverapp": component, "clientapp": "voxfed.client.courier:app"}
    app = {"publisher": "voxfed", "components": components, "config": dict(run_config)}
    project = {"name": "voxfed-study", "version": "1.0.0", "license": "Apache-2.0"}
    project["description"] = "A study of voxfed; holds no code"
    return tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}).encode()
