"""Real SuperLink, SuperNodes, couriers and workers over TLS and node keys on loopback."""

import json
import os
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
from voxfed.study.errors import ProcessError, VerificationError

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
        for site, reply in exchange.ask(((s, message) for s in sites), deadline=120):
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
        """Start the SuperLink, to be stopped with the federation."""
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
        """Start a site whose worker answers with `handler`, or that has none."""
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

    def run(self, *, sites: list[str], rounds: int, size: int, seconds: float = 300) -> dict:
        """Run the echo study to its end and return what the ServerApp wrote."""
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


def _journal(courier: Path) -> list[dict]:
    return [json.loads(line) for line in (courier / "journal.jsonl").read_text().splitlines()]


def test_three_rounds_of_a_megabyte_with_two_named_sites(federation: Federation) -> None:
    """Bytes go out and come back whole, by name, through our courier and not the bundle's code."""
    sites = ["hospital-a", "hospital-b"]
    for name in sites:
        federation.site(name)
    intruder = federation.site("intruder", enrol=False)
    result = federation.run(sites=sites, rounds=3, size=1_000_000)
    for number in result["rounds"]:
        assert number["replies"] == dict.fromkeys(sites, "echo")
    for name in sites:
        courier = federation.folder / name / "courier"
        lines = _journal(courier)
        assert [line["outcome"] for line in lines] == ["delivered"] * 3
        assert {line["request_bytes"] for line in lines} == {1_000_004}
        assert len({line["bundle"] for line in lines}) == 1
        assert not (courier / "flower" / "apps").exists(), "the bundle was unpacked"
    assert result["online"] == sites, "a node that nobody enrolled is in the federation"
    assert intruder.process.wait(120) != 0
    assert "SuperNode" in intruder.log.read_text()

    federation.stack.close()
    gone = _wait_for(lambda: not _processes_naming(str(federation.folder)), 60)
    assert gone, _processes_naming(str(federation.folder))


def test_a_local_failure_travels_as_a_code_and_nothing_else(federation: Federation) -> None:
    """A worker that is down or raises yields a code; a patient's name stays at the site."""

    def fail(message: bytes) -> bytes:
        raise ValueError("Jane Roe")

    federation.site("hospital-a", handler=None)
    federation.site("hospital-b", handler=fail)
    result = federation.run(sites=["hospital-a", "hospital-b"], rounds=1, size=10)
    code = "VXFCworker-unreachable"
    assert result["rounds"][0]["replies"] == {"hospital-a": code, "hospital-b": code}
    outcomes = [
        line["outcome"]
        for name in ("hospital-a", "hospital-b")
        for line in _journal(federation.folder / name / "courier")
    ]
    assert outcomes == ["worker-unreachable"] * 2
    files = [file for file in federation.coordinator.rglob("*") if file.is_file()]
    assert any(file.name == "superlink.sqlite" for file in files)
    assert not [file for file in files if b"Jane Roe" in file.read_bytes()]


def test_foreign_certificates_and_strangers_are_refused(federation: Federation) -> None:
    """A false coordinator is found by its certificate; a stranger cannot start a run."""
    foreign = federation.folder / "foreign"
    create_certificates(foreign, ["127.0.0.1"])
    address = f"127.0.0.1:{federation.link.port}"
    check_coordinator(address, federation.coordinator / "certificates" / "ca.pem")
    with pytest.raises(VerificationError, match="cannot be trusted"):
        check_coordinator(address, foreign / "ca.pem")
    federation.site("hospital-a", root=foreign / "ca.pem")
    federation.site("hospital-b")

    def online() -> set[str]:
        return {node.name for node in federation.control.nodes() if node.online}

    assert _wait_for(lambda: "hospital-b" in online(), 150)
    time.sleep(3)
    assert online() == {"hospital-b"}

    (federation.coordinator / "control.token").write_text("0" * 64)
    with pytest.raises(ProcessError, match="refused"):
        federation.control.nodes()
