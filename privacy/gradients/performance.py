"""Performance: how a site's machine does the private step; none of it can change epsilon."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ...study.tables import Table

Precision = Literal["float32", "bfloat16"]


class PerformanceSettings(Table):
    """The [performance] table of site.toml: the bound on a patient holds in every setting.

    bfloat16 and checkpointing take patients one by one. In bfloat16 a gradient rounds so coarsely
    that it must not depend on who else is in the batch; and what the recorder of a whole batch
    keeps is what checkpointing forgets.
    """

    volumes_at_once: int = Field(
        8, ge=1, le=1024, description="most volumes in one forward pass, 1 or more; 8 by default"
    )
    passes: Literal["auto", "one", "two", "alone"] = Field(
        "auto",
        description='"one" keeps the gradients of all volumes at once, "two" takes norms first and '
        'runs again to add, "alone" takes patient after patient, "auto" chooses',
    )
    precision: Precision = Field(
        "float32",
        description='of losses and gradients, "float32" or "bfloat16" (half the memory); clipping '
        "and noise are in float64 all the same",
    )
    checkpointing: bool = Field(
        False, description="true computes blocks twice to keep a fraction of their memory"
    )

    @property
    def saves_memory(self) -> bool:
        """Whether patients are taken one by one to save memory."""
        return self.checkpointing or self.precision != "float32"

    @model_validator(mode="after")
    def _one_by_one(self) -> Self:
        if self.saves_memory and self.passes not in ("auto", "alone"):
            raise ValueError(
                'passes must be "auto" or "alone" with bfloat16 or checkpointing, '
                "which take patients one by one"
            )
        return self
