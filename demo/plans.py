"""The study files of the demonstration: a private study, and one that is trained too long."""

from __future__ import annotations

from ..study.messages import hash_of
from .cohorts import SHAPE, Cohorts

PRIVATE, OVERTRAINED = "private", "overtrained"
BASE = "base.safetensors"
EPSILON = 8.0

HEAD = """\
name = "{name}"
family = "{family}"
rounds = {rounds}
local_steps = {local_steps}
expected_patients = {expected_patients}
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
channels = [8, 16, 32]
latent_channels = 4
groups = 8
"""
OVERTRAINED_SETTINGS = SETTINGS


def private_plan(cohorts: Cohorts, family: str, base: bytes, *, private: bool) -> bytes:
    """Return the study file of the main study, which starts from the public base."""
    delta = 1 / (10 * cohorts.patients)
    head = HEAD.format(
        name=PRIVATE if private else "open",
        family=family,
        rounds=8,
        local_steps=3 if private else 12,
        expected_patients=9,
        audit_fraction=0.5,
        settings=SETTINGS,
        shape=", ".join(map(str, SHAPE)),
        volumes=cohorts.volumes,
        learning_rate=3e-4 if private else 1e-3,
        enabled=str(private).lower(),
        epsilon=EPSILON,
        delta=f"{delta:.3g}",
        clip_norm=0.1,
    )
    return (head + START.format(weights=BASE, sha256=hash_of(base))).encode()


def overtrained_plan(cohorts: Cohorts, family: str) -> bytes:
    """Return the study file of a small model that is trained too long, without privacy."""
    return HEAD.format(
        name=OVERTRAINED,
        family=family,
        rounds=2,
        local_steps=150,
        expected_patients=6,
        audit_fraction=1.0,
        settings=OVERTRAINED_SETTINGS,
        shape=", ".join(map(str, SHAPE)),
        volumes=cohorts.volumes,
        learning_rate=2e-3,
        enabled="false",
        epsilon=EPSILON,
        delta="1e-4",
        clip_norm=0.1,
    ).encode()
