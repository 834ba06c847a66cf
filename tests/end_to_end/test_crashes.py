"""Kill -9 in the middle of a round, process by process: the study finishes, charged once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Done, Federation
from voxfed.client.site import Site
from voxfed.server.coordinator import Coordinator
from voxfed.server.store import Store
from voxfed.study.messages import hash_of

pytestmark = pytest.mark.slow

SITES = ("north", "harbour")
ROUNDS = 3
DOOMED = Path(__file__).with_name("doomed_worker.py")


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A coordinator and two hospitals, one of them with its two processes apart."""
    with Federation(*SITES) as made:
        for site in made.sites.values():
            settings = site / "worker" / "site.toml"
            text = settings.read_text().replace(
                "lifetime_epsilon = 10.0", "lifetime_epsilon = 99.0"
            )
            settings.write_text(text)
        made.start_server()
        made.start_site("harbour")
        made.start_role("north", "worker")
        made.start_role("north", "courier")
        yield made


def begin(federation: Federation, study: str) -> subprocess.Popen[bytes]:
    """Start a study with steps enough for a crash to hit, and approve it."""
    federation.new_study(study, rounds=ROUNDS, local_steps=15, privacy={"epsilon": 4.0})
    run = federation.spawn("study", "run", study, "--folder", federation.coordinator, "--json")
    federation.approve(study, SITES)
    return run


def wait_for_round(federation: Federation, study: str, site: str = "") -> None:
    """Wait until the second round is at work: a courier, of `site`, has reached its worker."""
    progress = federation.coordinator / "studies" / study / "progress.json"

    def at_work() -> bool:
        facts = json.loads(progress.read_bytes())
        assert facts["state"] != "finished", "the study ended before the second round was seen"
        second = (facts["state"], facts.get("round")) == ("training", 2)
        return second and bool(federation.running("client.courier", site))

    federation.wait(at_work, 200, "the second round")


def kill(processes: list[int]) -> None:
    """Kill -9."""
    assert processes, "there is nothing to kill"
    for process in processes:
        os.kill(process, signal.SIGKILL)


def finish(federation: Federation, study: str, run: subprocess.Popen[bytes]) -> Done:
    """Wait for the run, and run the study again where that one ended early; return the last."""
    output, errors = run.communicate(timeout=450)
    assert b"Traceback" not in errors, errors.decode()
    if run.returncode == 0:
        return Done(0, output.decode(), errors.decode())
    assert run.returncode == 1, errors.decode()
    assert b"hint" in errors
    return federation.run_study(study)


def check(federation: Federation, study: str, done: Done) -> None:
    """The study is whole: each site and round charged exactly once, for the update that counted."""
    assert (done.json["state"], done.json["rounds"]) == ("finished", ROUNDS)
    owner = Coordinator(federation.coordinator)
    rounds = Store(owner.studies / study).rounds()
    records = [finished.record(owner.key.public) for finished in rounds]
    assert [record.round for record in records] == list(range(ROUNDS + 1))
    for before, record in zip(rounds, records[1:], strict=False):
        assert record.previous == hash_of(before.envelope)
    for site in SITES:
        assert federation.charges(site, study) == [("autoencoder", n + 1) for n in range(ROUNDS)]
        ledger = Site(federation.sites[site]).ledger
        charged = [
            row.body["reply_digest"]
            for row in ledger.rows()
            if row.kind == "charge" and row.body["study"] == study
        ]
        for digest, record in zip(charged, records[1:], strict=True):
            assert digest in record.replies, "a charged update did not count"
        told = done.json["sites"][site]
        assert told["rounds"] == ROUNDS
        assert told["epsilon"] == pytest.approx(ledger.spent(study), abs=1e-9)
        assert ledger.left(study) >= 0
        list(Site(federation.sites[site]).journal.entries())
    list(owner.journal.entries())


@pytest.mark.parametrize(
    ("point", "written", "charged"),
    [("trained", False, False), ("written", True, False), ("charged", True, True)],
)
def test_a_worker_killed_between_training_and_reply(
    federation: Federation, point: str, written: bool, charged: bool
) -> None:
    """Wherever the worker dies, nothing leaves uncharged and no round is charged twice."""
    study, site = f"worker-{point}", federation.sites["north"]
    federation.stop("north-worker")
    worker = federation.start("north-worker", sys.executable, DOOMED, point, site)
    federation.wait_for_worker("north")
    run = begin(federation, study)
    assert worker.wait(200) == -signal.SIGKILL
    outbox = site / "worker" / "outbox" / f"{study}.0.autoencoder.2"
    assert outbox.exists() == written
    assert (("autoencoder", 2) in federation.charges("north", study)) == charged
    kept = outbox.read_bytes() if charged else None
    federation.stop("north-worker")
    federation.start_role("north", "worker")
    check(federation, study, finish(federation, study, run))
    if kept is not None:
        record = Store(federation.coordinator / "studies" / study).rounds()[2]
        owner = Coordinator(federation.coordinator)
        assert hash_of(kept) in record.record(owner.key.public).replies


def test_a_courier_killed_while_the_reply_is_on_its_way(federation: Federation) -> None:
    """The charged reply is asked for again, and the same bytes are sent."""
    run = begin(federation, "courier")
    wait_for_round(federation, "courier", "north")
    couriers = federation.running("client.courier", "north")
    ends = time.monotonic() + 150
    while ("autoencoder", 2) not in federation.charges("north", "courier"):
        # stopped, it takes no reply; let go now and then, in case it had not asked yet
        for number, seconds in ((signal.SIGCONT, 0.1), (signal.SIGSTOP, 1.5)):
            for process in couriers:
                os.kill(process, number)
            time.sleep(seconds)
        assert time.monotonic() < ends, "the worker was never asked"
    kill(couriers)
    check(federation, "courier", finish(federation, "courier", run))


def test_a_supernode_killed_in_a_round(federation: Federation) -> None:
    """The site's processes are started again and the round goes on."""
    run = begin(federation, "supernode")
    wait_for_round(federation, "supernode", "harbour")
    kill(federation.running("flower-supernode", "harbour"))
    check(federation, "supernode", finish(federation, "supernode", run))


def test_a_superlink_killed_in_a_round(federation: Federation) -> None:
    """The server's keeper starts it again, and the study goes on from the last round."""
    run = begin(federation, "superlink")
    wait_for_round(federation, "superlink")
    kill(federation.running("voxfed.server.gate"))
    check(federation, "superlink", finish(federation, "superlink", run))


def test_a_serverapp_killed_in_a_round(federation: Federation) -> None:
    """The operator is told to run the command again, and no finished round is repeated."""
    run = begin(federation, "serverapp")
    wait_for_round(federation, "serverapp")
    kill(federation.running("flwr-serverapp"))
    check(federation, "serverapp", finish(federation, "serverapp", run))
