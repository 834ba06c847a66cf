"""TOML tables read into frozen models, so that one error names every wrong key with its remedy."""

from __future__ import annotations

import difflib
import json
import tomllib
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UsageError


class Table(BaseModel):
    """A frozen table of a TOML file without unknown keys; field descriptions are the remedies."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, text: bytes, *, file: str, error: type[UsageError]) -> Self:
        """Read TOML `text` or raise `error` naming each wrong, missing and unknown key."""
        try:
            values = tomllib.loads(text.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
            raise error(f"{file} is not TOML: {fault}", hint="mend the line it names") from None
        return cls.checked(values, file=file, error=error)

    @classmethod
    def checked(
        cls, values: dict[str, Any], *, file: str, error: type[UsageError] = UsageError
    ) -> Self:
        """Read values as TOML gives them; raise `error` as `parse` does."""
        try:
            # JSON mode is strict about types yet takes TOML's arrays as tuples.
            return cls.model_validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as fault:
            lines = [_explain(cls, values, dict(item)) for item in fault.errors()]
            count = f"{len(lines)} wrong key{'s' if len(lines) > 1 else ''} in {file}"
            raise error("\n  ".join([count, *lines]), hint=f"edit {file} and try again") from None


def _explain(model: type[BaseModel], values: dict[str, Any], item: dict[str, Any]) -> str:
    """Return one line for one wrong key: its name, its value, what was expected, the remedy."""
    where = [str(part) for part in item["loc"]]
    key = ".".join(where) or "the file"
    owner, remedy = _field(model, where)
    if item["type"] == "missing":
        return f"{key}: missing (expected {remedy or 'a value'})"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[-1], list(owner.model_fields), n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(owner.model_fields)}"
        return f"{key}: unknown key (got {_value(values, where)}, {advice})"
    fault = item["msg"].removeprefix("Value error, ")
    return f"{key}: {fault} (got {_value(values, where)}, expected {remedy or fault})"


def _field(model: type[BaseModel], where: list[str]) -> tuple[type[BaseModel], str]:
    """Return the model that owns the last key of `where`, and the description of the field."""
    description = ""
    for depth, name in enumerate(where):
        field = model.model_fields.get(name)
        if field is None:
            return model, description
        description = field.description or description
        kinds = get_args(field.annotation) or (field.annotation,)  # a table may be left out
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if depth + 1 < len(where) and inner:
            model = inner[0]
    return model, description


def _value(values: Any, where: list[str]) -> str:
    for name in where:
        if isinstance(values, dict) and name in values:
            values = values[name]
        elif isinstance(values, list) and name.isdigit() and int(name) < len(values):
            values = values[int(name)]
    return json.dumps(values, default=str)[:80]
