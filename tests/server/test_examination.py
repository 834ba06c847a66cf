"""Examination: two hospitals are asked about trained weights, and what they sign is kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from voxfed.client import manifest
from voxfed.client.approval import approve, find, receive
from voxfed.client.permission import permissions, permit
from voxfed.client.site import Limits, Site, SiteSettings
from voxfed.client.site import create as create_site
from voxfed.client.worker import Worker
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import contrastive
from voxfed.privacy.finding import Verdict
from voxfed.server import exchange, inquiry, rounds
from voxfed.server.coordinator import Coordinator, CoordinatorSettings, create
from voxfed.server.evaluation_page import picture_of, report_evaluation
from voxfed.server.examination import Examination
from voxfed.server.exchange import Exchange
from voxfed.server.release import report_audit
from voxfed.server.rounds import Rounds
from voxfed.server.start import ensure_started
from voxfed.server.store import Store
from voxfed.study.errors import Refusal
from voxfed.study.wire import pack, unpack

PATIENTS = 20
PLAN = b"""
name = "trunks"
family = "vae"
rounds = 1
local_steps = 1
expected_patients = 4
audit_fraction = 1.0
[settings]
channels = [4, 4]
groups = 2
latent_channels = 2
code = 4
[volumes]
shape = [16, 16, 16]
spacing = [9.0, 9.0, 9.0]
[optimiser]
learning_rate = 1e-3
[privacy]
enabled = false
evaluations = 1
"""


class Clock:
    """Time that passes only by waiting, so that no slow machine misses a deadline."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-6)


class Grid:
    """Carries Flower's messages to workers in this process, and their replies back."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self.workers = {site.settings.name: Worker(site) for site in sites}
        self.names = list(self.workers)
        self.replies: dict[str, Message] = {}
        self.numbers = itertools.count()

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(name=n, node_id=i + 1) for i, n in enumerate(self.names)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        name, number = self.names[message.metadata.dst_node_id - 1], f"{next(self.numbers)}"
        reply = self.workers[name].answer(unpack(message.content))
        self.replies[number] = Message(pack(reply), reply_to=message)
        return [number]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop(number) for number in ids]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        for module in (exchange, inquiry, rounds):
            patch.setattr(module, "time", clock)
        # a Message asks whose task it belongs to, which only a running ServerApp knows
        for name in ("_run_id", "_task_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1, raising=False)
        yield


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    """A coordinator with a trained study, and two hospitals; every other coin fell heads."""
    folder = tmp_path_factory.mktemp("federation")
    settings = CoordinatorSettings(name="hub", public_host="localhost", port=9000)
    coordinator = create(folder / "hub", settings)
    store = Store(coordinator.studies / "trunks")
    store.folder.mkdir()
    (store.folder / "plan.toml").write_bytes(PLAN)
    ensure_started(coordinator, store)
    sites = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest.sampling, "flip", lambda n: [i % 2 == 0 for i in range(n)])
        for number, name in enumerate(("north", "harbour")):
            cohort = folder / f"cohort-{name}"
            write_cohort(cohort, PATIENTS, HOSPITALS[number], seed=number)
            made = SiteSettings(
                name=name,
                cohort=str(cohort),
                coordinator="127.0.0.1:1",
                device="cpu",
                limits=Limits(without_privacy=True),
            )
            site = create_site(folder / name, made, coordinator.card, b"certificate")
            place = coordinator.folder / "sites" / name
            place.mkdir()
            card = site.worker / "keys" / "site.card.json"
            (place / "card.json").write_bytes(card.read_bytes())
            receive(site, "trunks", PLAN, b"envelope")
            approve(site, "trunks")
            sites.append(site)
    Rounds(coordinator, Exchange(Grid(sites)), store).train()  # type: ignore[arg-type]
    return sites


def examination(sites: list[Site], deadline: float) -> tuple[Examination, Coordinator, Store]:
    coordinator = Coordinator(sites[0].folder.parent / "hub")
    store = Store(coordinator.studies / "trunks")
    asked = Exchange(Grid(sites))  # type: ignore[arg-type]
    return Examination(coordinator, asked, store, deadline), coordinator, store


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("extractor") / "extractor.safetensors"
    contrastive(Encoder()).save(path)
    return path


def test_an_evaluation_of_two_hospitals(hospitals: list[Site], extractor: Path) -> None:
    """Nobody answers before an operator does; then one report, and no more than the plan has."""
    asking, _, _ = examination(hospitals, deadline=0.5)
    with pytest.raises(Refusal, match="no site answered the evaluation"):
        asking.evaluate(12, extractor)
    for site in hospitals:
        permit(site, find(site, "trunks"), "evaluation")
    asking, coordinator, store = examination(hospitals, deadline=120.0)
    asking.evaluate(12, extractor)
    progress = store.progress()
    assert (progress["state"], progress["refused"]) == ("evaluated", {})
    folder = Path(progress["folder"])
    assert folder.name == permissions(find(hospitals[0], "trunks"), "evaluation")[0].subject
    report = report_evaluation(coordinator, store, folder, extractor)
    assert [site.site for site in report.sites] == ["harbour", "north"]
    assert {row.n for row in report.together} == {20}
    assert report.round == 1
    assert set(report.worst) == set(report.names)
    written = json.loads((folder / "evaluation.json").read_bytes())
    assert written["weights_digest"] == report.weights_digest
    assert (folder / "evaluation.html").read_text().count("data:image/png") == 3
    assert [line["event"] for line in coordinator.journal.entries()][-1] == "evaluated"
    assert store.audits() == []
    with pytest.raises(Refusal, match="no site answered") as caught:
        asking.evaluate(13, extractor)
    assert caught.value.got == {"harbour": "evaluations-spent", "north": "evaluations-spent"}


def test_an_audit_goes_the_same_way(hospitals: list[Site]) -> None:
    """What both share did not change audits; what an audit blocks, no evaluation shows."""
    asking, coordinator, store = examination(hospitals, deadline=0.5)
    with pytest.raises(Refusal, match="no site answered the audit"):
        asking.audit(0, None, None)
    permit(hospitals[0], find(hospitals[0], "trunks"), "audit")
    asking.audit(0, None, None)
    folder = Path(store.progress()["folder"])
    assert folder.name == "001"
    assert [path.name for path in folder.glob("*.reply")] == ["north.reply"]
    last = store.latest(coordinator.key.public)
    picture, withheld = picture_of(store, last)
    assert picture is not None
    assert withheld == ""
    assert report_audit(coordinator, store, folder).verdict is Verdict.BLOCK
    picture, withheld = picture_of(store, last)
    assert picture is None, "samples of weights that an audit blocked are on a page"
    assert "blocked" in withheld
