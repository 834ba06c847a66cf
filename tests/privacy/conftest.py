"""An audited study of three hospitals, small enough to be built in each test."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from voxfed.privacy.accounting import Event
from voxfed.privacy.audit.answer import Answer
from voxfed.privacy.audit.binning import quantile_bins
from voxfed.privacy.audit.membership import EDGES, RECONSTRUCTION, histogram
from voxfed.privacy.audit.page import write_page
from voxfed.privacy.audit.report import AuditReport, build_report
from voxfed.privacy.audit.scores.score import BLIND
from voxfed.privacy.bundle import build, bundle_digest, read_report
from voxfed.privacy.decision import sign_approval, sign_rejection, warnings_of
from voxfed.privacy.ledger import Ledger, RoundKey
from voxfed.privacy.model_card import model_card
from voxfed.privacy.quality import Quality
from voxfed.study.figures import FigureRow, Intensities
from voxfed.study.identity import SigningKey
from voxfed.study.messages import (
    Audited,
    AuditRequest,
    Evaluated,
    ScoreCounts,
    encode,
    request_digest,
)
from voxfed.study.plan import StudyPlan
from voxfed.study.record import RoundRecord

WEIGHTS = b"the weights, as they were audited"
SITES = ("harbour", "north", "valley")
PLAN = """
name = "trunks"
family = "vae"
rounds = 8
local_steps = 3
expected_patients = 8
[volumes]
shape = [{side}, {side}, {side}]
spacing = [6.0, 6.0, 6.0]
[optimiser]
learning_rate = 3e-4
[privacy]
enabled = {enabled}
epsilon = 8.0
delta = 1e-3
audit_counts = "{counts}"
[release]
officers = {officers}
auc_half_width = {half_width}
allow_without_privacy = {allowed}
{more}
"""


def make_plan(
    *,
    enabled: str = "true",
    counts: str = "exact",
    officers: int = 1,
    half_width: float = 0.08,
    allowed: str = "false",
    more: str = "",
    side: int = 24,
) -> StudyPlan:
    text = PLAN.format(
        enabled=enabled,
        counts=counts,
        officers=officers,
        half_width=half_width,
        allowed=allowed,
        more=more,
        side=side,
    )
    return StudyPlan.from_text(text.encode())


def make_copies(
    members: int, non_members: int, compared: int = 10, samples: int = 600
) -> dict[str, dict[str, float]]:
    counts = {
        "samples": float(samples),
        "compared": float(compared),
        "memorised_members": float(members),
        "memorised_non_members": float(non_members),
        "strict_memorised_members": 0.0,
        "strict_memorised_non_members": 0.0,
    }
    return {"voxels": counts}


def make_counts(members: Sequence[float], others: Sequence[float]) -> ScoreCounts:
    edges = quantile_bins(members, others) if members else (0.0, 1.0)
    return ScoreCounts(
        edges=edges, members=histogram(members, edges), non_members=histogram(others, edges)
    )


def make_figure(value: float, n: int = 20) -> FigureRow:
    low, high = value - 0.5, value + 0.5
    return FigureRow(name="KID", value=value, low=low, high=high, n=n, real=0.25, better="lower")


@dataclass
class Scene:
    """Keys of everybody, and how the sites answer.

    Attributes:
        patients: members and non-members at each site.
        leak: how many standard deviations members' scores lie above those of non-members.
        blind: as `leak`, of the blind baseline; None where it was not run.
    """

    folder: Path
    patients: int = 10
    leak: float = 0.0
    epsilon: float | None = 7.5
    copies: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: make_copies(1, 1))
    blind: float | None = 0.0
    absent: Mapping[str, float | None] = field(default_factory=dict)
    pseudo: tuple[str, ...] = ()
    weights: bytes = WEIGHTS

    def __post_init__(self) -> None:
        names = ("coordinator", "officer", "second", *SITES)
        self.keys = {name: self._key(name) for name in names}

    def _key(self, name: str) -> SigningKey:
        path = self.folder / f"{name}.pem"
        return SigningKey.read(path) if path.exists() else SigningKey.create(path)

    @property
    def site_keys(self) -> dict[str, object]:
        """The sites' public keys."""
        return {site: self.keys[site].public for site in SITES}

    def bundle(
        self,
        plan: StudyPlan,
        *,
        report: AuditReport | None = None,
        evaluation: bytes | None = None,
    ) -> Path:
        """A bundle of the audited weights, signed by the coordinator."""
        report = report or self.report(plan)
        return build(
            self.folder.parent / "releases" / "1",
            weights=self.weights,
            model={"family": "vae", "plan": plan.text.decode()},
            report=report,
            html=write_page(self.report(plan)),
            card=model_card(plan, report, Quality.from_text(evaluation) if evaluation else None),
            evaluation=evaluation,
            key=self.keys["coordinator"],
            extra={"voxfed": "0.1.0"},
        )

    def evaluation(self, **changes: object) -> bytes:
        """A report of `voxfed evaluate`, as far as a release reads it, with some facts changed.

        KID is 1 at harbour and 2 at north, of 20 patients each; valley refused.
        """
        digest = hashlib.sha256(self.weights).hexdigest()
        sites, rows = [], []
        for place, site in enumerate(SITES[:2]):
            rows.append(make_figure(1.0 + place))
            reply = Evaluated(
                study="trunks",
                request_digest=digest,
                weights_digest=digest,
                extractor_digest=digest,
                samples=12,
                figures=(rows[-1],),
                intensities=Intensities(samples=(1.0,), held_out=(1.0,)),
                seconds=0.5,
                flops=10**9,
                memory=None,
                pseudo_patients=False,
            )
            signed = base64.b64encode(encode(reply, self.keys[site])).decode()
            sites.append({"site": site, "figures": [rows[-1].model_dump()], "reply": signed})
        facts = {
            "created": "2026-01-02T03:04:05+00:00",
            "weights_digest": digest,
            "extractor": "contrastive encoder, trained on phantoms",
            "sites": sites,
            "refused": {"valley": "not-approved"},
            "together": [make_figure(1.5, n=40).model_dump()],
            "worst": {"KID": "north"},
            "study": "trunks",
        }
        return json.dumps(facts | changes).encode()

    def decide(self, bundle: Path, decision: str = "approve", officer: str = "officer") -> bytes:
        """An officer's signed decision on a bundle."""
        digest, key = bundle_digest(bundle), self.keys[officer]
        if decision == "reject":
            return sign_rejection(digest, officer=officer, reason="seen and refused", key=key)
        findings = read_report(bundle).findings
        reasons = dict.fromkeys(warnings_of(findings), "seen and accepted")
        return sign_approval(digest, findings, officer=officer, reasons=reasons, key=key)

    @property
    def cards(self) -> dict[str, object]:
        """What `verify` is given: every public key."""
        officers = {name: self.keys[name].public for name in ("officer", "second")}
        coordinator = self.keys["coordinator"].public
        return {"coordinator": coordinator, "officers": officers, "sites": self.site_keys}

    def lineage(self, plan: StudyPlan) -> str:
        """The coordinator's record of the last round, in which every site took part."""
        record = RoundRecord(
            study=plan.name,
            plan_digest=plan.digest,
            branch=0,
            stage="autoencoder",
            round=plan.rounds,
            weights_digest=hashlib.sha256(self.weights).hexdigest(),
            replies=tuple(sorted(hashlib.sha256(site.encode()).hexdigest() for site in SITES)),
            previous="0" * 64,
        )
        return record.sign(self.keys["coordinator"]).decode()

    def answer(
        self, site: str, plan: StudyPlan, *, searched: int = 600, **changes: object
    ) -> Answer:
        """A site's answer, with some of its reply changed."""
        request = encode(
            AuditRequest(
                site=site,
                study=plan.name,
                plan_digest=plan.digest,
                lineage=self.lineage(plan),
                weights_digest=hashlib.sha256(self.weights).hexdigest(),
                weights_size=len(self.weights),
                samples_digest=hashlib.sha256(b"").hexdigest(),
                samples_size=0,
                extractor_digest=hashlib.sha256(b"").hexdigest(),
                samples=searched,
            ),
            self.keys["coordinator"],
            self.weights,
        )
        exact = plan.privacy.audit_counts == "exact"
        facts = {
            "study": plan.name,
            "request_digest": request_digest(request),
            "weights_digest": hashlib.sha256(self.weights).hexdigest(),
            "epsilon": self.epsilon,
            "counts": plan.privacy.audit_counts,
            "scores": self.scores(site) if exact else self.noised(site),
            "copies": dict(self.copies) if exact else {},
            "trained": 20,
            "checked": 6,
            "declared_patients": 20,
            "defaced": "not-head",
            "pseudo_patients": site in self.pseudo,
        }
        reply = encode(Audited(**{**facts, **changes}), self.keys[site])
        return Answer(site, self.keys[site].public, request, reply)

    def scores(self, site: str) -> dict[str, ScoreCounts]:
        """The exact histograms of an attack and of the blind baseline."""
        generator = np.random.default_rng(SITES.index(site))
        found = {}
        for name, leak in ((RECONSTRUCTION, self.leak), (BLIND, self.blind)):
            if leak is not None:
                members = generator.normal(leak, size=self.patients).tolist()
                others = generator.normal(size=self.patients).tolist()
                found[name] = make_counts(members, others)
        return found

    def noised(self, site: str) -> dict[str, ScoreCounts]:
        """The histograms of errors on fixed bins, as they are before noise."""
        generator = np.random.default_rng(SITES.index(site))
        errors = 0.1 * np.exp(0.2 * generator.normal(size=(2, self.patients)))
        members, others = (histogram(row, EDGES) for row in errors)
        return {RECONSTRUCTION: ScoreCounts(edges=EDGES, members=members, non_members=others)}

    def report(self, plan: StudyPlan) -> AuditReport:
        """The report on the answers of all sites that are not absent."""
        return build_report(
            plan,
            [self.answer(site, plan) for site in SITES if site not in self.absent],
            weights_digest=hashlib.sha256(self.weights).hexdigest(),
            absent=self.absent,
            versions={"voxfed": "0.1.0"},
        )


def make_key(number: int, study: str = "knee", branch: str = "main") -> RoundKey:
    return RoundKey(study, branch, "autoencoder", number)


@pytest.fixture
def key() -> Callable[..., RoundKey]:
    return make_key


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger with a lifetime epsilon of 10."""
    return Ledger.create(tmp_path / "ledger.sqlite", lifetime_epsilon=10.0, delta=1e-5)


@pytest.fixture
def busy(ledger: Ledger) -> Ledger:
    """A ledger with a study of eight rounds, three of them charged: four rows."""
    training = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]
    ledger.reserve("knee", "a" * 64, training * 8, delta=1e-5)
    for number in range(3):
        ledger.commit(make_key(number), f"request-{number}", f"reply-{number}", training)
    return ledger


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Scene]:
    folder = tmp_path / "keys"
    folder.mkdir()
    return lambda **facts: Scene(folder, **facts)


@pytest.fixture
def plan() -> Callable[..., StudyPlan]:
    return make_plan


@pytest.fixture
def copies() -> Callable[..., dict[str, dict[str, float]]]:
    return make_copies
