"""The round loop: offer the plan, ask the sites, add up their updates, write each round down."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..study import messages
from ..study.errors import Refusal, UsageError, VerificationError, WireError
from ..study.messages import hash_of
from ..study.record import RoundRecord
from ..study.schedule import Schedule
from .aggregation import RunningMean
from .coordinator import Coordinator
from .exchange import Exchange
from .inquiry import PAUSE, Inquiry
from .store import Round, Store


class Rounds:
    """Runs one study over an exchange; every step can be repeated after a crash.

    Args:
        coordinator: the folder with keys and enrolled sites.
        exchange: how messages reach the sites.
        store: the folder of the study.
    """

    def __init__(self, coordinator: Coordinator, exchange: Exchange, store: Store) -> None:
        self._coordinator, self._store = coordinator, store
        self._inquiry = Inquiry(coordinator, exchange)
        self._plan = store.plan
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

    def _offer(self) -> dict[str, dict[str, Any]]:
        """Offer the plan to every enrolled site until all decided or the deadline passes."""
        plan, decisions = self._plan, self._store.decisions()
        ends = time.monotonic() + plan.aggregation.approval_deadline

        def request(site: str) -> messages.Request:
            return messages.OfferRequest(site=site, study=plan.name, plan_digest=plan.digest)

        while time.monotonic() < ends:
            open_sites = [
                s
                for s in self._inquiry.sites
                if decisions.get(s, {}).get("decision", "pending") == "pending"
            ]
            if not open_sites:
                break
            self._show("approval", decisions=decisions, waiting=open_sites)
            left = min(60.0, ends - time.monotonic())
            for site, reply in self._inquiry.once(open_sites, request, plan.text, left):
                decision = self._inquiry.opened(site, reply, messages.Decision)
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
        for site, message in self._inquiry.ask(
            sites, request, weights, deadline, refused, self._lost
        ):
            opened = self._inquiry.receipt(site, message, messages.Update)
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

    def _show(self, state: str, **facts: Any) -> None:
        self._store.show(state=state, time=time.time(), rounds=self._schedule.rounds, **facts)
