"""Round 0: the weights that a study starts from, signed like every round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..study.errors import PlanError, VerificationError, WireError
from ..study.identity import sign_envelope
from ..study.journal import GENESIS
from ..study.messages import hash_of
from ..study.plan import StartFile, StudyPlan
from ..study.record import RoundRecord
from ..study.schedule import Schedule
from .coordinator import Coordinator
from .store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.base import Family

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
        PlanError: the public weights are not there, not the ones named, or do not fit the family;
            or a stage would learn on random weights that stay, its own or another's, or has
            nothing to learn.
    """
    from ..models.registry import build, schedule_of
    from ..models.state import tensors_of, to_bytes
    from ..models.trained import add_adapters, freeze_the_rest, stage_parameters

    schedule = schedule_of(plan)
    left_random(plan, schedule)
    _refuse_parts_of_random_stages(plan, schedule)
    family = build(plan)
    load_public(family, plan, store.folder)
    if plan.trained == "adapters":
        add_adapters(family)
    _refuse_idle_turns(family, schedule, set(freeze_the_rest(family, plan.trained)))
    trained = {stage: stage_parameters(family, stage) for stage in family.stages}
    return to_bytes(tensors_of(family)), trained


def load_public(family: Family, plan: StudyPlan, folder: Path) -> None:
    """Copy the public weights that the plan names into the family, whole or stage by stage.

    The weights of a released model are such a file, for the family and for each of its stages.

    Raises:
        PlanError: a file is not there, not the one named, or does not fit; or the family has no
            such stage.
    """
    from ..models.state import load_into, load_stage

    if plan.start is None:
        return
    if plan.start.whole is not None:
        with _fitting("start.weights"):
            load_into(family, _public(plan.start.whole, "start.weights", folder))
    for stage, file in plan.start.stages.items():
        key = f"start.stages.{stage}"
        if stage not in family.stages:
            expected = " or ".join(family.stages)
            raise PlanError(f"{key}: the family has no such stage", expected=expected)
        with _fitting(key):
            load_stage(family, stage, _public(file, f"{key}.weights", folder))


def left_random(plan: StudyPlan, schedule: Schedule) -> list[str]:
    """Return the stages that keep their random first weights to the end.

    Raises:
        PlanError: a later stage would learn on one of them.
    """
    found: list[str] = []
    for stage in schedule.stages:
        if stage.rounds and found:
            raise PlanError(
                f"stages.{found[0]}: {stage.name} would learn on random weights",
                got="0 rounds and no public weights",
                expected=f"rounds, or a [start.stages.{found[0]}] table",
                hint=f"name public weights for {found[0]}, or train it",
            )
        if not stage.rounds and not (plan.start and plan.start.covers(stage.name)):
            found.append(stage.name)
    return found


def _refuse_parts_of_random_stages(plan: StudyPlan, schedule: Schedule) -> None:
    """Refuse attention or adapters alone on a stage that does not start from public weights.

    The rest of it would stay random; a frozen last layer of zeros even lets no gradient through.
    """
    if plan.trained not in ("attention", "adapters"):
        return
    for stage in (x.name for x in schedule.stages if x.rounds):
        if not (plan.start and plan.start.covers(stage)):
            raise PlanError(
                f"trained: {stage} would learn beside frozen random weights",
                got=f'"{plan.trained}" without public weights',
                expected=f"a [start] table, or [start.stages.{stage}]",
                hint=f'name public weights for {stage}, or write trained = "all"',
            )


def _refuse_idle_turns(family: Family, schedule: Schedule, learning: set[str]) -> None:
    """Refuse a trained stage of which a turn has nothing that learns, e.g. no attention."""
    for stage in (x for x in schedule.stages if x.rounds):
        for step in family.steps(stage.name):
            if not learning & set(step.parameters):
                raise PlanError(
                    f"trained: the turn {step.name} of the stage {stage.name} has none of that",
                    expected=f"another part, or 0 rounds of {stage.name}",
                    hint=f"freeze the stage: {stage.name} = 0 under [stages], with public weights",
                )


def _public(file: StartFile, key: str, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a file after checking its digest."""
    from ..models.state import from_bytes

    path = folder / file.weights
    content = path.read_bytes() if path.is_file() else b""
    if hash_of(content) != file.sha256:
        raise PlanError(
            f"{key}: {file.weights} is not the file that the plan names",
            got=f"sha256 {hash_of(content)[:12]}" if content else "no such file",
            expected=f"sha256 {file.sha256[:12]} in {folder}",
            hint="copy it there, e.g. with `voxfed study new NAME --plan FILE --weights FILE`",
        )
    return from_bytes(content)


@contextmanager
def _fitting(key: str) -> Iterator[None]:
    """Turn what is wrong with tensors into what is wrong with the plan."""
    try:
        yield
    except WireError as fault:
        raise PlanError(
            f"{key}: the tensors do not fit: {fault.what}",
            got=fault.got,
            expected=fault.expected,
            hint="start from a file of the same settings and shape, trained without adapters",
        ) from None
