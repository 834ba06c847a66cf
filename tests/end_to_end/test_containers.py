"""The files of deploy/ build two images, and their containers finish a round among strangers."""

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePath

import pytest
from container import DEPLOY, Compose, Container, read_compose, wait
from image import ROOT, context, do
from voxfed.models.phantoms import HOSPITALS, write_cohort

OWNER = 10007
ADDRESS = "10.77.0.1"
SITES = ("hospital-a", "hospital-b")
PLAN = """
name = "first"
family = "vae"
rounds = 1
local_steps = 1
expected_patients = 5
[settings]
channels = [8, 8]
latent_channels = 2
[volumes]
shape = [16, 16, 16]
spacing = [9.0, 9.0, 9.0]
[optimiser]
learning_rate = 1e-3
[privacy]
epsilon = 4.0
clip_norm = 0.1
[aggregation]
quorum = 2
deadline = 120.0
approval_deadline = 300.0
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ExitStack]:
    """Stops every container; fails, and never skips, where none can be made."""
    veth = "ip link add one type veth peer name two && command -v nsenter setpriv chroot"
    probe = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "sh", "-c", veth]
    missing = f"no root, namespaces, util-linux or iproute2 (CI={os.environ.get('CI', 'false')})"
    try:
        tried = subprocess.run(probe, capture_output=True, text=True)
    except FileNotFoundError as fault:
        pytest.fail(f"{missing}: {fault}")
    if tried.returncode or os.geteuid():
        pytest.fail(f"{missing}: {tried.stderr}")
    Compose.images = {}
    with ExitStack() as opened:
        yield opened


def _owned(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True)
    os.chown(folder, OWNER, OWNER)
    return folder


def _hand_over(source: Path, target: Path) -> None:
    shutil.copy(source, target)
    os.chown(target, OWNER, OWNER)


def _wire(coordinator: Container, guest: Container, number: int) -> None:
    """Join two network namespaces by a cable, as Docker's bridge would."""
    site = f"10.77.0.{number}"
    for container, command in (
        (coordinator, f"link add site{number} type veth peer name eth0 netns {guest.pid}"),
        (coordinator, f"addr add {ADDRESS} peer {site} dev site{number}"),
        (coordinator, f"link set site{number} up"),
        (guest, f"addr add {site} peer {ADDRESS} dev eth0"),
        (guest, "link set eth0 up"),
    ):
        do("nsenter", "--target", str(container.pid), "--net", "--", "ip", *command.split())


def _site(folder: Path, name: str, number: int, stack: ExitStack, server: Compose) -> Compose:
    """Make, enrol and start one hospital, by the lines of the README."""
    home, scans = _owned(folder / "site"), folder / "scans"
    write_cohort(scans, 16, HOSPITALS[number], seed=number)
    site = Compose(
        "site.compose.yaml", folder, stack,
        VOXFED_SITE=str(home), VOXFED_DATA=str(scans), VOXFED_USER=f"{OWNER}:{OWNER}",
    )  # fmt: skip
    coordinator, renamed = folder.parent / "server", ("hospital-a", name)
    _hand_over(coordinator / "invitation.json", home / "invitation.json")
    site("run --rm setup site init /site/invitation.json --name hospital-a --cohort /data", renamed)
    _hand_over(home / "enrolment.json", coordinator / f"{name}.json")
    enrol = "exec coordinator voxfed server enroll --site /coordinator/hospital-a.json"
    server(enrol, renamed)
    for place, role in enumerate(("worker", "courier")):
        container = site.create(role)
        if container.service.get("network_mode") != "none":
            _wire(server.running["coordinator"], container, 2 + 2 * number + place)
        container.release()
    return site


def _check_sealed(container: Container) -> None:
    """No right, no root, nothing to write but what was mounted."""
    found = container.python(
        "import os\nlines = open('/proc/self/status').read().split('\\n')\n"
        "status = dict(line.split(':\\t') for line in lines if ':\\t' in line)\n"
        "found = [os.getuid(), int(status['CapBnd'], 16), int(status['CapEff'], 16),"
        " status['NoNewPrivs'], bool(os.statvfs('/').f_flag & os.ST_RDONLY),"
        " os.statvfs('/tmp').f_flag & os.ST_RDONLY]"
    )
    assert found == [OWNER, 0, 0, "1", True, 0]


def _check_worker(worker: Container) -> None:
    found = worker.python(
        "import os, socket\nprobe = socket.socket()\n"
        f"error = probe.connect_ex(('{ADDRESS}', 8000))\n"
        "found = [[name for _, name in socket.if_nameindex()], os.strerror(error),"
        " bool(os.statvfs('/data').f_flag & os.ST_RDONLY), len(os.listdir('/data'))]"
    )
    assert found == [["lo"], "Network is unreachable", True, 16]


