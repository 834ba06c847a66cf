"""The round loop: offer the plan, ask the sites, add up their updates, write each round down."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..study import messages
from ..study.errors import Refusal, UsageError, VerificationError, WireError
from ..study.identity import PublicKey
from ..study.messages import RefusalCode, hash_of
from ..study.record import RoundRecord
from ..study.schedule import Schedule
from .aggregation import RunningMean
from .coordinator import Coordinator
from .exchange import Exchange
from .store import Round, Store

PAUSE = 1.0
"""Seconds between two questions to sites that did not answer, or whose operator has not decided."""

WAITING = frozenset({RefusalCode.PENDING, RefusalCode.AUDIT_NOT_APPROVED})
Request = Callable[[str], messages.Request]


@dataclass(frozen=True)
class Charged:
    """A site's charged reply: its header, its payload, and the very bytes that it committed."""

    header: Any
    payload: bytes
    committed: bytes


class Rounds:
    """Runs one study over an exchange; every step can be repeated after a crash.

    Args:
        coordinator: the folder with keys and enrolled sites.
        exchange: how messages reach the sites.
        store: the folder of the study.
    """

    def __init__(self, coordinator: Coordinator, exchange: Exchange, store: Store) -> None:
        self._coordinator, self._exchange, self._store = coordinator, exchange, store
        self._plan = store.plan
        self._sites = coordinator.sites()
        if not store.rounds():
            raise UsageError(f"study {self._plan.name} has not started", hint="voxfed study run")
        start = store.rounds()[0].facts
        self._trained: dict[str, list[str]] = start["trained"]
        self._schedule = Schedule.read(start["schedule"])
        self._lost: set[str] = set()

    def train(self) -> None:
        """Offer the plan and run the rounds that are not yet on disk.

        Raises:
            Refusal: fewer sites than the quorum approved the plan or answered a round.
        """
        decisions = self._offer()
        taking_part = {
            site: int(facts["declared_patients"])
            for site, facts in decisions.items()
            if facts["decision"] == "approved"
        }
        last = self._store.latest(self._coordinator.key.public)
        first = last.record(self._coordinator.key.public).round + 1
        for number in range(first, self._schedule.rounds + 1):
            stage = self._schedule.stage_of(number).name
            last = self._round(number, stage, last, taking_part)
        self._show("finished", round=self._schedule.rounds)

    def audit(self, deadline: float, samples: int) -> None:
        """Ask every site that takes part to audit the last weights, and keep the signed replies.

        Raises:
            Refusal: no site answered before the deadline.
        """
        from ..privacy.audit.answer import without_payload

        last = self._store.latest(self._coordinator.key.public)
        weights, lineage = last.weights, last.envelope.decode()
        sites = [
            site
            for site, facts in self._store.decisions().items()
            if facts["decision"] == "approved"
        ]

        def request(site: str) -> messages.Request:
            return messages.AuditRequest(
                site=site,
                study=self._plan.name,
                plan_digest=self._plan.digest,
                lineage=lineage,
                samples=samples,
                echo=self._coordinator.head(site),
            )

        answered: dict[str, bytes] = {}
        spent: dict[str, float | None] = {}
        refused: dict[str, str] = {}
        self._show("audit", waiting=sites)
        for site, reply in self._ask(sites, request, weights, deadline, refused):
            opened_reply = self._receipt(site, reply, messages.Audited)
            if opened_reply is None:
                refused[site] = "unreadable"
                continue
            answered[site] = opened_reply.committed
            spent[site] = opened_reply.header.epsilon
            self._show("audit", waiting=[s for s in sites if s not in answered])
        if not answered:
            raise Refusal(
                "no site answered the audit", got=refused or "silence", hint="see server status"
            )
        # Signatures are deterministic, and the digest of a request leaves out the echo.
        requests = {s: without_payload(self._signed(request(s), weights)) for s in answered}
        facts = {"weights": hash_of(weights), "refused": refused, "epsilon": spent}
        folder = self._store.keep_audit(requests, answered, facts)
        self._coordinator.journal.append(
            "audited", study=self._plan.name, weights=hash_of(weights), sites=sorted(answered)
        )
        self._show("audited", folder=str(folder), refused=refused)

    def _offer(self) -> dict[str, dict[str, Any]]:
        """Offer the plan to every enrolled site until all decided or the deadline passes."""
        plan, decisions = self._plan, self._store.decisions()
        ends = time.monotonic() + plan.aggregation.approval_deadline

        def request(site: str) -> messages.Request:
            return messages.OfferRequest(site=site, study=plan.name, plan_digest=plan.digest)

        while time.monotonic() < ends:
            open_sites = [
                s
                for s in self._sites
                if decisions.get(s, {}).get("decision", "pending") == "pending"
            ]
            if not open_sites:
                break
            self._show("approval", decisions=decisions, waiting=open_sites)
            left = min(60.0, ends - time.monotonic())
            requests = ((s, self._signed(request(s), plan.text)) for s in open_sites)
            for site, reply in self._exchange.ask(requests, deadline=left):
                decision = self._opened(site, reply, messages.Decision)
                if decision is not None and decision.plan_digest == plan.digest:
                    decisions[site] = decision.model_dump(mode="json")
            self._store.keep_decisions(decisions)
            if len(self._store.rounds()) > 1:
                break  # a study that goes on does not wait for who has not decided yet
            time.sleep(PAUSE)
        approved = [s for s, facts in decisions.items() if facts["decision"] == "approved"]
        if len(approved) < plan.aggregation.quorum:
            answers = {s: facts["decision"] for s, facts in decisions.items()} or "no answer"
            raise Refusal(
                "too few sites approved the plan",
                got=f"{len(approved)}: {answers}",
                expected=f"{plan.aggregation.quorum} or more",
                hint="ask the operators to run `voxfed site approve`, then run the study again",
            )
        return decisions

    def _round(self, number: int, stage: str, last: Round, sites: Mapping[str, int]) -> Round:
        """Run one round over the sites that take part, and write it down."""
        began = time.monotonic()
        weights = last.weights
        mean = RunningMean(weights, self._trained[stage], self._plan.aggregation.update_norm)
        self._show("training", round=number, waiting=sorted(sites))

        def request(site: str) -> messages.Request:
            return messages.TrainRequest(
                site=site,
                study=self._plan.name,
                plan_digest=self._plan.digest,
                stage=stage,
                round=number,
                echo=self._coordinator.head(site),
            )

        asked_digest = {
            site: messages.header_digest(messages.bound(request(site), weights)) for site in sites
        }
        replies: dict[str, str] = {}
        facts: dict[str, Any] = {"epsilon": {}, "loss": {}, "norm": {}}
        refused: dict[str, str] = {}
        deadline = self._plan.aggregation.deadline
        for site, message in self._ask(sites, request, weights, deadline, refused, self._lost):
            opened = self._receipt(site, message, messages.Update)
            if opened is None:
                refused[site] = "unreadable"
                continue
            update = opened.header
            if update.request_digest != asked_digest[site]:
                refused[site] = "another-request"
                continue
            try:
                facts["norm"][site] = mean.add(opened.payload, sites[site])
            except (WireError, VerificationError) as fault:
                refused[site] = fault.message
                continue
            replies[site] = hash_of(opened.committed)
            facts["epsilon"][site] = update.epsilon
            facts["loss"][site] = update.metrics.get("loss")
            waiting = sorted(set(sites) - set(replies) - set(refused))
            self._show("training", round=number, waiting=waiting)
        self._lost = set(sites) - set(replies)
        if len(replies) < self._plan.aggregation.quorum:
            silent = sorted(self._lost - set(refused))
            raise Refusal(
                f"round {number} has too few sites",
                got=f"{len(replies)} of {len(sites)}, refused {refused or 'none'}, silent {silent}",
                expected=f"{self._plan.aggregation.quorum} or more",
                hint="nothing is lost: mend the sites, then run the study again",
            )
        facts |= {"refused": refused, "seconds": round(time.monotonic() - began, 2)}
        return self._keep(number, stage, last, mean.apply(), replies, facts)

    def _keep(
        self,
        number: int,
        stage: str,
        last: Round,
        weights: bytes,
        replies: Mapping[str, str],
        facts: dict[str, Any],
    ) -> Round:
        record = RoundRecord(
            study=self._plan.name,
            plan_digest=self._plan.digest,
            branch=0,
            stage=stage,
            round=number,
            weights_digest=hash_of(weights),
            replies=tuple(sorted(replies.values())),
            previous=hash_of(last.envelope),
        )
        kept = self._store.keep(number, weights, record.sign(self._coordinator.key), facts)
        self._coordinator.journal.append(
            "round",
            study=self._plan.name,
            round=number,
            weights=record.weights_digest,
            replies=dict(replies),
            seconds=facts["seconds"],
            refused=facts["refused"],
        )
        return kept

    def _ask(
        self,
        sites: Collection[str],
        request: Request,
        payload: bytes,
        deadline: float,
        refused: dict[str, str],
        lost: Collection[str] = (),
    ) -> Iterator[tuple[str, bytes]]:
        """Yield each site's reply once; ask again who is silent or waits for its operator.

        Sites in `lost` missed the round before: they are asked, and waited for only as long again
        as the others took.
        """
        ends = time.monotonic() + deadline
        open_sites = set(sites)
        while open_sites - set(lost) and time.monotonic() < ends:
            asked = ((s, self._signed(request(s), payload)) for s in sorted(open_sites))
            left = ends - time.monotonic()
            for site, reply in self._exchange.ask(asked, deadline=left, optional=lost):
                code = self._refusal(site, reply)
                if code is None:
                    open_sites.discard(site)
                    yield site, reply
                elif code not in WAITING:
                    open_sites.discard(site)
                    refused[site] = code.value
                del reply
            if open_sites:
                time.sleep(PAUSE)

    def _refusal(self, site: str, reply: bytes) -> RefusalCode | None:
        """Return the code of a refusal, or None; a courier's failure is worth another try."""
        if reply[:4] == messages.COURIER_MAGIC:
            return RefusalCode.PENDING
        refusal = self._opened(site, reply, messages.Refused)
        return refusal.code if refusal is not None else None

    def _receipt(self, site: str, reply: bytes, kind: type[Any]) -> Charged | None:
        """Open a receipt and the committed reply in it; keep the ledger's head for the echo."""
        key = self._sites[site].key
        try:
            receipt, committed = messages.decode(reply, key)
            if not isinstance(receipt, messages.Receipt):
                return None
            header, payload = messages.decode(committed, key)
        except (WireError, VerificationError) as fault:
            self._coordinator.journal.append("unreadable", site=site, error=fault.message)
            return None
        if not isinstance(header, kind):
            return None
        self._coordinator.keep_head(site, receipt.head)
        return Charged(header, payload, committed)

    def _opened(self, site: str, reply: bytes, kind: type[Any]) -> Any:
        return opened(reply, self._sites[site].key, kind)

    def _signed(self, header: messages.Request, payload: bytes) -> bytes:
        return messages.encode(header, self._coordinator.key, payload)

    def _show(self, state: str, **facts: Any) -> None:
        self._store.show(state=state, time=time.time(), rounds=self._schedule.rounds, **facts)


def opened(reply: bytes, key: PublicKey, kind: type[Any]) -> Any:
    """Return the header of a reply if it is signed by `key` and of `kind`, or None."""
    try:
        header, _ = messages.decode(reply, key)
    except (WireError, VerificationError):
        return None
    return header if isinstance(header, kind) else None


def describe(coordinator: Coordinator, exchange: Exchange, deadline: float) -> None:
    """Ask every enrolled site what it agreed to say of itself, and keep the answers."""
    sites = coordinator.sites()
    requests = (
        (site, messages.encode(messages.DescribeRequest(site=site), coordinator.key))
        for site in sites
    )
    for site, reply in exchange.ask(requests, deadline=deadline):
        description = opened(reply, sites[site].key, messages.Description)
        if description is not None:
            coordinator.keep_description(site, description)
