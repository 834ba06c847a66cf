"""What bad input gets: one clear error, the documented exit code, and no budget spent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federation import Federation
from voxfed.client.site import Site
from voxfed.server.start import first_weights
from voxfed.server.store import Store
from voxfed.study import messages
from voxfed.study.files import digest
from voxfed.study.identity import SigningKey
from voxfed.study.plan import StudyPlan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A coordinator without SuperLink, and a hospital whose worker runs."""
    with Federation("north") as made:
        made.settle("north", limits={"lifetime_epsilon": 60.0})
        made.start_role("north", "worker")
        yield made


def files(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a worker's folder but its journal and SQLite's own."""
    kept = [p for p in folder.rglob("*") if p.is_file() and p.name != "journal.jsonl"]
    return {str(p): digest(p) for p in kept if not p.name.endswith(("-wal", "-shm"))}


def train(plan: StudyPlan, number: int = 1, site: str = "north") -> messages.TrainRequest:
    """Return the request for one round."""
    return messages.TrainRequest(
        site=site, study=plan.name, plan_digest=plan.digest, stage="autoencoder", round=number
    )


def weights(federation: Federation, plan: StudyPlan) -> bytes:
    """Return the tensors that a study starts from."""
    return first_weights(plan, Store(federation.folder))[0]


def test_every_wrong_key_of_every_file_is_named_at_once(federation: Federation) -> None:
    """One error, exit code 2, each key with its value; the file stays as it was."""
    server = ("--folder", federation.coordinator)
    plan = federation.folder / "wrong.toml"
    plan.write_text('name = "wrong"\nfamly = "vae"\nrounds = 0\nlocal_steps = "many"\n')
    done = federation.cli("study", "new", "wrong", "--plan", plan, *server, code=2)
    for said in ("family: missing", "famly: unknown key", "rounds:", "got 0", '"many"', "volumes:"):
        assert said in done.errors
    assert "did you mean family?" in done.errors
    assert not (federation.coordinator / "studies" / "wrong").exists()

    copy = federation.folder / "wrong-site"
    (copy / "worker").mkdir(parents=True)
    (copy / "worker" / "site.toml").write_text('name = "NORTH"\ncohrt = "x"\n[limits]\ndelta = 2\n')
    done = federation.cli("site", "status", "--folder", copy, code=2)
    for said in ('"NORTH"', "cohrt: unknown key", "cohort: missing", "limits.delta", "got 2"):
        assert said in done.errors

    wrong = federation.folder / "wrong-server"
    wrong.mkdir()
    (wrong / "coordinator.toml").write_text('name = "uni"\nport = 70000\nhots = "x"\n')
    done = federation.cli("server", "status", "--folder", wrong, code=2)
    for said in ("port:", "got 70000", "hots: unknown key", "public_host: missing"):
        assert said in done.errors


@pytest.mark.parametrize(
    ("name", "changes", "numbers"),
    [
        ("epsilon", {"privacy": {"epsilon": 80.0}}, ("got 80.0", "at most 60.0")),
        ("delta", {"privacy": {"delta": 1e-3}}, ("got 0.001", "at most 1e-05")),
        ("noise", {"privacy": {"epsilon": 59.0}, "rounds": 1}, ("got 0.", "at least 0.3")),
        ("open", {"privacy": {"enabled": False}}, ("privacy.enabled = false", "expected true")),
    ],
)
def test_a_plan_looser_than_the_limits_is_refused_with_both_numbers(
    federation: Federation, name: str, changes: dict[str, Any], numbers: tuple[str, str]
) -> None:
    """The hospital's word stands, and nothing of the refused plan is reserved or frozen."""
    site = Site(federation.sites["north"])
    federation.offer("north", name, **changes)
    before, ledger = files(site.worker), site.ledger.rows()
    done = federation.cli("site", "approve", name, "--folder", site.folder, code=3)
    for number in numbers:
        assert number in done.errors
    assert "hint" in done.errors
    assert files(site.worker) == before
    assert site.ledger.rows() == ledger


def test_one_round_more_than_the_budget_is_refused_with_both_numbers(
    federation: Federation,
) -> None:
    """The reservation is the end, whatever the coordinator signs; a paid round answers again."""
    plan = federation.offer("north", "budget", rounds=1, privacy={"epsilon": 4.0})
    federation.approve("budget", ["north"])
    tensors = weights(federation, plan)
    first = federation.ask("north", train(plan), tensors)
    assert federation.charges("north", "budget") == [("autoencoder", 1)]
    assert federation.ask("north", train(plan), tensors) == first
    ledger = federation.ledger("north")

    refused = federation.answer("north", train(plan, 2), tensors)
    assert refused.code == messages.RefusalCode.BUDGET
    last = federation.journal("north")[-1]
    (study,) = [s for s in ledger["studies"] if s["study"] == "budget"]
    assert f"{study['spent']:.4g} spent" in last["error"]
    wanted = float(last["error"].split("got epsilon ")[1].split()[0])
    reserved = float(last["error"].split("expected the ")[1].split()[0])
    assert study["spent"] <= reserved <= 4.0
    assert wanted > study["spent"]

    other = federation.answer("north", train(plan), b"other tensors")
    assert other.code == messages.RefusalCode.OTHER_REQUEST
    assert federation.ledger("north") == ledger


def test_a_changed_file_is_named_at_the_site_only(federation: Federation) -> None:
    """Nobody trains on what was not approved; the operator learns which file, others that."""
    plan = federation.offer("north", "changed", privacy={"epsilon": 4.0})
    federation.approve("changed", ["north"])
    ledger = federation.ledger("north")
    cohort = federation.folder / "cohort-north"
    scans = sorted(cohort.rglob("*.nii.gz"))
    kept = {scan: scan.read_bytes() for scan in scans}
    for scan, content in kept.items():
        scan.write_bytes(content + b"\0")
    reply = federation.ask("north", train(plan), weights(federation, plan))
    for scan, content in kept.items():
        scan.write_bytes(content)
    named = [
        s for s in scans if str(s.relative_to(cohort)) in federation.journal("north")[-1]["error"]
    ]
    assert len(named) == 1
    header, payload = messages.decode(reply, Site(federation.sites["north"]).key.public)
    assert (header.code, payload) == (messages.RefusalCode.COHORT_CHANGED, b"")
    assert named[0].name.encode() not in reply
    assert federation.ledger("north") == ledger


def test_requests_of_strangers_and_for_others_are_refused(federation: Federation) -> None:
    """Only the enrolled coordinator's word counts, and only for an approved plan of this site."""
    plan = federation.offer("north", "strangers", privacy={"epsilon": 4.0})
    ledger, codes = federation.ledger("north"), messages.RefusalCode
    assert federation.answer("north", train(plan)).code == codes.PENDING
    assert federation.answer("north", train(plan, site="harbour")).code == codes.SIGNATURE
    key = SigningKey.create(federation.folder / "stranger.pem")
    place = Site(federation.sites["north"])
    for message, code in (
        (messages.encode(train(plan), key), codes.SIGNATURE),
        (b"VXF1 and then nothing of use", codes.GARBLED),
    ):
        reply = messages.decode(federation.ask_raw("north", message), place.key.public)[0]
        assert reply.code == code
    federation.cli("site", "reject", "strangers", "--reason", "no", "--folder", place.folder)
    assert federation.answer("north", train(plan)).code == codes.REJECTED
    assert federation.ledger("north") == ledger


def test_a_cohort_too_small_for_the_split_is_refused(federation: Federation) -> None:
    """No study is frozen in which nobody, or everybody, is held out."""
    site = Site(federation.sites["north"])
    cohort, few = Path(site.settings.cohort), federation.folder / "few"
    patients = sorted(cohort.iterdir())
    federation.offer("north", "few", audit_fraction=0.2, privacy={"epsilon": 4.0})
    settings = (site.worker / "site.toml").read_bytes()
    before, ledger = files(site.worker), site.ledger.rows()
    try:
        for number, said in ((4, "got 4 patients, expected 5"), (5, "expected 2 or more held out")):
            for patient in patients[:number]:
                shutil.copytree(patient, few / patient.name, dirs_exist_ok=True)
            federation.settle("north", cohort=str(few))
            done = federation.cli("site", "approve", "few", "--folder", site.folder, code=3)
            assert "too small" in done.errors
            assert said in done.errors
            assert "hint: add patients" in done.errors
    finally:
        (site.worker / "site.toml").write_bytes(settings)
    assert files(site.worker) == before
    assert site.ledger.rows() == ledger


def test_a_gpu_that_is_absent_is_asked_for_in_vain(federation: Federation) -> None:
    """No silent training on the CPU where the site asked for a GPU."""
    site = Site(federation.sites["north"])
    plan = federation.offer("north", "device", privacy={"epsilon": 4.0})
    federation.approve("device", ["north"])
    ledger = federation.ledger("north")
    settings = (site.worker / "site.toml").read_bytes()
    federation.stop("north-worker")
    try:
        federation.settle("north", device="cuda")
        federation.start_role("north", "worker")
        refused = federation.answer("north", train(plan), weights(federation, plan))
        checked = ("--role", "worker", "--folder", site.folder, "--json")
        rows = federation.cli("site", "check", *checked, code=1).json["checks"]
    finally:
        (site.worker / "site.toml").write_bytes(settings)
        federation.stop("north-worker")
        federation.start_role("north", "worker")
    assert refused.code == messages.RefusalCode.DEVICE
    assert "site.toml asks for a GPU" in federation.journal("north")[-1]["error"]
    (row,) = [row for row in rows if row["check"] == "step of device"]
    assert row["verdict"] == "FAIL"
    assert "device in site.toml" in row["remedy"]
    assert federation.ledger("north") == ledger


def test_a_disk_without_room_stops_before_training(federation: Federation) -> None:
    """A round that could not be written is not begun, and costs nothing."""
    site = Site(federation.sites["north"])
    plan = federation.offer("north", "disk", privacy={"epsilon": 4.0})
    federation.approve("disk", ["north"])
    ledger = federation.ledger("north")
    federation.stop("north-worker")
    kept = federation.folder / "kept"
    ignored = shutil.ignore_patterns("cache", "outbox")
    shutil.copytree(site.worker, kept, ignore=ignored)
    small = 'mount -t tmpfs -o size=600k none "$1" && cp -a "$2"/. "$1" && shift 2 && exec "$@"'
    try:
        federation.start_role(
            *("north", "worker", "unshare", "--mount", "sh", "-c", small, "sh", site.worker, kept)
        )
        refused = federation.answer("north", train(plan), weights(federation, plan))
    finally:
        federation.stop("north-worker")
        federation.start_role("north", "worker")
    assert refused.code == messages.RefusalCode.DISK
    assert federation.ledger("north") == ledger
