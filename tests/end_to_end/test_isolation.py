"""What keeps scans, keys and names in the hospital: namespaces, folders, and codes for errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import Federation
from voxfed.client.approval import find
from voxfed.client.site import Site

pytestmark = pytest.mark.slow

UNSHARE, NSENTER = shutil.which("unshare") or "", shutil.which("nsenter") or ""
PLANTED = "zz-planted-patient"
CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"


@pytest.fixture
def namespaces() -> None:
    """Fail, and never skip, where this machine cannot show the isolation."""
    if not (UNSHARE and NSENTER):
        pytest.fail("unshare and nsenter (util-linux) are needed to show the isolation")
    tried = subprocess.run([UNSHARE, "--net", "--mount", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.fail(
            "this user may not make namespaces, so that the isolation cannot be shown: run the "
            f"tests as root or with CAP_SYS_ADMIN ({tried.stderr.decode().strip()})"
        )


@pytest.mark.usefixtures("namespaces")
def test_a_study_trains_without_network_at_the_worker_and_without_scans_at_the_courier() -> None:
    """The process that sees scans can send nothing; the one that sends can see nothing."""
    with Federation("north") as federation:
        site = federation.sites["north"]
        cohort = federation.folder / "cohort-north"
        patients = sorted(p.name for p in cohort.iterdir())
        federation.start_server()
        worker = federation.start_role("north", "worker", UNSHARE, "--net")
        hide = 'for d in "$1" "$2"; do mount -t tmpfs none "$d" || exit 9; done; shift 2; exec "$@"'
        courier = federation.start_role(
            "north",
            "courier",
            "unshare",
            "--mount",
            "sh",
            "-c",
            hide,
            "sh",
            site / "worker",
            cohort,
        )
        federation.new_study("first", aggregation={"quorum": 1})
        done = federation.run_study("first", approve=["north"]).json
        assert (done["state"], done["rounds"]) == ("finished", 2)
        assert federation.charges("north", "first") == [("autoencoder", 1), ("autoencoder", 2)]

        assert worker.poll() is None
        assert courier.poll() is None
        assert interfaces(worker.pid) == {"lo"}
        assert sent_bytes(worker.pid) == 0
        reached = subprocess.run(
            [
                *(NSENTER, f"--net=/proc/{worker.pid}/ns/net", sys.executable, "-c", CONNECT),
                str(federation.port),
            ],
            capture_output=True,
            check=False,
        )
        assert b"Network is unreachable" in reached.stderr
        assert not sockets(worker.pid), "the worker holds a TCP or UDP socket"

        couriers = federation.running("flower-supernode", "north")
        assert couriers
        for process in (courier.pid, *couriers):
            seen = Path(f"/proc/{process}/root")
            for hidden in (site / "worker", cohort):
                assert os.listdir(f"{seen}{hidden}") == []
            assert os.listdir(f"{seen}{site / 'courier'}")
        assert sorted(os.listdir(f"/proc/{worker.pid}/root{cohort}")) == patients


def interfaces(process: int) -> set[str]:
    """Return the names of the network interfaces that a process has."""
    lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def sent_bytes(process: int) -> int:
    """Return the bytes that were ever sent through the interfaces of a process."""
    lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def sockets(process: int) -> list[str]:
    """Return the TCP and UDP sockets in the network namespace of a process."""
    tables = [Path(f"/proc/{process}/net/{name}") for name in ("tcp", "tcp6", "udp", "udp6")]
    return [
        line for table in tables if table.exists() for line in table.read_text().split("\n")[1:-1]
    ]


def changed(site: Site, scan: Path) -> None:
    """One more byte at the end of a scan."""
    scan.write_bytes(scan.read_bytes() + b"\0")


def removed(site: Site, scan: Path) -> None:
    """A scan that is gone."""
    scan.unlink()


def corrupt(site: Site, scan: Path) -> None:
    """A scan whose content is no image any more."""
    scan.write_bytes(f"{PLANTED} was here".encode())


def unreadable(site: Site, scan: Path) -> None:
    """A folder where the scan was."""
    scan.unlink()
    scan.mkdir()


def unknown(site: Site, scan: Path) -> None:
    """A member of whom no file is known, for an error that nobody foresaw."""
    manifest = site.approvals / "first" / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"members":[', f'"members":["{PLANTED}-ghost",', 1)
    )


def test_no_patient_of_any_worker_error_reaches_the_coordinator() -> None:
    """Whatever goes wrong with a scan, its patient's name stays at the hospital."""
    faults: dict[Callable[[Site, Path], None], str] = {
        changed: "cohort-changed",
        removed: "cohort-changed",
        corrupt: "cohort-changed",
        unreadable: "cohort-changed",
        unknown: "internal",
    }
    with Federation("north") as federation:
        site = Site(federation.sites["north"])
        cohort = federation.folder / "cohort-north"
        for patient in sorted(cohort.iterdir()):
            patient.rename(cohort / f"{PLANTED}-{patient.name}")
        federation.start_server()
        federation.start_site("north")
        federation.new_study("first", aggregation={"quorum": 1}, rounds=1)
        federation.wait_for_worker("north")
        plan = federation.offer("north", "first", aggregation={"quorum": 1}, rounds=1)
        federation.approve("first", ["north"])
        ledger = federation.ledger("north")
        manifest = site.approvals / "first" / "manifest.json"
        sound = manifest.read_bytes()
        scan = min(cohort.glob(f"{find(site, 'first').manifest.members[0]}/**/*.nii.gz"))
        kept = scan.read_bytes()
        told = []
        for provoke, code in faults.items():
            provoke(site, scan)
            done = federation.run_study("first", code=3)
            told.append(done.output + done.errors)
            assert f"'north': '{code}'" in done.errors, (provoke.__name__, done.errors)
            last = federation.journal("north")[-1]
            assert (last["event"], last["code"]) == ("refused", code)
            assert PLANTED in last["error"] + last["trace"], "the fault names no patient: no test"
            if scan.is_dir():
                scan.rmdir()
            scan.write_bytes(kept)
            manifest.write_bytes(sound)
        assert federation.ledger("north") == ledger, "a refused round was charged"
        assert federation.run_study("first").json["state"] == "finished"
        assert federation.charges("north", "first") == [("autoencoder", plan.rounds)]

        assert not [text for text in told if PLANTED in text]
        outside = [federation.coordinator, federation.sites["north"] / "courier"]
        files = [file for folder in outside for file in folder.rglob("*") if file.is_file()]
        files += [
            federation.sites["north"] / "courier" / "courier.log",
            *federation.folder.glob("*.log"),
        ]
        assert {"superlink.sqlite", "superlink.log", "supernode.log"} <= {f.name for f in files}
        assert not [file for file in files if PLANTED.encode() in file.read_bytes()]
        assert (federation.sites["north"] / "worker" / "journal.jsonl").read_text().count(PLANTED)
