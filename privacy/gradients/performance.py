"""Performance: how a site's machine does the private step; none of it can change epsilon."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...study.tables import Table


class PerformanceSettings(Table):
    """The [performance] table of site.toml: what it steers is exact in every setting."""

    volumes_at_once: int = Field(
        8, ge=1, le=1024, description="most volumes in one forward pass, 1 or more; 8 by default"
    )
    passes: Literal["auto", "one", "two", "alone"] = Field(
        "auto",
        description='"one" keeps the gradients of all volumes at once, "two" takes norms first and '
        'runs again to add, "alone" takes patient after patient, "auto" chooses',
    )
