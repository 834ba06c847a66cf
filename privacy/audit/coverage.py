"""What an audit's words rest on: what epsilon covers, what it does not, and what was not tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...study.plan import StudyPlan


@dataclass(frozen=True)
class Replay:
    """A change under which a model that hands out its patients is caught by the search for copies.

    Attributes:
        change: what is done to each patient's volume before it is handed out.
        strengths: how much; the tests replay each.
        unit: what the strengths are.
    """

    change: str
    strengths: tuple[float | str, ...]
    unit: str


REPLAYS = (
    Replay("noise", (0.05, 0.1, 0.2), "standard deviation, of intensities from -1 to 1"),
    Replay("turned", (2.0, 5.0, 10.0), "degrees, about each axis"),
    Replay("mirrored", ("depth", "height", "width"), "is reversed"),
    Replay("shifted", (2,), "voxels, along all axes at once"),
    Replay("brightness", (0.9, 1.1), "times"),
    Replay("cropped", ("nothing", "another patient"), "around three quarters of each side"),
    Replay("one octant", ("another patient",), "around it"),
)
REPLAYED = (
    "phantoms of 16 voxels a side, 20 who trained and 20 held out, one copy of each who trained"
)
"""What the tests replay; the p-value is judged as the rule on copies judges it."""


def covered(plan: StudyPlan) -> tuple[str, ...]:
    """Returns what the accounted epsilon covers."""
    if not plan.privacy.enabled:
        return ()
    things = ["the weights: every update that left a site carried that site's full noise"]
    if plan.privacy.metric_noise is not None:
        things.append("the mean loss that each site sent, which was clipped and noised")
    if plan.privacy.audit_counts == "noised":
        things.append("the histograms of this audit, which were noised and charged")
    if plan.privacy.canaries:
        things.append("the histograms of canaries, which follow from the weights and from phantoms")
    return tuple(things)


def not_covered(plan: StudyPlan) -> tuple[str, ...]:
    """Returns what left the sites without being covered by epsilon."""
    things = [
        "what each site agreed to say of itself: coarse size, modality, spacing, device",
        "the declared number of patients, rounded down to a multiple of 5",
        "which sites took part, and how long each round took",
    ]
    if plan.privacy.audit_counts == "exact":
        things.insert(0, "the histograms and counts of this audit, which are exact")
    if plan.privacy.evaluations:
        things.insert(
            0, "the figures of evaluations, which are exact; they are of held-out patients"
        )
    if not plan.privacy.enabled:
        things.insert(0, "the weights: there was no differential privacy")
    return tuple(things)


def not_tested(plan: StudyPlan) -> tuple[str, ...]:
    """Returns what an audit of this plan does not try, so that silence is not read as safety."""
    things = [
        "an attacker who saw every round's update instead of the final weights",
        "recognising a person from a face or another scan; attributes of a patient",
        "whether a whole hospital took part: about 70 of its patients suffice to tell",
    ]
    if not plan.privacy.reference_models:
        things.insert(0, "attacks with reference models that were trained for it (RMIA, LiRA)")
    if plan.privacy.audit_counts == "noised":
        things = [
            "all attacks but one score, since more could not leave under the noise",
            "whether members and non-members differ in their images alone (the blind baseline)",
            "copies of patients among synthetic volumes",
            *things,
        ]
    return tuple(things)


def notes(pseudo_patients: Sequence[str]) -> tuple[str, ...]:
    """Returns what a reader must know to read the figures rightly."""
    lines = [
        "Epsilon bounds what any attacker can learn about one patient, whatever else they know.",
        "An attack that fails says nothing of better attacks; only the upper bound is a proof.",
        "A patient seen at two hospitals spends the budget of both.",
    ]
    if pseudo_patients:
        names = ", ".join(pseudo_patients)
        lines.insert(
            0, f"Volumes stand as pseudo-patients at {names}: no patient-level claim holds."
        )
    return tuple(lines)