def _check_courier(courier: Container, site: Path) -> None:
    """Neither scans nor the worker's folder are there, under any path or mount."""
    mounts = courier.python("found = open('/proc/self/mountinfo').read()")
    assert f"{site}/site/courier" in mounts
    assert f"{site}/site/worker" not in mounts
    assert f"{site}/scans" not in mounts
    names = "found = [f for top in ('/site', '/data', '/tmp') for _, d, f in os.walk(top)]"
    seen = {name for names in courier.python(f"import os\n{names}") for name in names}
    assert "node.key" in seen
    secret = [p for top in ("scans", "site/worker") for p in (site / top).rglob("*") if p.is_file()]
    assert {"ledger.sqlite", "site.pem", "north-001_visit-1_phantom.nii.gz"} & {
        p.name for p in secret
    }
    assert not seen & {p.name for p in secret if p.name != "journal.jsonl"}


@pytest.mark.slow
def test_two_hospitals_in_containers_finish_a_round(tmp_path: Path, stack: ExitStack) -> None:
    """Built and started by deploy/ alone, as a user who is not root, the federation trains."""
    user, home = f"{OWNER}:{OWNER}", _owned(tmp_path / "server")
    server = Compose(
        "coordinator.compose.yaml", tmp_path / "images", stack,
        VOXFED_SERVER=str(home), VOXFED_USER=user,
    )  # fmt: skip
    init = "run --rm coordinator server init --name university-x --public-host fl.example.org"
    server(init, ("fl.example.org", ADDRESS))
    coordinator = server.create("coordinator")
    assert not coordinator.healthy(), "a process that does not run yet is called healthy"
    coordinator.release()
    coordinator.settle()
    sites = {
        name: _site(tmp_path / name, name, number, stack, server)
        for number, name in enumerate(SITES)
    }
    for name, site in sites.items():
        for container in site.running.values():
            container.settle()
            _check_sealed(container)
        site("exec worker voxfed site check --role worker")
        site("exec courier voxfed site check --role courier")
        _check_worker(site.running["worker"])
        _check_courier(site.running["courier"], tmp_path / name)
    _check_sealed(coordinator)

    (home / "plan.toml").write_text(PLAN)
    server("exec coordinator voxfed study new first --plan /coordinator/plan.toml")
    study = "exec coordinator voxfed study run first"
    with (tmp_path / "run.log").open("wb") as log:
        running = subprocess.Popen(
            coordinator.inside(*study.split()[2:]), stdout=log, stderr=subprocess.STDOUT
        )
    stack.callback(running.kill)
    for name, site in sites.items():
        offered = tmp_path / name / "site/worker/approvals/first/plan.toml"
        wait(offered.exists, 90, f"no plan came to {name}")
        site("exec worker voxfed site approve first")
    assert "nothing waits" in sites[name]("exec worker voxfed site approve")
    assert running.wait(120) == 0, (tmp_path / "run.log").read_text()
    done = json.loads((home / "studies/first/rounds/000001/facts.json").read_text())
    assert set(done["epsilon"]) == set(SITES)
    assert coordinator.healthy()
    for site in sites.values():
        asked = site.running["worker"].inside("voxfed", "site", "ledger", "--json")
        ledger = json.loads(do(*asked))
        assert [entry["rounds"] for entry in ledger["studies"]] == [1]
        assert {role: c.stop() for role, c in site.running.items()} == {"worker": 0, "courier": 0}


def test_what_the_files_of_deploy_promise() -> None:
    """The split that privacy rests on, read from the very files: mounts, networks, users."""
    values = {"VOXFED_SITE": "/s", "VOXFED_DATA": "/d", "VOXFED_USER": "7:7", "VOXFED_SERVER": "/c"}
    services = read_compose(DEPLOY / "site.compose.yaml", values)["services"]
    mounts = {
        name: {(v["source"], v["target"], v.get("read_only", False)) for v in service["volumes"]}
        for name, service in services.items()
    }
    run = ("/s/run", "/site/run", False)
    assert mounts["courier"] == {("/s/courier", "/site/courier", False), run}
    assert mounts["worker"] == {("/d", "/data", True), ("/s/worker", "/site/worker", False), run}
    assert mounts["setup"] == {("/s", "/site", False)}
    assert services["worker"]["network_mode"] == services["setup"]["network_mode"] == "none"
    assert "network_mode" not in services["courier"]
    assert not any("ports" in service for service in services.values())
    assert services["worker"]["user"] == services["courier"]["user"] == "7:7"
    assert services["worker"]["build"]["args"]["TORCH_INDEX"] == "https://pypi.org/simple"
    services |= read_compose(DEPLOY / "coordinator.compose.yaml", values)["services"]
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for dockerfile in DEPLOY.glob("*.Dockerfile"):
        assert "\nUSER 10001:10001\n" in dockerfile.read_text()


def test_an_image_holds_the_package_and_nothing_else() -> None:
    """A new package must not be forgotten; a scan or key in the checkout must not be baked in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = project["tool"]["setuptools"]["packages"]
    folders = [PurePath(*name.split(".")[1:]) for name in names]
    inside = context()
    assert not [f for f in folders if f / "__init__.py" not in inside]
    assert not [p for p in inside if {"tests", "deploy", "__pycache__", ".git"} & set(p.parts)]
    assert {p.suffix for p in inside} <= {".py", ".toml", ".txt", ".md", ".j2", ".html", ""}
