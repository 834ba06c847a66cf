"""The worker: the resident process that alone holds scans, keys and budget, and has no network."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..privacy.ledger import RoundKey, require_space
from ..study import messages
from ..study.errors import BudgetExhausted, PlanError, ProcessError, Refusal, VerificationError
from ..study.messages import RefusalCode
from . import permission
from .approval import Approval, check_limits, find, receive
from .outbox import Outbox
from .refusal import Coded, code_of
from .site import Site
from .warm import Warm


class Worker:
    """Answers signed requests, one training, audit or evaluation at a time.

    Whatever arrives, the answer is a signed reply or a code: no text of an error leaves the site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._outbox = Outbox(site.worker / "outbox")
        self._busy = threading.Lock()
        self._warm: dict[str, Warm] = {}

    def answer(self, message: bytes) -> bytes:
        """Return the signed reply to a request of the coordinator; never raises."""
        try:
            reply, payload = self._dispatch(message)
        except Exception as fault:  # any text may name a patient: only a code leaves
            code = code_of(fault)
            with contextlib.suppress(ProcessError):  # a full disk must not hide the code
                self._site.journal.append(
                    "refused", code=code.value, error=str(fault), trace=traceback.format_exc()
                )
            reply, payload = messages.Refused(code=code), b""
        return messages.encode(reply, self._site.key, payload)

    def _dispatch(self, message: bytes) -> tuple[messages.Message, bytes]:
        header, payload = messages.decode(message, self._site.coordinator_key)
        if getattr(header, "site", None) != self._site.settings.name:
            raise Coded(RefusalCode.SIGNATURE, "the request is for another site")
        if isinstance(header, messages.DescribeRequest):
            from .describe import describe

            return describe(self._site), b""
        if isinstance(header, messages.OfferRequest):
            return self._offer(header, payload, message), b""
        digest = messages.request_digest(message)
        with self._busy:
            if isinstance(header, messages.TrainRequest):
                return self._train(header, payload, digest)
            if isinstance(header, messages.AuditRequest):
                return self._audit(header, payload, digest)
            if isinstance(header, messages.EvaluationRequest):
                return self._evaluate(header, payload, digest)
        raise Coded(RefusalCode.GARBLED, f"no such request: {header.kind}")

    def _offer(
        self, header: messages.OfferRequest, payload: bytes, message: bytes
    ) -> messages.Decision:
        if messages.hash_of(payload) != header.plan_digest:
            raise Coded(RefusalCode.SIGNATURE, "the offer's plan is not the one it names")
        approval = receive(self._site, header.study, payload, message)
        return messages.Decision(
            study=header.study,
            plan_digest=header.plan_digest,
            decision=approval.state,
            reason=approval.reason,
            declared_patients=approval.declared,
        )

    def _train(
        self, header: messages.TrainRequest, payload: bytes, digest: str
    ) -> tuple[messages.Message, bytes]:
        """Reserve, train, outbox, charge, reply: in this order (DESIGN section 4)."""
        self._check_echo(header.echo)
        approval = self._approved(header.study, header.plan_digest)
        key = RoundKey(header.study, str(header.branch), header.stage, header.round)
        terms = approval.terms
        if header.stage not in terms.per_round:
            raise PlanError("the family has no such stage", got=header.stage)
        events = terms.per_round[header.stage]
        if not events and (header.branch, header.round) > (0, terms.schedule.rounds):
            # No reservation bounds a study without privacy, so its plan must.
            raise BudgetExhausted(
                "the plan holds no such round", got=header.round, expected=terms.schedule.rounds
            )

        def work() -> tuple[messages.Message, bytes]:
            from ..models.state import from_bytes, to_bytes

            warm = self._prepared(approval)
            warm.trainer.load(from_bytes(payload))
            members, canaries = approval.manifest.members, approval.manifest.canaries.members
            warm.scans.check(members)
            metrics = warm.trainer.metrics(header.stage, warm.scans, members)
            # Canaries come on top: rate and divisor stay those of the declared patients, and two
            # cohorts that differ by a patient hold the same canaries, so nobody's epsilon changes.
            update = warm.trainer.train(header.stage, warm.scans, (*members, *canaries))
            self._site.journal.append("trained", **asdict(key), steps=warm.trainer.notes)
            spent = self._spent_with(header.study, events)
            reply = messages.Update(
                study=header.study,
                branch=header.branch,
                stage=header.stage,
                round=header.round,
                request_digest=digest,
                steps=approval.plan.local_steps,
                epsilon=spent if approval.plan.privacy.enabled else None,
                metrics=metrics,
            )
            return reply, to_bytes(update)

        return self._charged(key, digest, events, work, needed=4 * len(payload))

    def _audit(
        self, header: messages.AuditRequest, payload: bytes, digest: str
    ) -> tuple[messages.Message, bytes]:
        from . import auditing

        self._check_echo(header.echo)
        approval = self._approved(header.study, header.plan_digest)
        weights, drawn, extractor = header.split(payload)
        subject = header.weights_digest
        about = f"weights sha256 {subject[:16]}"
        key = self._permitted("audit", approval, header, weights, subject, about)
        events = approval.terms.per_audit

        def work() -> tuple[messages.Message, bytes]:
            from ..models.state import from_bytes

            warm = self._prepared(approval)
            warm.trainer.load(from_bytes(weights))
            warm.scans.check(approval.manifest.flipped)
            spent = self._spent_with(header.study, events)
            epsilon = spent if approval.plan.privacy.enabled else None
            try:
                reply = auditing.audit(self._site, warm, header, digest, drawn, extractor, epsilon)
            except VerificationError as fault:
                raise Coded(RefusalCode.SAMPLES, fault.message) from None
            return reply, b""

        return self._charged(key, digest, events, work, needed=1 << 20)

    def _evaluate(
        self, header: messages.EvaluationRequest, payload: bytes, digest: str
    ) -> tuple[messages.Message, bytes]:
        """Answer with exact figures: nothing is charged, and the plan's count is the limit."""
        from . import evaluating

        self._check_echo(header.echo)
        approval = self._approved(header.study, header.plan_digest)
        weights, extractor = header.split(payload)
        if not evaluating.enough(approval.manifest):
            raise Coded(RefusalCode.TOO_FEW, "too few patients were held out for any figure")
        about = evaluating.summary(header)
        key = self._permitted("evaluation", approval, header, weights, header.subject, about)

        def work() -> tuple[messages.Message, bytes]:
            from ..models.quality.features import read_extractor
            from ..models.state import from_bytes

            judge = read_extractor(extractor, header.extractor_digest)
            warm = self._prepared(approval)
            warm.trainer.load(from_bytes(weights))
            warm.scans.check(approval.manifest.flipped)
            return evaluating.evaluate(self._site, warm, header, digest, judge), b""

        return self._charged(key, digest, (), work, needed=1 << 20)

    def _permitted(
        self,
        kind: permission.Kind,
        approval: Approval,
        header: messages.AuditRequest | messages.EvaluationRequest,
        weights: bytes,
        subject: str,
        about: str,
    ) -> RoundKey:
        """Return the ledger's key of an audit or evaluation of these weights that was allowed."""
        from .auditing import check_lineage

        try:
            record = check_lineage(self._site, approval, header, weights)
        except VerificationError as fault:
            raise Coded(RefusalCode.LINEAGE, fault.message) from None
        asked = permission.Permission(subject, record.round, 0, about)
        number = permission.number_of(approval, kind, asked)
        if number < 0:
            raise Coded(RefusalCode(f"{kind}s-spent"), f"the study's {kind}s are spent")
        if not number:
            what = f"the operator has not approved this {kind}"
            raise Coded(RefusalCode(f"{kind}-not-approved"), what)
        return RoundKey(header.study, "0", kind, number)

    def _charged(
        self,
        key: RoundKey,
        digest: str,
        events: tuple[Any, ...],
        work: Callable[[], tuple[messages.Message, bytes]],
        *,
        needed: int,
    ) -> tuple[messages.Message, bytes]:
        """Do `work` under the ledger: what leaves was charged, what was charged is kept."""
        ledger = self._site.ledger
        done = ledger.begin(key, digest, events)
        if done is not None:
            try:
                reply = self._outbox.get(key, done.reply_digest)
            except VerificationError as fault:
                raise Coded(RefusalCode.REPLY_LOST, fault.message) from None
        else:
            require_space(self._site.worker, needed)
            header, payload = work()
            reply = messages.encode(header, self._site.key, payload)
            reply_digest = self._outbox.put(key, reply)
            ledger.commit(key, digest, reply_digest, events)
            self._outbox.prune(key)
            self._site.journal.append("charged", **asdict(key), request=digest, reply=reply_digest)
        head = ledger.head()
        return messages.Receipt(head=messages.Head(length=head.length, digest=head.digest)), reply

    def _check_echo(self, echo: messages.Head | None) -> None:
        """Refuse where an old ledger was put back, before asking what that ledger knows."""
        from ..privacy.chain import Head

        head = None if echo is None else Head(echo.length, echo.digest)
        try:
            self._site.ledger.check_echo(head)
        except VerificationError as fault:
            raise Coded(RefusalCode.ROLLED_BACK, fault.message) from None

    def _approved(self, study: str, plan_digest: str) -> Approval:
        try:
            approval = find(self._site, study)
        except Refusal as fault:
            raise Coded(RefusalCode.NOT_APPROVED, fault.message) from None
        if approval.state != "approved":
            code = RefusalCode(approval.state)
            raise Coded(code, f"study {study} is {approval.state}")
        plan, reserved = approval.plan, self._site.ledger.accounts().get(study)
        approved = {plan.digest, approval.plan_digest, reserved.plan_digest if reserved else ""}
        if approved != {plan_digest}:
            raise Coded(RefusalCode.NOT_APPROVED, f"another plan of study {study} was approved")
        # Read anew: limits that the operator tightened hold for studies that run.
        check_limits(Site(self._site.folder), plan, approval.terms)
        return approval

    def _prepared(self, approval: Approval) -> Warm:
        """Return the study's warm model and scans; the model of another study makes room."""
        from .scans import Scans
        from .training import Trainer, choose_device

        plan = approval.plan
        if plan.digest not in self._warm:
            device = choose_device(self._site.settings.device)
            scans = Scans(
                approval.manifest,
                self._site.cohort,
                self._site.worker / "cache",
                plan.volumes,
                device,
                plan.condition,
            )
            trainer = Trainer(plan, approval.terms, device, self._site.settings.performance)
            self._warm = {plan.digest: Warm(approval, trainer, scans)}
        return self._warm[plan.digest]

    def _spent_with(self, study: str, events: tuple[Any, ...]) -> float:
        from ..privacy.accounting import epsilon

        account = self._site.ledger.accounts()[study]
        return epsilon((*account.charged, *events), account.delta)
