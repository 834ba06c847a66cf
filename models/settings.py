"""What the table [settings] of a study file may hold, for each family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..study.errors import PlanError
from ..study.tables import Table
from .registry import FAMILIES, TOLD, names


@dataclass(frozen=True)
class Setting:
    """One key of the table [settings].

    Attributes:
        name: the key, `outer.inner` inside a table of its own.
        default: its value where a study file leaves it out, in JSON's types.
        description: what it does and which values it takes.
    """

    name: str
    default: Any
    description: str


def settings(family: str) -> tuple[Setting, ...]:
    """Return the keys that a study file may set for a family, in the order of its spec.

    Raises:
        PlanError: no family has this name.
    """
    if family not in FAMILIES:
        known = ", ".join(names())
        raise PlanError("unknown family", got=family, expected=known, hint="voxfed models")
    filled = FAMILIES[family].spec.model_validate({"shape": (64, 64, 64)})
    return tuple(one for one in _listed(filled) if one.name not in ("shape", *TOLD))


def _listed(table: Table, prefix: str = "") -> Iterator[Setting]:
    """Yield the keys of a table, those of the tables inside it as `outer.inner`."""
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if isinstance(value, Table):
            yield from _listed(value, f"{prefix}{name}.")
        else:
            default = table.model_dump(mode="json", include={name})[name]
            yield Setting(prefix + name, default, field.description or "")
