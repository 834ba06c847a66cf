"""The study files of the demonstration: a private study, and one that is trained too long."""

from __future__ import annotations

from ..study.messages import hash_of
from .cohorts import SHAPE, Cohorts

PRIVATE, OPEN, OVERTRAINED = "private", "open", "overtrained"
BASE = "base.safetensors"
FAMILY = "vae"
"""Whose settings, clip norm and steps were tried out for it."""
EPSILON = 8.0

HEAD = """\
name = "{name}"
family = "{family}"
rounds = {rounds}
local_steps = {local_steps}
expected_patients = {expected_patients}
trained = "{trained}"
audit_fraction = {audit_fraction}

[settings]
{settings}
[volumes]
shape = [{shape}]
{volumes}
[optimiser]
name = "adam"
learning_rate = {learning_rate}

[privacy]
enabled = {enabled}
epsilon = {epsilon}
delta = {delta}
clip_norm = {clip_norm}
volumes_per_patient = 2
noise_multiplicity = 2
audit_counts = "exact"

[aggregation]
quorum = 3
deadline = 240.0
approval_deadline = 120.0
"""
START = """
[start]
weights = "{weights}"
sha256 = "{sha256}"
"""

SETTINGS = """\
patch = 4
channels = [16]
groups = 4
code = 32
latent_channels = 2
kl_weight = {kl_weight}
"""


def private_plan(cohorts: Cohorts, family: str, base: bytes) -> bytes:
    """Return the study file of the main study, which starts from the public base.

    Only normalisation and biases are trained: the noise grows with the root of their number.
    """
    ct = "window" in cohorts.volumes
    return _plan(
        cohorts,
        PRIVATE,
        family,
        base,
        trained="normalisation-and-biases",
        rounds=8,
        local_steps=3,
        expected_patients=9 if ct else 15,
        learning_rate=2e-2 if ct else 5e-3,
        clip_norm=0.2 if ct else 0.1,
    )


def open_plan(cohorts: Cohorts, family: str, base: bytes) -> bytes:
    """Return the study file of the main study without privacy, which may train every weight."""
    return _plan(
        cohorts,
        OPEN,
        family,
        base,
        enabled="false",
        rounds=8,
        local_steps=80,
        expected_patients=8,
        learning_rate=3e-3,
    )


def overtrained_plan(cohorts: Cohorts, family: str) -> bytes:
    """Return the study file of a small model that is trained too long, without privacy."""
    return _plan(
        cohorts,
        OVERTRAINED,
        family,
        None,
        enabled="false",
        rounds=2,
        local_steps=300,
        expected_patients=8,
        learning_rate=5e-3,
        audit_fraction=1.0,
        kl_weight=0.01,
    )


def _plan(
    cohorts: Cohorts,
    name: str,
    family: str,
    base: bytes | None,
    *,
    rounds: int,
    local_steps: int,
    expected_patients: int,
    learning_rate: float,
    enabled: str = "true",
    trained: str = "all",
    clip_norm: float = 0.1,
    audit_fraction: float = 0.5,
    kl_weight: float = 0.2,
) -> bytes:
    text = HEAD.format(
        name=name,
        family=family,
        rounds=rounds,
        local_steps=local_steps,
        expected_patients=expected_patients,
        trained=trained,
        audit_fraction=audit_fraction,
        settings=SETTINGS.format(kl_weight=kl_weight),
        shape=", ".join(map(str, SHAPE)),
        volumes=cohorts.volumes,
        learning_rate=learning_rate,
        enabled=enabled,
        epsilon=EPSILON,
        delta=f"{1 / (10 * cohorts.patients):.3g}",
        clip_norm=clip_norm,
    )
    if base is not None:
        text += START.format(weights=BASE, sha256=hash_of(base))
    return text.encode()
