"""The setting `groups` of GroupNorm, which every normalised width must be a multiple of."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo


def divides(setting: str) -> AfterValidator:
    """Return a check that a number divides an earlier setting, a width or several.

    It holds for a default too, since the widths beside it may have been chosen.
    """

    def check(groups: int, known: ValidationInfo) -> int:
        found = known.data.get(setting, ())
        widths = found if isinstance(found, tuple) else (found,)
        odd = [width for width in widths if width % groups]
        if odd:
            raise ValueError(f"does not divide {setting} {odd}")
        return groups

    return AfterValidator(check)


Groups = Annotated[int, Field(ge=1, le=1024, validate_default=True), divides("channels")]
