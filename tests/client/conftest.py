"""A hospital with an approved study, small enough to be copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from voxfed.client import approval, manifest
from voxfed.client.approval import Approval, approve, receive
from voxfed.client.site import Limits, Site, SiteSettings, create
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.models.registry import build
from voxfed.models.state import tensors_of, to_bytes
from voxfed.study import messages
from voxfed.study.card import Card
from voxfed.study.identity import SigningKey
from voxfed.study.plan import StudyPlan

PATIENTS = 12
PLAN = b"""
name = "trunks"
family = "vae"
rounds = 2
local_steps = 2
expected_patients = 3
audit_fraction = 1.0
[settings]
channels = [4, 4]
groups = 2
latent_channels = 2
code = 4
[volumes]
shape = [8, 8, 8]
spacing = [18.0, 18.0, 18.0]
[optimiser]
learning_rate = 1e-3
[privacy]
epsilon = 8.0
delta = 1e-3
"""


@dataclass
class Hospital:
    """A site folder, its cohort, and the coordinator that it knows."""

    folder: Path
    coordinator: SigningKey
    plan: StudyPlan

    @property
    def site(self) -> Site:
        """The site, read from its folder afresh."""
        return Site(self.folder / "site")

    @property
    def cohort(self) -> Path:
        """One folder a patient."""
        return self.folder / "cohort"

    @property
    def approval(self) -> Approval:
        """The approved study."""
        return approval.find(self.site, "trunks")

    @property
    def weights(self) -> bytes:
        """The first global tensors."""
        return to_bytes(tensors_of(build(self.plan)))

    def train_request(self, round: int = 1, *, payload: bytes | None = None, **more: Any) -> bytes:
        """A signed request for one round."""
        facts = {"site": "north", "study": "trunks", "plan_digest": self.plan.digest}
        facts |= {"stage": "autoencoder", "round": round}
        header = messages.TrainRequest(**(facts | more))
        return messages.encode(header, self.coordinator, payload or self.weights)

    def opened(self, reply: bytes) -> tuple[Any, bytes]:
        """Header and payload of a reply, which the site must have signed."""
        return messages.decode(reply, self.site.key.public)

    def code(self, reply: bytes) -> str:
        """The code of a refusal."""
        header, payload = self.opened(reply)
        assert (header.kind, payload) == ("refused", b"")
        return str(header.code)


def make_hospital(
    folder: Path, plan: StudyPlan, patients: int = PATIENTS, **limits: Any
) -> Hospital:
    """Write cohort and site folder, and offer the plan."""
    write_cohort(folder / "cohort", patients, HOSPITALS[0], seed=5)
    coordinator = SigningKey.create(folder / "coordinator.pem")
    settings = SiteSettings(
        name="north",
        cohort=str(folder / "cohort"),
        coordinator="127.0.0.1:1",
        device="cpu",
        limits=Limits(**({"lifetime_epsilon": 40.0, "delta": 1e-3} | limits)),
    )
    card = Card("coordinator", "coordinator", coordinator.public)
    create(folder / "site", settings, card, b"certificate")
    hospital = Hospital(folder, coordinator, plan)
    receive(hospital.site, plan.name, plan.text, b"envelope")
    return hospital


@pytest.fixture(scope="session")
def plan() -> StudyPlan:
    return StudyPlan.from_text(PLAN)


@pytest.fixture(scope="session")
def offered(tmp_path_factory: pytest.TempPathFactory, plan: StudyPlan) -> Hospital:
    """A hospital that was offered the plan; copied before use."""
    return make_hospital(tmp_path_factory.mktemp("offered"), plan)


@pytest.fixture(scope="session")
def approved(tmp_path_factory: pytest.TempPathFactory, offered: Hospital) -> Hospital:
    """A hospital that approved the plan; every other coin fell heads."""
    hospital = _copied(offered, tmp_path_factory.mktemp("approved"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest.sampling, "flip", lambda n: [i % 2 == 0 for i in range(n)])
        approve(hospital.site, "trunks")
    return hospital


@pytest.fixture
def undecided(offered: Hospital, tmp_path: Path) -> Hospital:
    return _copied(offered, tmp_path)


@pytest.fixture
def hospital(approved: Hospital, tmp_path: Path) -> Hospital:
    return _copied(approved, tmp_path)


@pytest.fixture
def small_hospital(tmp_path: Path) -> Callable[..., Hospital]:
    """A hospital with its own plan text or limits."""
    return lambda text=PLAN, **limits: make_hospital(tmp_path, StudyPlan.from_text(text), **limits)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A hospital of 40 patients that approved two evaluations; every other coin fell heads."""
    text = PLAN.replace(b"shape = [8, 8, 8]", b"shape = [16, 16, 16]")
    text = text.replace(b"[privacy]", b"[privacy]\nevaluations = 2")
    folder = tmp_path_factory.mktemp("many")
    hospital = make_hospital(folder, StudyPlan.from_text(text), patients=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest.sampling, "flip", lambda n: [i % 2 == 0 for i in range(n)])
        approve(hospital.site, "trunks")
    return hospital


@pytest.fixture
def large_hospital(many: Hospital, tmp_path: Path) -> Hospital:
    return _copied(many, tmp_path)


def _copied(hospital: Hospital, folder: Path) -> Hospital:
    shutil.copytree(hospital.folder, folder, dirs_exist_ok=True)
    settings = folder / "site" / "worker" / "site.toml"
    text = settings.read_text().replace(str(hospital.cohort), str(folder / "cohort"))
    settings.write_text(text)
    return Hospital(folder, hospital.coordinator, hospital.plan)


@pytest.fixture
def plan_text() -> bytes:
    return PLAN
