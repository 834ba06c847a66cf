"""StudyPlan: what a study file may say, and that its digest is that of its very bytes."""

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError
from voxfed.study.errors import PlanError
from voxfed.study.plan import StudyPlan, safe_name

PLAN = """
name = "trunks"
family = "vae"
rounds = 8
local_steps = 3
expected_patients = 8
[volumes]
shape = [24, 24, 24]
spacing = [6.0, 6.0, 6.0]
[optimiser]
learning_rate = 3e-4
[privacy]
epsilon = 8.0
"""


def test_reads_a_plan() -> None:
    """A short plan is whole: what it leaves out has a stated default, privacy above all."""
    plan = StudyPlan.from_text(PLAN.encode())
    assert (plan.name, plan.rounds, plan.stages) == ("trunks", 8, {})
    assert plan.volumes.shape == (24, 24, 24)
    assert plan.privacy.enabled
    assert plan.privacy.audit_counts == "noised"
    assert plan.privacy.audits == 2
    assert plan.privacy.evaluations == 0
    assert not plan.release.allow_without_privacy


def test_the_digest_is_of_the_bytes() -> None:
    """A comment is part of what an operator approves."""
    text = PLAN.encode()
    plan = StudyPlan.from_text(text)
    assert plan.text == text
    assert plan.digest == hashlib.sha256(text).hexdigest()
    assert StudyPlan.from_text(text + b"# x").digest != plan.digest


def test_a_plan_is_frozen() -> None:
    """Nothing changes a plan after it was read."""
    plan = StudyPlan.from_text(PLAN.encode())
    with pytest.raises(ValidationError):
        plan.rounds = 9  # type: ignore[misc]
    with pytest.raises(ValidationError):
        plan.privacy.epsilon = 80.0  # type: ignore[misc]


def test_every_wrong_key_is_named_at_once() -> None:
    """One run of `study validate` is enough to mend a file."""
    text = PLAN.replace("rounds = 8", "round = 8").replace("epsilon = 8.0", 'epsilon = "8"')
    text = text.replace("[24, 24, 24]", "[24, 24, 4]").replace("3e-4", "0.0")
    with pytest.raises(PlanError) as caught:
        StudyPlan.from_text(text.encode(), file="trunks.toml")
    message = caught.value.message
    assert "5 wrong keys in trunks.toml" in message
    assert "rounds: missing" in message
    assert "round: unknown key (got 8, did you mean rounds?)" in message
    assert "volumes.shape.2" in message
    assert "expected three voxel counts from 8 to 512" in message
    assert 'privacy.epsilon: Input should be a valid number (got "8", expected' in message
    assert "optimiser.learning_rate" in message


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("epsilon = 8.0", "epsilon = 0.0", "privacy.epsilon"),
        ("epsilon = 8.0", "epsilon = inf", "privacy.epsilon"),
        ("epsilon = 8.0", "delta = 0.0", "privacy.delta"),
        ("epsilon = 8.0", "delta = 0.5", "privacy.delta"),
        ("epsilon = 8.0", "clip_norm = -1.0", "privacy.clip_norm"),
        ("epsilon = 8.0", "audit_noise = 0.0", "privacy.audit_noise"),
        ("epsilon = 8.0", "metric_noise = 0.0", "privacy.metric_noise"),
        ("epsilon = 8.0", "enabled = 0", "privacy.enabled"),
        ("epsilon = 8.0", 'audit_counts = "plain"', "privacy.audit_counts"),
        ("epsilon = 8.0", "noise_multiplicity = 2000", "volumes_per_patient x noise_multiplicity"),
        ("epsilon = 8.0", "audits = 11", "privacy.audits"),
        ("epsilon = 8.0", "evaluations = 11", "privacy.evaluations"),
        ("epsilon = 8.0", "evaluations = -1", "privacy.evaluations"),
        ('name = "trunks"', 'name = "../trunks"', "name"),
        ('name = "trunks"', 'name = "Trunks"', "name"),
        ("rounds = 8", "rounds = 0", "rounds"),
        ("rounds = 8", "rounds = 8.5", "rounds"),
        ("local_steps = 3", "local_steps = 1" + "0" * 400, "local_steps"),
        ("rounds = 8", 'rounds = 8\ntrained = "some"', "trained"),
        ("rounds = 8", "rounds = 8\naudit_fraction = 0.0", "audit_fraction"),
        ("[volumes]", "[volumes]\nwindow = [10.0, 10.0]", "volumes.window"),
        ("[volumes]", "[volumes]\npercentiles = [-1.0, 99.0]", "volumes.percentiles"),
        ("spacing = [6.0, 6.0, 6.0]", "spacing = [6.0, 0.0, 6.0]", "volumes.spacing.1"),
        ("[optimiser]", '[start]\nweights = "w"\nsha256 = "x"\n[optimiser]', "start.sha256"),
    ],
)
def test_a_value_out_of_range_is_named(old: str, new: str, key: str) -> None:
    """Nothing outside its stated range reaches the accountant."""
    assert old in PLAN
    with pytest.raises(PlanError, match="1 wrong key in the study file") as caught:
        StudyPlan.from_text(PLAN.replace(old, new).encode())
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "needed"),
    [
        ("[privacy]", '[privacy]\naudit_counts = "noised"', "audit_counts"),
        ("reference_models = 4", "reference_models = 1", "2 or more of them"),
        ("[optimiser]", '[optimiser]\nname = "sgd"', "adam"),
        ("rounds = 8", 'rounds = 8\ntrained = "attention"', "trained"),
        ("[optimiser]", f'[start]\nweights = "w"\nsha256 = "{"a" * 64}"\n[optimiser]', "start"),
    ],
)
def test_reference_models_need_a_plan_that_they_can_follow(old: str, new: str, needed: str) -> None:
    """References that are trained otherwise than the model would make the attack look weak."""
    exact = "" if needed == "audit_counts" else '\naudit_counts = "exact"'
    text = PLAN.replace("[privacy]", f"[privacy]\nreference_models = 4{exact}")
    with pytest.raises(PlanError, match="reference_models needs") as caught:
        StudyPlan.from_text(text.replace(old, new).encode())
    assert needed in caught.value.message
    fits = PLAN.replace("[privacy]", '[privacy]\naudit_counts = "exact"\nreference_models = 4')
    assert StudyPlan.from_text(fits.encode()).privacy.reference_models == 4


def test_a_missing_file(tmp_path: Path) -> None:
    """The path stands in the error."""
    with pytest.raises(PlanError, match=r"absent\.toml cannot be read"):
        StudyPlan.read(tmp_path / "absent.toml")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 41, "a\n", "a b"])
def test_names_that_could_leave_their_folder(name: str) -> None:
    """A name from outside never becomes another path."""
    with pytest.raises(PlanError, match="cannot be used as a name"):
        safe_name(name, what="the study")
    assert safe_name("a-1", what="the study") == "a-1"
