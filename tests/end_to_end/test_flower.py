"""Real SuperLink, SuperNodes, couriers and workers over TLS and node keys on loopback."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from voxfed.client.socket import serve
from voxfed.client.supernode import SuperNode, check_coordinator, node_key, start_supernode
from voxfed.server.certificates import create_certificates
from voxfed.server.control import Control
from voxfed.server.superlink import SuperLink, start_superlink
from voxfed.study.errors import VerificationError

pytestmark = pytest.mark.slow

APP = b"""
import json, os, time
from pathlib import Path
from flwr.serverapp import ServerApp
from voxfed.server.exchange import Exchange

app = ServerApp()

@app.main()
def main(grid, context):
    folder = Path(os.environ["VOXFED_COORDINATOR_FOLDER"])
    sites = str(context.run_config["sites"]).split(",")
    exchange = Exchange(grid)
    while set(sites) - set(exchange.nodes()):
        time.sleep(0.2)
    rounds = []
    for number in range(int(context.run_config["rounds"])):
        message = number.to_bytes(4, "big") + os.urandom(int(context.run_config["size"]))
        started = time.monotonic()
        replies = {}
        for site, reply in exchange.ask(dict.fromkeys(sites, message), deadline=120):
            replies[site] = reply[:40].decode("latin-1") if reply != message[::-1] else "echo"
        rounds.append({"replies": replies, "seconds": time.monotonic() - started})
    result = {"online": sorted(exchange.nodes()), "rounds": rounds}
    (folder / "result.part").write_text(json.dumps(result))
    os.replace(folder / "result.part", folder / "result.json")
"""


class Federation:
    """A coordinator and its sites in one folder, each worker a thread that reverses bytes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.coordinator = folder / "coordinator"
        create_certificates(self.coordinator / "certificates", ["127.0.0.1"])
        self.link = self.start_link()
        self.control = Control(self.coordinator, self.link.port)

    def start_link(self) -> SuperLink:
        link = start_superlink(self.coordinator, host="127.0.0.1")
        self.stack.callback(link.stop)
        return link

    def site(
        self,
        name: str,
        *,
        enrol: bool = True,
        root: Path | None = None,
        handler: Callable[[bytes], bytes] | None = lambda message: message[::-1],
    ) -> SuperNode:
        courier, run = self.folder / name / "courier", self.folder / name / "run"
        courier.mkdir(parents=True)
        run.mkdir(mode=0o700)
        private, public = node_key(courier)
        if enrol:
            self.control.enrol(name, public.read_bytes())
        if handler:
            worker = serve(run / "worker.sock", handler, allowed_uids=frozenset({os.getuid()}))
            self.stack.callback(worker.stop)
        node = start_supernode(
            courier,
            address=f"127.0.0.1:{self.link.port}",
            root_certificate=root or self.coordinator / "certificates" / "ca.pem",
            key=private,
            worker_socket=run / "worker.sock",
        )
        self.stack.callback(node.stop)
        return node

    def run(self, *, sites: list[str], rounds: int, size: int, seconds: float = 120) -> dict:
        run_id = self.control.submit(
            {"sites": ",".join(sites), "rounds": rounds, "size": size},
            component="echo_app:app",
            files={"echo_app.py": APP},
        )
        ends = time.monotonic() + seconds
        while not (status := self.control.run_status(run_id)).finished:
            assert time.monotonic() < ends, self.link.log.read_text()[-3000:]
            time.sleep(0.3)
        assert status.outcome == "completed", status
        return json.loads((self.coordinator / "result.json").read_text())


@pytest.fixture
def federation() -> Iterator[Federation]:
    with tempfile.TemporaryDirectory(prefix="vx-") as folder, ExitStack() as stack:
        yield Federation(Path(folder), stack)


def _wait_for(what: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if what():
            return True
        time.sleep(0.2)
    return False


def _processes_naming(text: str) -> list[int]:
    """Ids of the processes whose command line or environment names `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if text.encode() in seen:
            found.append(int(entry.name))
    return found


def test_three_rounds_of_a_megabyte_with_two_named_sites(federation: Federation) -> None:
    """Bytes go out and come back whole, by name, through our courier and not through the bundle."""
    for name in ("hospital-a", "hospital-b"):
        federation.site(name)
    result = federation.run(sites=["hospital-a", "hospital-b"], rounds=3, size=1_000_000)
    assert result["online"] == ["hospital-a", "hospital-b"]
    for number in result["rounds"]:
        assert number["replies"] == {"hospital-a": "echo", "hospital-b": "echo"}
    for name in ("hospital-a", "hospital-b"):
        courier = federation.folder / name / "courier"
        lines = [json.loads(line) for line in (courier / "journal.jsonl").open()]
        assert [line["outcome"] for line in lines] == ["delivered"] * 3
        assert {line["request_bytes"] for line in lines} == {1_000_004}
        assert len({line["bundle"] for line in lines}) == 1
        assert not (courier / "flower" / "apps").exists(), "the bundle was unpacked"
