"""Specimens: what an audit's sites are sent beside the weights: synthetic volumes, an extractor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..study.files import write
from ..study.messages import hash_of
from .coordinator import Coordinator
from .store import Store


@dataclass(frozen=True)
class Specimens:
    """What goes with the weights.

    Attributes:
        samples: synthetic volumes that each site searches for copies.
        drawn: the file of those volumes; None where sites draw their own, or search none.
        extractor: the file of the extractor that likeness is judged by; None where there is none.
    """

    samples: int
    drawn: Path | None
    extractor: Path | None


def gather(
    coordinator: Coordinator,
    store: Store,
    samples: int,
    budget: float,
    progress: Callable[[int, int], None],
) -> Specimens:
    """Draw the synthetic volumes of the last weights and have an extractor ready.

    With noised counts nothing of a search could leave a site, and none is made. The volumes of a
    model that starts from images are drawn at the sites, from held-out patients.

    Args:
        coordinator: whose folder keeps extractors.
        store: the study.
        samples: how many volumes; 0 takes what the budget allows, from 200 to ten a patient.
        budget: s that drawing may take.
        progress: told what is drawn and the total.

    Raises:
        WireError: the model drew a value that is not finite.
    """
    from ..models.registry import conditioning
    from ..privacy.audit.copies import synthetic
    from .evaluation_commands import LEAST_SIDE, extractor_file, phantom_shape
    from .release import model_of

    plan, last = store.plan, store.latest(coordinator.key.public)
    if plan.privacy.audit_counts == "noised":
        return Specimens(0, None, None)
    extractor = None
    if min(plan.volumes.shape) >= LEAST_SIDE:
        shape = phantom_shape(plan.volumes.shape)
        extractor = extractor_file(coordinator, None, shape, hidden=True)
    takes, digest = conditioning(plan), hash_of(last.weights)
    if not synthetic.made_by_coordinator(takes):
        return Specimens(samples or synthetic.FEWEST, None, extractor)
    family = model_of(store, last)
    if not samples:
        began = time.monotonic()
        synthetic.draw(family, takes, digest, 0)
        took = max((time.monotonic() - began) / synthetic.HANDFUL, 1e-6)
        declared = sum(int(facts["declared_patients"]) for facts in store.decisions().values())
        samples = synthetic.affordable(took, budget, declared)
    path = store.folder / "samples" / f"{digest[:16]}-{samples}.safetensors"
    if not path.exists():
        made = synthetic.make(family, takes, digest, samples, progress=progress)
        write(path, made.content)
    return Specimens(samples, path, extractor)
