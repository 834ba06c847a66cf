"""Round 0: the weights that a study starts from, signed like every round."""

from __future__ import annotations

from ..study.errors import PlanError, VerificationError
from ..study.identity import sign_envelope
from ..study.journal import GENESIS
from ..study.messages import hash_of
from ..study.plan import StudyPlan
from ..study.record import RoundRecord
from .coordinator import Coordinator
from .store import Store

PLAN_TYPE = "application/vnd.voxfed.plan.v1+toml"


def ensure_started(coordinator: Coordinator, store: Store) -> None:
    """Sign the plan and write round 0 if it is not there.

    Raises:
        PlanError: the plan is wrong, or its public weights are not the ones it names.
        VerificationError: the plan was edited after the study started.
    """
    from ..models.registry import check

    plan = store.plan
    check(plan)
    signature = store.folder / "plan.sig"
    rounds = store.rounds()
    if rounds:
        record = RoundRecord.open(rounds[0].envelope, coordinator.key.public)
        if record.plan_digest != plan.digest:
            raise VerificationError(
                "plan.toml was edited after the study started",
                got=plan.digest[:12],
                expected=record.plan_digest[:12],
                hint="restore it, or make a new study with `voxfed study new`",
            )
        return
    from ..models.registry import schedule_of
    from ..study.files import write

    schedule = schedule_of(plan)
    weights, trained = first_weights(plan, store)
    write(signature, sign_envelope(plan.text, coordinator.key, PLAN_TYPE))
    record = RoundRecord(
        study=plan.name,
        plan_digest=plan.digest,
        branch=0,
        stage=schedule.stages[0].name,
        round=0,
        weights_digest=hash_of(weights),
        replies=(),
        previous=GENESIS,
    )
    facts = {"seconds": 0.0, "trained": trained, "schedule": schedule.written}
    store.keep(0, weights, record.sign(coordinator.key), facts)
    coordinator.journal.append("study started", study=plan.name, plan=plan.digest)


def first_weights(plan: StudyPlan, store: Store) -> tuple[bytes, dict[str, list[str]]]:
    """Return the first tensors as safetensors, and what each stage trains.

    Raises:
        PlanError: the public weights are not there, not the ones named, or do not fit the family.
    """
    from ..models.registry import build
    from ..models.state import from_bytes, load_into, tensors_of, to_bytes
    from ..models.trained import add_adapters, freeze_the_rest, stage_parameters
    from ..study.errors import WireError

    family = build(plan)
    if plan.start is not None:
        path = store.folder / plan.start.weights
        content = path.read_bytes() if path.is_file() else b""
        if hash_of(content) != plan.start.sha256:
            raise PlanError(
                f"start.weights: {plan.start.weights} is not the file that the plan names",
                got=f"sha256 {hash_of(content)[:12]}" if content else "no such file",
                expected=f"sha256 {plan.start.sha256[:12]} in {store.folder}",
            )
        try:
            load_into(family, from_bytes(content))
        except WireError as fault:
            raise PlanError(f"start.weights do not fit the family: {fault.message}") from None
    if plan.trained == "adapters":
        add_adapters(family)
    freeze_the_rest(family, plan.trained)
    trained = {stage: stage_parameters(family, stage) for stage in family.stages}
    return to_bytes(tensors_of(family)), trained
