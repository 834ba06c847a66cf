"""Conditions as what networks take: a few numbers a volume, or planes of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..study.errors import PlanError
from .base import Condition, Family

Kind = Literal["none", "class", "attributes", "mask", "source"]

FIELDS = {"class": "label", "attributes": "attributes", "mask": "mask", "source": "source"}


@dataclass(frozen=True)
class Conditioning:
    """What a family is told, and in which form its networks take it.

    Attributes:
        kind: which field of a Condition is told; the others must be empty.
        classes: of a label, or structures of a mask with the background.
        attributes: numbers that a volume is told.
        shape: of a volume, (D, H, W).
        weights: how often each class is drawn, in proportion; none where all are drawn alike.
    """

    kind: Kind
    classes: int
    attributes: int
    shape: tuple[int, int, int]
    weights: tuple[float, ...] = ()

    @property
    def numbers(self) -> int:
        """Numbers that a volume is told: one a class, or its attributes; 0 for an image."""
        return {"class": self.classes, "attributes": self.attributes}.get(self.kind, 0)

    @property
    def planes(self) -> int:
        """Channels of an image condition: one a structure, or the source; 0 for numbers."""
        return {"mask": self.classes, "source": 1}.get(self.kind, 0)

    def told(self, condition: Condition, n: int) -> Tensor | None:
        """Return a condition as float32 numbers (n, F) or planes (n, F, D, H, W).

        A class or a mask becomes ones and zeros, one channel a class. It is None where the family
        takes no condition.

        Raises:
            PlanError: the condition is missing, not of this kind, or does not fit.
        """
        self._check(condition, n)
        if condition.label is not None:
            return functional.one_hot(condition.label, self.classes).float()
        if condition.mask is not None:
            hot = functional.one_hot(condition.mask.squeeze(1), self.classes)
            return hot.movedim(-1, 1).float().contiguous()
        return condition.source if condition.attributes is None else condition.attributes

    def prior(self, n: int, generator: torch.Generator) -> Condition:
        """Draw `n` conditions from public knowledge alone: classes by weight, attributes uniformly.

        Raises:
            PlanError: the family is told an image, and no image is public by itself.
        """
        if self.planes:
            raise PlanError(
                f"a {self.kind} cannot be drawn",
                got="no images",
                expected=f"one {self.kind} a volume",
                hint="give images that may be used",
            )
        return self.example(n, generator)

    def example(self, n: int, generator: torch.Generator) -> Condition:
        """Draw `n` conditions of the right form; images are of noise, for checks and estimates."""
        draw, device = generator, generator.device
        if self.kind == "class":
            weights = torch.tensor(self.weights or (1.0,) * self.classes, device=device)
            label = torch.multinomial(weights, n, replacement=True, generator=draw)
            return Condition(label=label)
        if self.kind == "mask":
            shape = (n, 1, *self.shape)
            mask = torch.randint(self.classes, shape, generator=draw, device=device)
            return Condition(mask=mask)
        if self.kind == "attributes":
            numbers = torch.rand((n, self.attributes), generator=draw, device=device)
            return Condition(attributes=2 * numbers - 1)
        if self.kind == "source":
            source = torch.rand((n, 1, *self.shape), generator=draw, device=device)
            return Condition(source=2 * source - 1)
        return Condition()

    def _check(self, condition: Condition, n: int) -> None:
        given = {name: value for name in FIELDS.values() if _is(value := getattr(condition, name))}
        wanted = FIELDS.get(self.kind)
        if set(given) != ({wanted} if wanted else set()):
            what = f"takes a condition: {wanted}" if wanted else "takes no condition"
            raise PlanError(
                f"the family as set up {what}",
                got=", ".join(given) or "no condition",
                expected=wanted or "no condition",
                hint="see the key condition of the settings",
            )
        if wanted:
            self._check_fit(wanted, given[wanted], n)

    def _check_fit(self, name: str, value: Tensor, n: int) -> None:
        shapes = {
            "label": (n,),
            "attributes": (n, self.attributes),
            "mask": (n, 1, *self.shape),
            "source": (n, 1, *self.shape),
        }
        if value.shape != shapes[name]:
            raise PlanError(
                f"the condition {name} has the wrong shape",
                got=tuple(value.shape),
                expected=shapes[name],
            )
        if name in ("attributes", "source"):
            fits = value.is_floating_point() and bool(value.isfinite().all())
            expected = "finite numbers, scaled to about [-1, 1]"
        else:
            fits = value.dtype == torch.int64 and _within(value, self.classes)
            expected = f"int64 from 0 to {self.classes - 1}"
        if not fits:
            raise PlanError(f"the condition {name} is out of range", expected=expected)


def conditioning_of(family: Family, shape: tuple[int, int, int]) -> Conditioning:
    """Return what a family is told; `shape` is that of its volumes, (D, H, W)."""
    told = getattr(getattr(family, "spec", None), "conditioning", None)
    return told if isinstance(told, Conditioning) else Conditioning("none", 0, 0, shape)


def _is(value: Tensor | None) -> bool:
    return value is not None


def _within(value: Tensor, classes: int) -> bool:
    return value.numel() == 0 or bool(((value >= 0) & (value < classes)).all())
