"""Quality: what `voxfed evaluate` found of the weights that are released."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from ..study.errors import VerificationError, VoxfedError
from ..study.figures import FigureRow
from ..study.identity import PublicKey
from ..study.messages import Evaluated, decode
from .bundle import EVALUATION, check_same


class SiteQuality(BaseModel):
    """One site's figures; `reply` is base64 of the message in which it signed them."""

    model_config = ConfigDict(frozen=True)
    site: str
    figures: tuple[FigureRow, ...]
    reply: str


class Quality(BaseModel):
    """The part of an evaluation report that a release speaks of; all else in it is left alone.

    Attributes:
        created: UTC, as in ISO 8601.
        weights_digest: SHA-256 of the weights that were evaluated.
        extractor: the network whose features were compared.
        sites: what each hospital answered.
        refused: hospitals that did not, with the code they gave.
        together: the means over hospitals, which are the coordinator's.
        worst: by figure, the hospital where it is the worst.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    created: str
    weights_digest: str
    extractor: str
    sites: tuple[SiteQuality, ...]
    refused: dict[str, str]
    together: tuple[FigureRow, ...]
    worst: dict[str, str]

    @classmethod
    def from_text(cls, text: bytes, *, what: str = EVALUATION) -> Quality:
        """Read an evaluation report; raise VerificationError where it is not one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as fault:
            raise VerificationError(
                f"{what} cannot be read", got=f"{fault.error_count()} wrong fields"
            ) from None

    def check(self, weights_digest: str, keys: Mapping[str, PublicKey]) -> None:
        """Checks that each hospital signed its figures, and of these weights.

        The means and which hospital is the worst are not computed again.

        Raises:
            VerificationError: naming the first figures that are not, or a key that is not given.
        """
        check_same(f"{EVALUATION}: the weights", self.weights_digest, weights_digest)
        for site in self.sites:
            if site.site not in keys:
                raise VerificationError(
                    f"the evaluation of {site.site} cannot be checked",
                    got="no key",
                    hint=f"ask {site.site} for its card and name it with --card",
                )
            reply = _reply(site, keys[site.site])
            what = f"the evaluation of {site.site}"
            check_same(f"{what}: the weights", reply.weights_digest, weights_digest)
            if reply.figures != site.figures:
                raise VerificationError(f"{what} is not what the hospital signed")


def _reply(site: SiteQuality, key: PublicKey) -> Evaluated:
    what = f"the evaluation of {site.site}"
    try:
        reply, _ = decode(base64.b64decode(site.reply, validate=True), key)
    except (ValueError, VoxfedError) as fault:
        got = fault.message if isinstance(fault, VoxfedError) else "garbled base64"
        raise VerificationError(f"{what} cannot be trusted", got=got) from None
    if not isinstance(reply, Evaluated):
        raise VerificationError(f"{what} is none", got=getattr(reply, "kind", "nothing"))
    return reply
